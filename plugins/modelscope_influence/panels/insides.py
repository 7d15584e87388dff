"""What of the model made the score of one pair: each module's part, and each token's, read from a run that has them.

A module is drawn at its layer, the first number in its name, and its kind, what comes after: `model.layers.3.mlp.down_proj` is
`mlp.down_proj` of layer 3. A module outside the layers has no number. Nothing here may run on the event loop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from modelscope_app.api import BadInput, FinishedRun, neutralised
from modelscope_influence.panels.rankings import damage_said, finite, table_path

MOST_TOKENS, MOST_MODULES = 20_000, 20_000
OUTSIDE = "-"
_LONGEST_NAME, _LONGEST_TOKEN = 200, 60


class ModuleScores(NamedTuple):
    """Layers downwards, kinds across."""

    layers: Sequence[str]
    kinds: Sequence[str]
    cells: Mapping[tuple[str, str], tuple[str, float | None]]
    """By layer and kind: the module's name and its score; only what there is."""

    @property
    def reach(self) -> float:
        """The largest size of a score."""
        return max((abs(score) for _, score in self.cells.values() if score is not None), default=0.0)


class Token(NamedTuple):
    """One token of the training row."""

    position: int
    text: str
    """As the table has it; harmless to print."""
    score: float | None


class Span(NamedTuple):
    """A stretch of tokens, and the sum of its scores."""

    start: int
    stop: int
    score: float


class Inside(NamedTuple):
    """One pair, looked into."""

    modules: ModuleScores | None = None
    """None where the run has no such rows."""
    tokens: Sequence[Token] = ()
    spans: Sequence[Span] = ()
    """The stretch with the largest sum, and the one with the smallest."""


def has_inside(run: FinishedRun) -> bool:
    """Whether a run has both tables."""
    return {"modules", "tokens"} <= set(run.tables)


def read_inside(run: FinishedRun, query: int, example: int) -> Inside:
    """Of one pair. Raises BadInput where a table is damaged."""
    tables = run.tables
    return Inside(
        _modules(run, query, example) if "modules" in tables else None,
        _tokens(run, query, example) if "tokens" in tables else (),
        _spans(run, query, example) if "spans" in tables else (),
    )


def _of_pair(run: FinishedRun, name: str, columns: Sequence[str], query: int, example: int, most: int) -> list[tuple[object, ...]]:
    import polars as pl

    path = table_path(run, name)
    with damage_said(path):
        scanned = pl.scan_parquet(path).filter((pl.col("query") == query) & (pl.col("example") == example))
        return scanned.select(columns).head(most).collect().rows()


def _modules(run: FinishedRun, query: int, example: int) -> ModuleScores | None:
    rows = _of_pair(run, "modules", ("module", "score"), query, example, MOST_MODULES)
    if not rows:
        return None
    cells = {layer_and_kind(str(name)): (neutralised(str(name), _LONGEST_NAME), finite(score)) for name, score in rows}
    layers = sorted({layer for layer, _ in cells}, key=lambda layer: (layer == OUTSIDE, int(layer) if layer.isdecimal() else 0))
    return ModuleScores(layers, tuple(dict.fromkeys(kind for _, kind in cells)), cells)


def layer_and_kind(module: str) -> tuple[str, str]:
    """Where a module is drawn; both harmless to print.

    >>> layer_and_kind("model.layers.3.mlp.down_proj"), layer_and_kind("lm_head"), layer_and_kind("layers.2")
    (('3', 'mlp.down_proj'), ('-', 'lm_head'), ('2', 'layers'))
    """
    found = re.match(r"(.*?)(?:^|\.)([0-9]{1,6})(?:\.(.*))?$", module)
    if found is None:
        return OUTSIDE, neutralised(module, _LONGEST_NAME)
    return found[2], neutralised(found[3] or found[1] or module, _LONGEST_NAME)


def _tokens(run: FinishedRun, query: int, example: int) -> Sequence[Token]:
    rows = _of_pair(run, "tokens", ("position", "token", "score"), query, example, MOST_TOKENS)
    try:
        found = [Token(int(str(at)), neutralised(str(token), _LONGEST_TOKEN), finite(score)) for at, token, score in rows]
    except ValueError:
        raise BadInput(f"{table_path(run, 'tokens')}: a position is no number") from None
    return sorted(found)


def _spans(run: FinishedRun, query: int, example: int) -> Sequence[Span]:
    rows = _of_pair(run, "spans", ("start", "stop", "score"), query, example, 2)
    known = [(start, stop, finite(score)) for start, stop, score in rows]
    return [Span(start, stop, score) for start, stop, score in known if isinstance(start, int) and isinstance(stop, int) and score]
