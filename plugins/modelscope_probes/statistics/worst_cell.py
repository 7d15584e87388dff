"""AUROC against each set of negatives by itself, and the worst of them.

A detector that flags everything about code looks good against a mixture of mostly other prompts. So the positives are compared with
each cell of negatives separately, and the headline is the lowest area (MacDiarmid et al. 2024, footnote 7):

    A_worst = min_c A_c.

The lowest of several estimates is low partly by luck, and an interval of that cell alone would miss it. Intervals of all C cells at
level 1 - (1 - level) / C hold together with probability `level` (Bonferroni), and where they do,

    min_c low_c  <=  min_c A_c  <=  min_c high_c.

Of cells with the same area the one with the fewest negatives is named, which knows its area least; of these the lowest number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from modelscope_probes.statistics.delong import delong
from modelscope_probes.statistics.intervals import auroc_interval


class WorstCell(NamedTuple):
    """Areas by cell of negatives, and the lowest one, for each row of scores."""

    cells: torch.Tensor
    """(cell,) the different cells of the negatives, ascending."""

    negatives: torch.Tensor
    """(cell,) int64: how many negatives are in each."""

    aurocs: torch.Tensor
    """(cell, ...) float64: all positives against the negatives of one cell."""

    standard_errors: torch.Tensor
    """(cell, ...) float64, as in `delong`."""

    worst: torch.Tensor
    """(...) int64: place in `cells` of the lowest area; of equals that of fewest negatives, then the first."""

    auroc: torch.Tensor
    """(...) float64: the lowest area; NaN where one of them is unknown."""

    low: torch.Tensor
    """(...) float64: lower end of its interval; NaN where that of a cell is unknown."""

    high: torch.Tensor
    """(...) float64: upper end."""


def worst_cell(scores: torch.Tensor, positives: torch.Tensor, cells: torch.Tensor, level: float = 0.95) -> WorstCell:
    """The cell of negatives that `scores` (..., n) tell least from the positives.

    `positives` is (n,) bool; `cells` (n,) integers name the cell of each negative, and are not looked at for positives. Prompts are
    taken to be independent. ValueError without a negative.
    """
    if positives.dtype != torch.bool or positives.shape != scores.shape[-1:] or cells.shape != positives.shape:
        raise ValueError(
            f"positives {tuple(positives.shape)} {positives.dtype} and cells {tuple(cells.shape)}: "
            f"expected booleans and integers of shape ({scores.shape[-1]},)"
        )
    if bool(positives.all()):
        raise ValueError("every prompt is a positive: there is no cell of negatives to compare with")
    scores, positives, cells = scores.detach().cpu(), positives.cpu(), cells.cpu()
    names, sizes = torch.unique(cells[~positives], return_counts=True)
    estimates = [delong(scores[..., chosen], positives[chosen]) for chosen in (positives | (cells == name) for name in names)]
    aurocs = torch.stack([estimate.auroc for estimate in estimates])
    errors = torch.stack([estimate.standard_error for estimate in estimates])

    each_level = 1 - (1 - level) / len(names)
    ends = torch.empty((2, *aurocs.shape), dtype=torch.float64)
    for place in range(len(names)):
        pairs = zip(aurocs[place].flatten().tolist(), errors[place].flatten().tolist(), strict=True)
        intervals = [auroc_interval(area, error, int(positives.sum()), int(sizes[place]), each_level) for area, error in pairs]
        ends[0, place] = torch.tensor([one.low for one in intervals], dtype=torch.float64).reshape(aurocs.shape[1:])
        ends[1, place] = torch.tensor([one.high for one in intervals], dtype=torch.float64).reshape(aurocs.shape[1:])
    lowest = aurocs.amin(0)  # NaN where one of them is
    order = torch.argsort(sizes, stable=True)  # fewest negatives first, then by number
    is_lowest = (aurocs == lowest) | (aurocs.isnan() & lowest.isnan())
    worst = order[is_lowest[order].to(torch.uint8).argmax(0)]  # the first in that order
    return WorstCell(names, sizes, aurocs, errors, worst, lowest, ends[0].amin(0), ends[1].amin(0))
