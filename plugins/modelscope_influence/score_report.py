"""Tables, facts and views of `influence.scores`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import polars as pl
import torch

from modelscope_app.api import Example, FactsView, HeatMapView, JobContext, TableView, Tokenizer, TokenStripView, neutralised
from modelscope_influence.baselines import Words
from modelscope_influence.objectives import MEANING, Measure
from modelscope_influence.params import ScoresParams
from modelscope_influence.prefilter import Chosen, Recall
from modelscope_influence.rankings import auc, mean, precision_at
from modelscope_influence.scanning import Scanned
from modelscope_influence.score_passes import root

_SHOWN, _SHOWN_PAIRS, _LONGEST_TEXT = 20, 10, 400


class Found(NamedTuple):
    """What there is to report."""

    scanned: Scanned
    chosen: Chosen
    bm25: torch.Tensor | None
    """(pair,)."""
    flags: torch.Tensor | None
    """(row,) bool of all training rows."""
    quality: Mapping[str, float | None]
    """How well rankings find flagged rows."""
    recalls: Mapping[str, Recall | None]
    """What a filter left of the highest scores, and of the lowest; empty without one."""
    groups: Mapping[int, int] | None
    """The first of the rows that are nearly the same, by row."""

    @property
    def example(self) -> torch.Tensor:
        """(pair,) rows of the file."""
        return torch.tensor(self.chosen.rows)[self.scanned.pairs.place]

    @property
    def relatif(self) -> torch.Tensor:
        """(pair,): score over the root of the example's self-influence (Barshan et al. 2020)."""
        return self.scanned.pairs.score / root(self.scanned.self_influence)[self.scanned.pairs.place]

    @property
    def kept(self) -> list[list[int]]:
        """By query, the rows of the file whose scores are written."""
        example = self.example
        return [example[self.scanned.pairs.query == at].tolist() for at in range(len(self.scanned.measures))]


class Texts(NamedTuple):
    """Where the words are."""

    tokenizer: Tokenizer
    train: Sequence[Example]
    queries: Sequence[Example]


def leave_behind(
    context: JobContext,
    params: ScoresParams,
    found: Found,
    tokens: Sequence[tuple[int, int, list[float]]] | None,
    texts: Texts | None,
    modules: Sequence[str],
) -> None:
    """Write tables, facts and views."""
    pairwise = pairwise_table(found, params)
    context.table("pairwise", pairwise)
    context.table("queries", query_table(found, params, texts))
    by_module = None if found.scanned.pairs.by_module is None else module_table(pairwise, found.scanned.pairs.by_module, modules)
    if by_module is not None:
        context.table("modules", by_module)
    if tokens is not None:
        context.table("tokens", token_table(tokens, texts))
        context.table("spans", span_table(tokens, texts))
    context.table("shown", shown_table(pairwise, texts))
    context.facts(facts(params, found))
    positive, negative = MEANING[params.measure]
    meaning = f"Positive: {positive}. Negative: {negative}. delta_measure predicts the change of the query's {params.measure}."
    context.view(FactsView(name="card", title="Influence"))
    context.view(TableView(name="shown", title="Most influential", table="shown", columns=_shown_columns(texts, found), caption=meaning))
    title = "All scores" if params.top_k is None and found.chosen.is_all else "Scores"
    context.view(TableView(name="pairwise", title=title, table="pairwise", caption=meaning))
    best = pairwise.filter(pl.col("query") == 0)["example"].head(_SHOWN_PAIRS).to_list()
    if by_module is not None:
        context.table("shown_modules", by_module.filter((pl.col("query") == 0) & pl.col("example").is_in(best)))
        context.view(
            HeatMapView(name="modules", title="By module", table="shown_modules", row="module", column="example", value="score", center=0.0,
                caption="Of the first query's highest scores, what each module contributes.")
        )  # fmt: skip
    if tokens:
        context.table("shown_tokens", token_table(tokens, texts).filter((pl.col("query") == 0) & pl.col("example").is_in(best)))
        context.view(
            TokenStripView(name="tokens", title="By token", table="shown_tokens", token="token", scores=("score",), text="example",
                caption="What the weights' use at each token contributes; it reaches the loss of later tokens too.")
        )  # fmt: skip


def _shown_columns(texts: Texts | None, found: Found) -> tuple[str, ...]:
    """What matters most comes first: a terminal has room for few."""
    return (
        *("query", "example", "score", "relatif", "effect"),
        *(("flagged",) if found.flags is not None else ()),
        *(("text",) if texts is not None else ()),
        "delta_measure",
        *(("gradient_cosine",) if found.scanned.pairs.cosine is not None else ()),
        *(("bm25",) if found.bm25 is not None else ()),
        "loss",
    )


def pairwise_table(found: Found, params: ScoresParams) -> pl.DataFrame:
    """One row per query and example, by query and falling score."""
    pairs, example = found.scanned.pairs, found.example
    columns: dict[str, Any] = {
        "query": pairs.query.numpy(),
        "example": example.numpy(),
        "score": known(pairs.score),
        "delta_measure": known(pairs.score / found.chosen.total),
        "relatif": known(found.relatif),
    }
    if pairs.cosine is not None:
        columns["gradient_cosine"] = known(pairs.cosine)
    if found.bm25 is not None:
        columns["bm25"] = known(found.bm25)
    columns["loss"] = known(found.scanned.loss[pairs.place])
    columns["effect"] = effects(pairs.score, params.measure)
    if found.scanned.rank is not None:
        columns["is_exact"] = pairs.is_exact.numpy()
    if found.groups is not None:
        columns["group"] = pl.Series([found.groups[id] for id in example.tolist()], dtype=pl.Int64)
    if found.flags is not None:
        columns["flagged"] = found.flags[example].numpy()
    return pl.DataFrame(columns)


def query_table(found: Found, params: ScoresParams, texts: Texts | None) -> pl.DataFrame:
    """One row per query."""
    table = pl.DataFrame(
        {"query": pl.Series(range(len(found.scanned.measures)), dtype=pl.Int64), params.measure: known(found.scanned.measures)}
    )
    if texts is None:
        return table
    return table.with_columns(pl.Series("text", [shown_text(texts.tokenizer, query) for query in texts.queries], dtype=pl.String))


def effects(score: torch.Tensor, measure: Measure) -> pl.Series:
    """In a word, what the example did to the query."""
    supports = ("supports", "opposes") if measure == "loss" else ("opposes", "supports")
    words = [None if value != value else supports[0] if value > 0 else supports[1] if value < 0 else "neither" for value in score.tolist()]
    return pl.Series(words, dtype=pl.String)


def module_table(pairwise: pl.DataFrame, by_module: torch.Tensor, modules: Sequence[str]) -> pl.DataFrame:
    """One row per query, example and module, from (module, pair)."""
    return pl.DataFrame(
        {
            "query": pairwise["query"].to_torch().repeat_interleave(len(modules)).numpy(),
            "example": pairwise["example"].to_torch().repeat_interleave(len(modules)).numpy(),
            "module": list(modules) * pairwise.height,
            "score": known(by_module.T.flatten()),
        }
    )


def token_table(tokens: Sequence[tuple[int, int, list[float]]], texts: Texts | None) -> pl.DataFrame:
    """One row per query, example and token."""
    rows: list[tuple[int, int, int, str, float]] = []
    for query, example, scores in tokens:
        words = _tokens(texts, example, len(scores))
        rows += [(query, example, at, words[at], score) for at, score in enumerate(scores)]
    return pl.DataFrame(rows, schema=["query", "example", "position", "token", "score"], orient="row")


def span_table(tokens: Sequence[tuple[int, int, list[float]]], texts: Texts | None) -> pl.DataFrame:
    """Of each query and example the span of tokens with the largest sum, and the one with the smallest."""
    rows = []
    for query, example, scores in tokens:
        words = _tokens(texts, example, len(scores))
        for sign in (1, -1):
            start, stop, total = largest_span([sign * score for score in scores])
            rows.append((query, example, start, stop, sign * total, "".join(words[start:stop])))
    return pl.DataFrame(rows, schema=["query", "example", "start", "stop", "score", "text"], orient="row")


def largest_span(scores: Sequence[float]) -> tuple[int, int, float]:
    """Start, stop and sum of the stretch with the largest sum, which is not empty (Kadane 1984).

    >>> largest_span([-1.0, 2.0, -0.5, 3.0, -9.0])
    (1, 4, 4.5)
    """
    best, here, start = (0, 1, scores[0]), 0.0, 0
    for at, score in enumerate(scores):
        if here <= 0:
            here, start = 0.0, at
        here += score
        if here > best[2]:
            best = (start, at + 1, here)
    return best


def shown_table(pairwise: pl.DataFrame, texts: Texts | None) -> pl.DataFrame:
    """The highest and the lowest of each query with their text, rows that are nearly the same once."""
    parts = []
    for _, rows in pairwise.filter(pl.col("score").is_not_null()).group_by("query", maintain_order=True):
        if "group" in rows.columns:
            positive, others = rows.filter(pl.col("score") > 0), rows.filter(pl.col("score") <= 0)
            rows = pl.concat([_once(positive, "first"), _once(others, "last")])
        parts.append(rows if rows.height <= 2 * _SHOWN else pl.concat([rows.head(_SHOWN), rows.tail(_SHOWN)]))
    shown = pl.concat(parts) if parts else pairwise.head(0)
    if texts is None:
        return shown
    return shown.with_columns(
        pl.Series("text", [shown_text(texts.tokenizer, texts.train[example]) for example in shown["example"].to_list()], dtype=pl.String)
    )


def _once(rows: pl.DataFrame, keep: Literal["first", "last"]) -> pl.DataFrame:
    """The first or last row of each group, with how many others there are."""
    counted = rows.with_columns((pl.len().over("group") - 1).cast(pl.Int64).alias("duplicates"))
    return counted.unique("group", keep=keep, maintain_order=True)


def facts(params: ScoresParams, found: Found) -> Mapping[str, Any]:
    """Headline facts."""
    scanned, chosen = found.scanned, found.chosen
    said: dict[str, Any] = {
        "queries": len(scanned.measures),
        "rows": chosen.total,
        "rows_set_aside": int((~scanned.self_influence.isfinite()).sum()),
        "measure": params.measure,
        "positive_score": MEANING[params.measure][0],
        "curvature": params.curvature,
        "fisher": params.fisher,
    }
    if params.prefilter is not None:
        said |= {"rows_scored": len(chosen.rows), "rows_filtered_out": chosen.total - len(chosen.rows), "rows_sampled": len(chosen.sample)}
        for name, recall in found.recalls.items():
            said[name] = None if recall is None else {"value": recall.value, "ci_low": recall.low, "ci_high": recall.high}
    if scanned.rank is not None:
        said |= {
            "rank": scanned.rank,
            "rank_kept": scanned.rank_kept,
            "rank_correlation": scanned.rank_correlation,
            "rank_candidates": scanned.candidates,
        }
        said |= {} if scanned.deepest is None else {"rank_deepest": scanned.deepest}
    if found.flags is not None:
        said |= {**found.quality, "flagged": int(found.flags.sum())}
    return said


def quality(params: ScoresParams, scanned: Scanned, chosen: Chosen, flags: torch.Tensor, words: Words | None) -> Mapping[str, float | None]:
    """How well each ranking finds flagged rows, mean over queries; the area under the curve only of rankings of all rows."""
    sign = 1 if params.measure == "loss" else -1
    rows = torch.tensor(chosen.rows)
    rankings: dict[str, Sequence[torch.Tensor]] = {}
    if scanned.scores is not None:
        rankings = {"": list(sign * scanned.scores), "_relatif": list(sign * scanned.scores / root(scanned.self_influence))}
        if scanned.cosines is not None:
            rankings["_gradient_cosine"] = list(sign * scanned.cosines)
    said: dict[str, float | None] = {}
    for name, values in rankings.items():
        said[f"precision_at_20{name}"] = mean([precision_at(row, flags[rows], 20) for row in values])
        if chosen.is_all:
            said[f"auc{name}"] = mean([auc(row, flags[rows]) for row in values])
    has_ends = params.top_k is not None and params.top_k >= 20  # else rows of the other end would be counted
    if not rankings:
        pairs = scanned.pairs
        each = [pairs.query == at for at in range(len(scanned.measures))]
        is_relatif = params.rank_by == "relatif"  # the rows that are there are the best by what they were chosen by, and by nothing else
        ranked = sign * pairs.score / (root(scanned.self_influence)[pairs.place] if is_relatif else 1)
        found_flags = [precision_at(ranked[own], flags[rows[pairs.place[own]]], 20) for own in each] if has_ends else []
        said["precision_at_20_relatif" if is_relatif else "precision_at_20"] = mean(found_flags)
    if words is not None:
        found = [words.scores(query) for query in range(len(scanned.measures))]
        said["precision_at_20_bm25"] = mean([precision_at(row, flags, 20) for row in found])
        said["auc_bm25"] = mean([auc(row, flags) for row in found])
    return said


def known(values: torch.Tensor) -> pl.Series:
    """Numbers, null where not finite."""
    series = pl.Series(values.double().numpy())
    return series.set(~series.is_finite(), None) if len(series) else series


def _tokens(texts: Texts | None, example: int, count: int) -> list[str]:
    if texts is None:
        return [""] * count
    return [neutralised(texts.tokenizer.token(id), 60) for id in texts.train[example].input_ids]


def shown_text(tokenizer: Tokenizer, example: Example) -> str:
    """The beginning of a row's text, harmless to print."""
    return neutralised(tokenizer.decode(example.input_ids), _LONGEST_TEXT)
