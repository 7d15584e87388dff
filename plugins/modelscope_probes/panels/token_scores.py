"""What a run of `probes.score` on one prompt has found so far, read from its folder."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from modelscope_app.api import FinishedRun, neutralised

LONGEST_TOKEN = 40
_LONGEST_ANSWER = 2000


class TokenRow(NamedTuple):
    """One token."""

    position: int
    text: str
    """Harmless to print, its spaces visible."""
    is_answer: bool
    """Whether the model said it."""
    scores: tuple[float | None, ...]
    """By layer; None where it is unknown."""
    relative: tuple[float | None, ...]
    """By layer, from -1 to 1: how it stands out in its text."""


class TokenScores(NamedTuple):
    """Tokens of a prompt and its answer."""

    layers: tuple[str, ...]
    best: int | None
    """Place of the layer the probe is judged by."""
    tokens: tuple[TokenRow, ...]

    def best_score(self, row: int) -> float | None:
        """Of a token, at that layer."""
        return None if self.best is None else self.tokens[row].scores[self.best]


class Found(NamedTuple):
    """One look at the run."""

    state: str
    error: str | None = None
    tokens: TokenScores | None = None
    score: float | None = None
    """Of the prompt, once it is whole."""
    answer: str | None = None
    pooling: str = ""
    best_layer: str = ""
    stamp: tuple[int, ...] = ()
    """When the tables were written."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "failed", "cancelled", "lost")


def read_found(run: FinishedRun, before: Found | None = None) -> Found:
    """How the run stands; tables that are as they were `before` are not read again. Raises MscopeError or OSError."""
    state, error = run.status, run.error  # first, so that a final state comes with final tables
    tables = run.tables
    stamp = tuple(tables[name].stat().st_mtime_ns for name in ("tokens", "shown_layers", "prompts") if name in tables)
    if before is not None and before.stamp == stamp:
        return before._replace(state=state, error=error)
    facts = run.facts
    found = Found(state, error, pooling=_said(facts.get("pooling")), best_layer=_said(facts.get("best_layer")), stamp=stamp)
    if {"tokens", "shown_layers"} <= set(tables):
        found = found._replace(tokens=_token_scores(run, found.best_layer))
    if "prompts" in tables:
        prompt = next(run.table("prompts").iter_rows(named=True), {})
        answer = prompt.get("answer")
        found = found._replace(score=_number(prompt.get("score")), answer=None if answer is None else neutralised(answer, _LONGEST_ANSWER))
    return found


def _token_scores(run: FinishedRun, best_layer: str) -> TokenScores:
    """Both tables have the tokens in one order; while they are rewritten one may be ahead of the other, and the shorter one counts."""
    frame, shown = run.table("tokens"), run.table("shown_layers")
    layers = tuple(name.removeprefix("layer_") for name in frame.columns if name.startswith("layer_"))
    width = max(1, len(layers))
    relative = [_number(value) for value in shown.get_column("relative_score").to_list()]
    each = [tuple(relative[at : at + width]) for at in range(0, len(relative) - width + 1, width)]
    rows = []
    for row, levels in zip(frame.iter_rows(named=True), each, strict=False):
        text = neutralised(str(row.get("token")), LONGEST_TOKEN).replace(" ", "·") or "∅"
        scores = tuple(_number(row.get(f"layer_{layer}")) for layer in layers)
        rows.append(TokenRow(int(row.get("position") or 0), text, row.get("part") == "answer", scores, levels))
    return TokenScores(
        tuple(neutralised(layer, 10) for layer in layers), layers.index(best_layer) if best_layer in layers else None, tuple(rows)
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _said(value: Any) -> str:
    return "" if value is None else neutralised(str(value), 40)
