"""What a run of `influence.scores` ranks, read from its folder: the rows of one query, by one of four rankings, from one of two sides.

Supporters and opponents are told by the sign of the ranking's own number; words in common (BM25) have no sign, and there the sign of the
score tells. Rows that are nearly the same are listed as one. Only rows that are shown leave the file; a rank counts all rows of the query
that the run has kept. Nothing here may run on the event loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from modelscope_app.api import BadInput, FinishedRun, neutralised
from modelscope_influence.panels.row_texts import RowText, RowTexts

if TYPE_CHECKING:
    import polars

RANKINGS: Mapping[str, str] = {"score": "score", "relatif": "RelatIF", "gradient_cosine": "cosine", "bm25": "BM25"}
"""Columns of `pairwise` that rank, and what they are called."""
MOST_SHOWN = 200
MOST_SET_ASIDE = 20
ENDED = frozenset({"done", "failed", "cancelled", "lost"})
_LONGEST_LINE = 400
_COLUMNS = ("example", "score", "delta_measure", "relatif", "gradient_cosine", "bm25", "loss", "effect", "flagged", "is_exact", "group")


class RankedRow(NamedTuple):
    """A training row beside one query."""

    example: int
    numbers: Mapping[str, float | None]
    """By column: `score`, `delta_measure`, `relatif`, `gradient_cosine`, `bm25`, `loss`, as far as the run has them."""
    ranks: Mapping[str, int | None]
    """Its place by each ranking, counted from 1."""
    effect: str
    """supports, opposes, neither; empty where it is unknown."""
    is_flagged: bool | None
    duplicates: int | None
    """How many other rows of this side say nearly the same; None where the run did not look."""
    is_exact: bool
    """Whether its score is more than a scan of low rank."""
    text: RowText | None
    """What it says; None where that is unknown."""

    @property
    def is_set_aside(self) -> bool:
        """Whether it has no score."""
        return self.numbers.get("score") is None


class Wanted(NamedTuple):
    """Which ranking."""

    query: int = 0
    """Counted among the queries the run has rows of."""
    by: str = "score"
    supporters: bool = True


class Ranking(NamedTuple):
    """What is shown."""

    wanted: Wanted
    queries: Sequence[int]
    """Their numbers in the run."""
    query_text: str
    """On one line, harmless to print; empty where it is unknown."""
    rows: Sequence[RankedRow]
    """Best first, then those without a number."""
    of_side: int = 0
    """Rows on this side, shown or not, those that are nearly the same as one."""
    of_query: int = 0
    set_aside: int = 0
    rankings: Sequence[str] = ("score",)
    """Those the run has."""
    plus_supports: bool = True
    """What a positive score means."""
    is_whole: bool = True
    """Whether the run was to keep every row."""


class Texts(NamedTuple):
    """The data files of a run."""

    train: RowTexts
    queries: RowTexts


def texts_of(run: FinishedRun) -> Texts:
    """The files it was given."""
    return Texts(*(RowTexts(str(run.params.get(name) or "")) for name in ("train", "queries")))


def read_ranking(run: FinishedRun, wanted: Wanted, texts: Texts) -> Ranking:
    """The rows to show. Raises BadInput where the run's table is damaged or has other columns."""
    import polars as pl

    path = table_path(run, "pairwise")
    with damage_said(path):
        scanned = pl.scan_parquet(path)
        there = scanned.collect_schema().names()
        if missing := {"query", "example", "score"}.difference(there):
            raise BadInput(f"{path.name}: has no column {sorted(missing)[0]}")
        queries = [int(value) for value in scanned.select(pl.col("query").drop_nulls().unique().sort()).collect().to_series()]
        rankings = [name for name in RANKINGS if name in there]
        wanted = Wanted(max(0, min(wanted.query, len(queries) - 1)), wanted.by if wanted.by in rankings else "score", wanted.supporters)
        plus = run.params.get("measure", "loss") == "loss"
        is_whole = all(run.params.get(name) is None for name in ("top_k", "prefilter"))
        if not queries:
            return Ranking(wanted, (), "", (), rankings=rankings, plus_supports=plus)
        query = queries[wanted.query]
        columns = [name for name in _COLUMNS if name in there]
        rows = scanned.filter(pl.col("query") == query).select(columns)
        shown, counts = _ranked(rows, wanted, rankings, plus)
        said = _said(run, query, shown, texts)
    return Ranking(wanted, queries, _query_text(run, query, texts.queries), said, *counts, rankings, plus, is_whole)


def _ranked(
    rows: polars.LazyFrame, wanted: Wanted, rankings: Sequence[str], plus_supports: bool
) -> tuple[polars.DataFrame, tuple[int, int, int]]:
    """The rows to show, and how many there are on this side, in all, and without a score."""
    import polars as pl

    largest_first = wanted.supporters == plus_supports
    ranks = [
        pl.col(name).rank("min", descending=largest_first or name == "bm25").alias(f"rank_{name}")  # null stays null
        for name in rankings
    ]
    sign = pl.col("score" if wanted.by == "bm25" else wanted.by)
    on_side = pl.col(wanted.by).is_not_null() & ((sign > 0) if largest_first else (sign < 0))
    if has_groups := "group" in rows.collect_schema().names():
        rows = rows.with_columns(pl.coalesce(pl.col("group").cast(pl.Int64), -1 - pl.col("example")).alias("group"))
    held = rows.with_columns(pl.col(name).cast(pl.Float64).fill_nan(None) for name in rankings)
    each = pl.col("group" if has_groups else "example").filter(on_side).n_unique()
    counts = held.select(each.alias("side"), pl.len().alias("all"), pl.col("score").null_count().alias("aside")).collect()
    best = held.with_columns(ranks).filter(on_side).sort(wanted.by, "example", descending=[largest_first or wanted.by == "bm25", False])
    if has_groups:
        best = best.with_columns((pl.len().over("group") - 1).alias("duplicates")).unique("group", keep="first", maintain_order=True)
    best = best.head(MOST_SHOWN)
    unknown = held.with_columns(pl.lit(None, pl.UInt32).alias(f"rank_{name}") for name in rankings).filter(pl.col(wanted.by).is_null())
    shown = pl.concat([best.collect(), unknown.head(MOST_SET_ASIDE).collect()], how="diagonal_relaxed")
    return shown, (counts["side"][0] or 0, counts["all"][0], counts["aside"][0])


def _said(run: FinishedRun, query: int, shown: polars.DataFrame, texts: Texts) -> list[RankedRow]:
    """Rows with their words: of the data file where it is as it was, else as far as the run has kept them."""
    kept = kept_texts(run, query)
    file_first = texts.train.is_small_and_older_than(run.folder)
    asked = [example for example in shown["example"].to_list() if file_first or example not in kept]
    words = {**kept, **texts.train.texts(asked)}
    return [_row(values, words.get(values["example"])) for values in shown.iter_rows(named=True)]


def _row(values: Mapping[str, Any], text: RowText | None) -> RankedRow:
    return RankedRow(
        int(values["example"]),
        {name: finite(values[name]) for name in ("score", "delta_measure", "relatif", "gradient_cosine", "bm25", "loss") if name in values},
        {name: values.get(f"rank_{name}") for name in RANKINGS if name in values},
        neutralised(str(values.get("effect") or ""), 12),
        values["flagged"] if isinstance(values.get("flagged"), bool) else None,
        values.get("duplicates"),
        values.get("is_exact") is not False,
        text,
    )


def kept_texts(run: FinishedRun, query: int) -> dict[int, RowText]:
    """Texts that the run itself has of rows of that query."""
    return {example: RowText("", str(text)) for example, text in _kept(run, "shown", query, "example", "text") if text is not None}


def _kept(run: FinishedRun, name: str, query: int, *columns: str) -> list[tuple[Any, ...]]:
    """Rows of a table of words, which no ranking needs: none where the run has no such table, or it is damaged or another."""
    import polars as pl

    try:
        path = table_path(run, name)
        with damage_said(path):
            return pl.scan_parquet(path).filter(pl.col("query") == query).select(columns).collect().rows()
    except BadInput:
        return []


def _query_text(run: FinishedRun, query: int, queries: RowTexts) -> str:
    completion = run.params.get("completion")
    if isinstance(completion, str) and completion:
        return RowText(str(run.params.get("prompt") or ""), completion).line(_LONGEST_LINE)
    text = queries.texts([query]).get(query)
    if text is None:
        text = next((RowText("", str(said)) for (said,) in _kept(run, "queries", query, "text") if said is not None), None)
    return "" if text is None else text.line(_LONGEST_LINE)


def table_path(run: FinishedRun, name: str) -> Path:
    """Of one table. Raises BadInput where the run has none of that name."""
    tables = run.tables
    if name not in tables:
        raise BadInput(f"the run has no table {name} (it is {run.status})")
    return tables[name]


@contextmanager
def damage_said(path: Path) -> Iterator[None]:
    """What polars raises for a table that is damaged or of other columns, as a sentence."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__.partition(".")[0] in ("polars", "pyo3_runtime") or isinstance(error, OSError | TypeError | ValueError):
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise BadInput(f"{path.name}: damaged, or not what its name says ({neutralised(why, 200)})") from None
        raise


def finite(value: Any) -> float | None:
    """A number; None where it is none, or not finite.

    >>> finite(1), finite(None), finite(float("inf")), finite("x")
    (1.0, None, None, None)
    """
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None
