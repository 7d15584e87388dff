"""Midranks, and the area under the ROC curve that follows from them.

With positives x_1 ... x_P and negatives y_1 ... y_N, the area is the share of pairs in the right order, ties counting half
(Mann & Whitney 1947; Hanley & McNeil 1982):

    A = U / (P N),    U = sum_ij k(x_i, y_j),    k(x, y) = 1 if x > y, 1/2 if x = y, 0 if x < y

and with midranks R, which give tied values the mean of the places they share,

    U = sum_i R(x_i) - P (P + 1) / 2.

U is a multiple of 1/2 and below 2^53 its float64 is exact, so A is the exact share, rounded once.

The fast way sorts integers instead of ranking floats. Read as an integer with its lower bits flipped where the sign bit is set, a
float keeps its order; the lowest bit is replaced by the label. One integer sort then leaves the labels in the order of their scores,
and R(x_i) is where the i-th one bit stands. What the replaced bit could hide is a tie, or a difference of one bit, between a positive
and a negative: then two neighbours differ in nothing but the label, and that row is ranked the slow way.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

VALUES_AT_ONCE = 1 << 18
"""Rows are taken in blocks of about this many values, so that the temporaries stay within some megabytes (and in the cache)."""


def midranks(values: torch.Tensor) -> torch.Tensor:
    """(..., n) float64: places 1 ... n in ascending order within each row, tied values sharing the mean of their places.

    `values` is (..., n) of any real dtype. Infinities have places; a row with a NaN is NaN throughout.
    """
    rows = _comparable(values)
    ranked = np.empty(rows.shape, dtype=np.float64)
    for block in _blocks(*rows.shape):
        ranked[block] = _row_midranks(rows[block])
    return torch.from_numpy(ranked).reshape(values.shape)


def auroc(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(...) float64: the share of pairs of a positive and a negative in which the positive has the higher score, ties counting half.

    `scores` is (..., n) of any real dtype, `labels` (n,) bool. NaN, for unknown, where a row has a score that is not finite, and
    everywhere if a class is absent. Memory: the result and some megabytes, whatever the number of rows.
    """
    positive = checked_labels(labels, scores.shape[-1])
    rows = _comparable(scores)
    areas = np.full(len(rows), np.nan)
    if positive.any() and not positive.all():
        for block in _blocks(*rows.shape):
            areas[block] = _row_aurocs(rows[block], positive)
    return torch.from_numpy(areas).reshape(scores.shape[:-1])


def checked_labels(labels: torch.Tensor, count: int) -> np.ndarray:
    """(n,) bool for numpy. ValueError where the labels are not `count` booleans."""
    if labels.dtype != torch.bool or labels.shape != (count,):
        raise ValueError(f"labels are {tuple(labels.shape)} {labels.dtype}: expected ({count},) torch.bool, one for each score of a row")
    return labels.detach().cpu().numpy()


def finite_rows(scores: torch.Tensor) -> torch.Tensor:
    """(...) bool: rows of `scores` (..., n) in which every score is finite."""
    return torch.isfinite(scores).all(-1)


def _comparable(values: torch.Tensor) -> np.ndarray:
    """(rows, n) float32 or float64 for numpy, without loss (integers above 2^53 aside)."""
    values = values.detach().cpu()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.to(torch.float32 if values.dtype in (torch.bfloat16, torch.float16) else torch.float64)
    return values.reshape(math.prod(values.shape[:-1]), values.shape[-1]).numpy()


def _blocks(rows: int, columns: int) -> list[slice]:
    step = max(1, VALUES_AT_ONCE // max(1, columns))
    return [slice(start, start + step) for start in range(0, rows, step)]


def _row_midranks(rows: np.ndarray) -> np.ndarray:
    order = np.argsort(rows, axis=-1)
    ascending = np.take_along_axis(rows, order, -1)
    first = np.broadcast_to(np.arange(rows.shape[-1]), rows.shape).copy()
    last = first.copy()
    same = ascending[:, 1:] == ascending[:, :-1]
    first[:, 1:][same] = 0
    last[:, :-1][same] = rows.shape[-1]
    np.maximum.accumulate(first, axis=-1, out=first)
    last = np.minimum.accumulate(last[:, ::-1], axis=-1)[:, ::-1]
    ranked = np.empty(rows.shape, dtype=np.float64)
    np.put_along_axis(ranked, order, (first + last) / 2 + 1, -1)
    ranked[np.isnan(ascending[:, -1:]).any(-1)] = np.nan  # NaNs are sorted to the end
    return ranked


def _row_aurocs(rows: np.ndarray, positive: np.ndarray) -> np.ndarray:
    keys = _ordered_integers(rows)
    keys &= -2
    keys |= positive
    keys.sort(axis=-1)
    lowest, infinity = _ordered_integers(np.array([np.finfo(rows.dtype).min, np.inf], dtype=rows.dtype))
    hidden = ((keys[:, 1:] ^ keys[:, :-1]) == 1).any(-1)
    unknown = (keys[:, 0] < lowest) | (keys[:, -1] >= infinity)

    count, positives = len(positive), int(positive.sum())
    rank_sums = (keys & 1).astype(np.float64) @ np.arange(1.0, count + 1)
    again = hidden & ~unknown
    if again.any():
        rank_sums[again] = _row_midranks(rows[again])[:, positive].sum(-1)
    areas = (rank_sums - positives * (positives + 1) / 2) / (positives * (count - positives))
    areas[unknown] = np.nan
    return areas


def _ordered_integers(values: np.ndarray) -> np.ndarray:
    """Integers of the same width in the same order; -0.0 and 0.0 become one."""
    bits: npt.NDArray[Any] = (values + 0.0).view(np.int32 if values.dtype == np.float32 else np.int64)
    bits ^= (bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max
    return bits
