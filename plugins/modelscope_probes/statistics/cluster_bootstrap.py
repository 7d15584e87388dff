"""Interval of an AUROC where prompts come in groups: paraphrases of a question, twins, prompts of a template.

Related prompts are less evidence than as many unrelated ones. Groups are taken to be the independent units: a resample draws as many
groups as there are, with replacement, and takes every prompt of a drawn group as often as its group was drawn (the cluster bootstrap;
Davison & Hinkley 1997, section 3.8). The probe stays fixed; what varies is the prompts it is judged on.

With c_g the times that group g was drawn and w_i = c_g(i), the area of a resample is

    A* = sum_ij w_i w_j k(x_i, y_j) / (sum_i w_i  sum_j w_j),        x_i positives, y_j negatives, k as in `ranks`.

The order of the scores is the same in every resample. So a row of scores is sorted once; with C(t) the weight of the lowest t
negatives, and a_i, b_i the negatives below x_i and not above it,

    sum_j w_j k(x_i, y_j) = (C(a_i) + C(b_i)) / 2,

which is one cumulative sum over the sorted negatives for a block of resamples at a time. All numbers are multiples of 1/2 and exact.

A resample without a positive or without a negative has no area and is drawn again, which conditions on both being there. Where all
prompts of one class are in one group, every area would hold that very group and the interval say nothing of another one: refused.

A percentile interval has no width at an area of exactly 0 or 1. There `cluster_interval` gives the one-sided bound of `intervals`,
counted in pairs of groups: each group in one pair at most, one giving the positive and the other the negative.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from modelscope_probes.statistics.intervals import Interval, one_sided_bound, unknown_interval
from modelscope_probes.statistics.ranks import checked_labels, finite_rows

_WEIGHTS_AT_ONCE = 1 << 18
_LEAST_AT_ONCE = 8


class Resamples(NamedTuple):
    """AUROCs of resampled groups. Row k of every layer, and of everything stacked with it, is of the same resample."""

    aurocs: torch.Tensor
    """(draws, ...) float64; NaN for a row with a score that is not finite, and throughout where `refusal` says why."""

    redrawn: int
    """How many resamples held one class only and were drawn again."""

    groups: int
    """Different groups."""

    independent_pairs: int
    """Disjoint pairs of groups of which one has a positive and the other a negative: the size of the sample at an AUROC of 0 or 1."""

    refusal: str | None
    """Why nothing was drawn, as a sentence."""


def bootstrap_aurocs(
    scores: torch.Tensor,
    labels: torch.Tensor,
    groups: torch.Tensor | None = None,
    draws: int = 1000,
    generator: torch.Generator | None = None,
) -> Resamples:
    """AUROC of every row of `scores` (..., n) in each of `draws` resamples of the groups.

    `labels` is (n,) bool, `groups` (n,) integers, None for prompts that stand alone. To compare two sets of scores of the same prompts
    draw draw by draw, stack them: `torch.stack((first, second))`. The resamples depend on the groups, the labels, `draws` and the
    generator's state, not on the scores. Memory: the result, some megabytes,
    and 40 bytes for each score.
    """
    positive = checked_labels(labels, scores.shape[-1])
    members = _group_of_each(groups, len(positive))
    sizes = np.stack([np.bincount(members[chosen], minlength=members.max(initial=-1) + 1) for chosen in (positive, ~positive)])
    with_class = (sizes > 0).sum(-1)
    count = sizes.shape[-1]
    pairs = int(min(*with_class, count // 2))
    refusal = _refusal(*map(int, with_class), of_prompts=groups is None)
    areas = np.full((draws, *scores.shape[:-1]), np.nan)
    if refusal is not None:
        return Resamples(torch.from_numpy(areas), 0, count, pairs, refusal)

    rows = scores.detach().cpu().to(torch.float64).reshape(math.prod(scores.shape[:-1]), len(positive))
    known = np.flatnonzero(finite_rows(rows).numpy())
    orders = [_comparison_order(rows[row].numpy(), positive) for row in known]
    flat = areas.reshape(draws, len(rows))  # a view: `areas` is contiguous
    redrawn = 0
    for block in _blocks(draws, len(positive)):
        times, again = _drawn_groups(len(range(draws)[block]), sizes, generator)  # (draws of the block, groups)
        redrawn += again
        weights = np.ascontiguousarray(times.T, dtype=np.float64)[members]  # (n, draws of the block)
        pairs_drawn = (times @ sizes[0]) * (times @ sizes[1])
        for row, order in zip(known, orders, strict=True):
            flat[block, row] = _pairs_won(weights, order) / pairs_drawn
    return Resamples(torch.from_numpy(areas), redrawn, count, pairs, None)


def percentile_interval(values: torch.Tensor, level: float = 0.95) -> tuple[torch.Tensor, torch.Tensor]:
    """(...) low and (...) high: the middle `level` of `values` (draws, ...), interpolated between draws; NaN where a value is NaN."""
    tail = (1 - level) / 2
    low, high = np.quantile(values.numpy(), [tail, 1 - tail], axis=0)
    return torch.as_tensor(low), torch.as_tensor(high)


def cluster_interval(auroc: float, aurocs: torch.Tensor, independent_pairs: int, level: float = 0.95) -> Interval:
    """Interval of one AUROC from its resamples `aurocs` (draws,): the percentile interval, or the bound at exactly 0 or 1.

    `unknown` where the resamples are NaN, or all alike at an AUROC in between, as for constant scores.
    """
    if auroc in (0.0, 1.0) and independent_pairs > 0:
        return one_sided_bound(auroc, independent_pairs, level)
    low, high = (float(end) for end in percentile_interval(aurocs, level))
    return Interval(low, high, level, "bootstrap") if low < high else unknown_interval(level)


class _Order(NamedTuple):
    positives: np.ndarray  # (P,) prompts, by ascending score
    negatives: np.ndarray  # (N,) prompts, by ascending score
    below: np.ndarray  # (P,) how many negatives are below each positive
    not_above: np.ndarray | None  # (P,) how many are not above it; None if no positive is tied with a negative


def _group_of_each(groups: torch.Tensor | None, count: int) -> np.ndarray:
    """(n,) places 0, 1, ... among the different groups."""
    if groups is None:
        return np.arange(count)
    if groups.shape != (count,) or groups.is_floating_point() or groups.is_complex():
        raise ValueError(f"groups are {tuple(groups.shape)} {groups.dtype}: expected ({count},) integers, one for each score of a row")
    return np.unique(groups.cpu().numpy(), return_inverse=True)[1]


def _refusal(with_positive: int, with_negative: int, *, of_prompts: bool) -> str | None:
    unit = "prompt" if of_prompts else "group"
    for holders, kind in ((with_positive, "positives"), (with_negative, "negatives")):
        if holders < 2:
            where = f"there are no {kind}" if holders == 0 else f"all {kind} are in one {unit}"
            return f"{where}: resampling needs two {unit}s with {kind} at least"
    return None


def _blocks(draws: int, prompts: int) -> list[slice]:
    step = max(_LEAST_AT_ONCE, _WEIGHTS_AT_ONCE // prompts)
    return [slice(start, min(start + step, draws)) for start in range(0, draws, step)]


def _drawn_groups(draws: int, sizes: np.ndarray, generator: torch.Generator | None) -> tuple[np.ndarray, int]:
    """(draws, groups) times each group was drawn, both classes in each draw; and how many draws were made again.

    A draw misses a class at most every other time (two groups, one of each class), so this ends.
    """
    times, redrawn = _times(draws, sizes.shape[-1], generator), 0
    while (empty := np.flatnonzero(((times @ sizes.T) == 0).any(-1))).size:
        redrawn += empty.size
        times[empty] = _times(empty.size, sizes.shape[-1], generator)
    return times, redrawn


def _times(draws: int, groups: int, generator: torch.Generator | None) -> np.ndarray:
    drawn = torch.randint(groups, (draws, groups), generator=generator).numpy()
    drawn += np.arange(draws)[:, None] * groups
    return np.bincount(drawn.ravel(), minlength=draws * groups).reshape(draws, groups)


def _comparison_order(scores: np.ndarray, positive: np.ndarray) -> _Order:
    order = np.argsort(scores)
    positives, negatives = order[positive[order]], order[~positive[order]]
    below, not_above = (np.searchsorted(scores[negatives], scores[positives], side) for side in ("left", "right"))
    return _Order(positives, negatives, below, None if np.array_equal(below, not_above) else not_above)


def _pairs_won(weights: np.ndarray, order: _Order) -> np.ndarray:
    """(draws,): sum_ij w_i w_j k(x_i, y_j) for each column of `weights` (n, draws)."""
    cumulated = np.zeros((len(order.negatives) + 1, weights.shape[-1]))
    np.cumsum(weights[order.negatives], axis=0, out=cumulated[1:])
    lower = cumulated[order.below]  # (P, draws)
    if order.not_above is not None:
        lower += cumulated[order.not_above]
        lower /= 2
    won: np.ndarray = np.einsum("ib,ib->b", weights[order.positives], lower)
    return won
