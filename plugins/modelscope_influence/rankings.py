"""How well a ranking finds the rows that are flagged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.stats import rankdata  # type: ignore[import-untyped]


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None without any."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def auc(scores: torch.Tensor, flags: torch.Tensor) -> float | None:
    """Probability that a flagged row scores above another, ties half; None where a class is missing among finite scores."""
    known = scores.isfinite()
    scores, flags = scores[known], flags[known]
    positive = int(flags.sum())
    negative = len(flags) - positive
    if not positive or not negative:
        return None
    ranks = torch.from_numpy(rankdata(scores.numpy()))
    return (float(ranks[flags].sum()) - positive * (positive + 1) / 2) / (positive * negative)


def precision_at(scores: torch.Tensor, flags: torch.Tensor, count: int) -> float | None:
    """Share of flagged rows among the `count` highest scores, ties at the border counted by their share; None for fewer rows."""
    return _at(scores, flags, count, float(count))


def recall_at(scores: torch.Tensor, flags: torch.Tensor, share: float) -> float | None:
    """Share of the flagged rows that is among the highest `share` of all rows."""
    known = int(scores.isfinite().sum())
    return _at(scores, flags, round(share * known), float(flags[scores.isfinite()].sum()))


def _at(scores: torch.Tensor, flags: torch.Tensor, count: int, of: float) -> float | None:
    known = scores.isfinite()
    scores, flags = scores[known], flags[known].double()
    if len(scores) < count or count < 1 or not of:
        return None
    border = scores.sort(descending=True).values[count - 1]
    above, at = scores > border, scores == border
    return (float(flags[above].sum()) + float(flags[at].mean()) * (count - int(above.sum()))) / of
