"""Norms and updates of a tensor along a series of checkpoints, W_0, W_1, ...: sums over elements that add up over chunks.

    update            U_t = W_t - W_{t-1}
    update ratio      ||U_t|| / ||W_{t-1}||
    distance          ||W_t - W_0||
    turn              <U_t, U_{t-1}> / (||U_t|| ||U_{t-1}||)
    straightness      ||W_t - W_0|| / sum_{s <= t} ||U_s||     1 on a straight line, about 1 / sqrt(t) for a random walk

Two random directions of n elements have a cosine of about 1 / sqrt(n), which is what a turn has to be held against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from modelscope_weights.rounding import coarser, rounding_square
from modelscope_weights.row_chunks import real_values
from modelscope_weights.square_sums import square_sum


class UpdateSums(NamedTuple):
    """Columns of the sums kept for each tensor and step. What compares with an earlier checkpoint is zero at the first."""

    square_norm: float
    """sum W_t^2"""
    square_update: float
    """sum U_t^2"""
    square_distance: float
    """sum (W_t - W_0)^2"""
    product_of_updates: float
    """sum U_t U_{t-1}"""
    rounding_square: float
    """Expected squared norm of the error of rounding W_{t-1} once."""
    nonfinite: float
    """NaN and infinite elements of W_t."""


def update_sums(current: torch.Tensor, first: torch.Tensor, recent: Sequence[torch.Tensor]) -> UpdateSums:
    """Sums of W_t over a chunk, (n,), in the dtypes of the files: W_t, W_0, and as many of W_{t-2}, W_{t-1} as there are."""
    now = real_values(current)
    nonfinite, square_norm = float((~torch.isfinite(now)).sum()), square_sum(now)
    if not recent:
        return UpdateSums(square_norm, 0.0, math.nan if nonfinite else 0.0, 0.0, 0.0, nonfinite)
    before = real_values(recent[-1])
    update = now - before
    return UpdateSums(
        square_norm=square_norm,
        square_update=square_sum(update),
        square_distance=square_sum(now - real_values(first)),
        product_of_updates=0.0 if len(recent) < 2 else float((update * (before - real_values(recent[-2]))).sum()),
        rounding_square=rounding_square(before, coarser(recent[-1].dtype, current.dtype)),
        nonfinite=nonfinite,
    )
