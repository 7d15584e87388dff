"""Charts of one line each, in characters: AUROC by layer, scores by cell, and the ROC curve.

They are an overview below the card; the tabs of the run draw the same large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from modelscope_app.api import FinishedRun, MscopeError, neutralised

HEIGHTS = "▁▂▃▄▅▆▇█"
WIDEST = 40
"""Characters of a chart."""
_LONGEST_NAME = 60


class ChartLine(NamedTuple):
    """One chart."""

    name: str
    marks: str
    beside: str
    meaning: str
    exact: str
    """The numbers, for copying."""


def heights(values: Sequence[float | None], top: float = 1.0) -> str:
    """Values from 0 to `top` as heights; a space for exactly 0, `?` for unknown.

    >>> heights([0.0, 0.01, 0.5, 1.0, None])
    ' ▁▅█?'
    """
    return "".join(_height(value, top) for value in values)


def _height(value: float | None, top: float) -> str:
    if value is None or not math.isfinite(value):
        return "?"
    return " " if value == 0 else HEIGHTS[min(7, max(0, int(value / top * 8)))] if top > 0 else " "


def charts(run: FinishedRun) -> Sequence[ChartLine]:
    """All that the run has tables for. Reads them: call it in a thread."""
    return (
        *_layer_lines(_rows(run, "layer_lines")),
        *_cell_lines(_rows(run, "distributions"), _rows(run, "cells")),
        *_roc_line(_rows(run, "roc")),
    )


def _rows(run: FinishedRun, table: str) -> list[dict[str, Any]]:
    try:
        return list(run.table(table).iter_rows(named=True))
    except MscopeError:
        return []


def _layer_lines(rows: Sequence[dict[str, Any]]) -> Sequence[ChartLine]:
    """One per line of the plot: the probe, its worst cell, the twin, random directions."""
    found = []
    for name in sorted({str(row.get("line")) for row in rows}, key=lambda name: (name != "probe", name)):
        points = [(row.get("layer"), row.get("auroc")) for row in rows if str(row.get("line")) == name]
        step = -(-len(points) // WIDEST)
        shown = points[::step]
        wide = max(1, min(4, WIDEST // max(1, len(shown))))
        marks = "".join(heights([value]) * wide for _, value in shown)
        last, every = shown[-1][0], "" if step == 1 else f", 1 of {step}"
        found.append(
            ChartLine(
                f"layers: {neutralised(name, _LONGEST_NAME)}",
                marks,
                f"AUROC 0 to 1, layer {shown[0][0]} to {last}{every}",
                "AUROC of every layer, as heights from 0 to 1; half a character high is chance. Tab AUROC by layer draws it large.",
                ", ".join(f"{layer}: {value}" for layer, value in points),
            )
        )
    return found


def _cell_lines(rows: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]]) -> Sequence[ChartLine]:
    """One per cell, those of label 1 first; all have the same bins."""
    found = []
    positive = {str(row.get("cell")) for row in cells if row.get("label") is True}
    for name in sorted({str(row.get("cell")) for row in rows}, key=lambda name: (name not in positive, name)):
        bins = [row for row in rows if str(row.get("cell")) == name]
        counts = [float(row.get("count") or 0) for row in bins]
        low, high = bins[0].get("left"), bins[-1].get("right")
        found.append(
            ChartLine(
                f"scores: {neutralised(name, _LONGEST_NAME)}",
                heights(counts[:WIDEST], max(counts, default=0.0)),
                f"label {int(name in positive)}, {low:.4g} to {high:.4g}" if low is not None and high is not None else "",
                "How the scores of a cell of prompts are spread, in the same bins for every cell, each cell to its own height. Where the "
                "positives lie apart from every other cell the probe separates. Tab Scores by cell draws it large.",
                ", ".join(f"{row.get('left')}: {row.get('count')}" for row in bins),
            )
        )
    return found


def _roc_line(rows: Sequence[dict[str, Any]]) -> Sequence[ChartLine]:
    points = [(row.get("false_positive_rate"), row.get("true_positive_rate")) for row in rows]
    known = [(float(across), float(up)) for across, up in points if across is not None and up is not None]
    if not known:
        return ()
    reached = [max((up for across, up in known if across <= at / (WIDEST - 1)), default=0.0) for at in range(WIDEST)]
    return (
        ChartLine(
            "ROC",
            heights(reached),
            "true positive rate, by false positive rate 0 to 1",
            "The share of label 1 that is flagged (height) at each share of label 0 that is (from left to right). Tab ROC draws it large.",
            ", ".join(f"{across:.4g}: {up:.4g}" for across, up in known),
        ),
    )
