"""A histogram out of block characters, with its ends and its highest count as numbers."""

from __future__ import annotations

from collections.abc import Sequence

from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.rendering.wording import number_text
from modelscope_app.tui.checkpoint.statistics import Bin


def histogram_lines(bins: Sequence[Bin], width: int, height: int = 6) -> list[str]:
    """The bars in at most `width` columns, neighbours added up where there are more bins; below them the axis.

    >>> histogram_lines([Bin(0, 1, 1), Bin(1, 2, 2)], 40, 1)
    ['▄▄▄███', '0    2', 'highest bar 2 of 3 values']
    """
    total = sum(each.values for each in bins)
    if not total or width < 8:
        return []
    together = -(-len(bins) // width)
    counts = [sum(each.values for each in bins[at : at + together]) for at in range(0, len(bins), together)]
    wide = max(1, min(3, width // len(counts)))
    highest = max(counts)
    lines = []
    for row in range(height, 0, -1):
        cells = (_cell(count / highest * height - (row - 1)) for count in counts)
        lines.append("".join(cell * wide for cell in cells).rstrip())
    low, high = number_text(bins[0].left), number_text(bins[-1].right)
    axis = low + high.rjust(max(len(high) + 1, len(counts) * wide - len(low)))
    return [*lines, axis, f"highest bar {highest:,} of {total:,} values"]


def _cell(filled: float) -> str:
    """One character, filled from below: 0 to 1. What is not empty is seen."""
    eighths = round(min(1.0, max(0.0, filled)) * 8)
    return BLOCKS.up[max(1, eighths) if filled > 0 else 0]
