"""How far a tensor moved: sums over its elements, a before and b after, that add up over chunks.

    relative change   ||b - a|| / ||a||
    cosine            <a, b> / (||a|| ||b||)
    changed share     elements with b != a, over all elements
    rounding noise    sqrt(sum ulp(a)^2 / 12) / ||a||      (see `rounding`)

with Euclidean norms over all elements. One NaN or infinity on either side makes all of them unknown, and so does a norm that
float64 cannot say (see `square_sums`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from modelscope_weights.rounding import rounding_square
from modelscope_weights.row_chunks import real_values
from modelscope_weights.square_sums import length, ratio, square_sum

_LOW_BITS = 0xFFFFFFFF


class DifferenceSums(NamedTuple):
    """Sums over elements."""

    square_before: float = 0.0
    """sum a^2"""
    square_after: float = 0.0
    """sum b^2"""
    square_change: float = 0.0
    """sum (b - a)^2"""
    product: float = 0.0
    """sum a b"""
    largest_change: float = 0.0
    """max |b - a|"""
    changed: float = 0.0
    """Elements with b != a."""
    rounding_square: float = 0.0
    """Expected squared norm of the error of rounding `a` once."""
    nonfinite_before: float = 0.0
    """NaN and infinite elements of a."""
    nonfinite_after: float = 0.0

    @property
    def is_known(self) -> bool:
        """Whether all elements of both are finite."""
        return self.nonfinite_before == 0 and self.nonfinite_after == 0


def change_between(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """after - before in float64, of two tensors of one shape as they are stored.

    64-bit integers are subtracted in halves, so that two of them are never taken for equal because float64 rounds them alike.
    """
    if before.dtype != after.dtype or before.dtype not in (torch.int64, torch.uint64):
        return real_values(after) - real_values(before)

    def halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bits = values.contiguous().view(torch.int64)
        high = bits >> 32
        return (high & _LOW_BITS if values.dtype == torch.uint64 else high), bits & _LOW_BITS

    (high_before, low_before), (high_after, low_after) = halves(before), halves(after)
    return (high_after - high_before).to(torch.float64) * 2.0**32 + (low_after - low_before).to(torch.float64)


def difference_sums(before: torch.Tensor, after: torch.Tensor, stored: torch.dtype, change: torch.Tensor | None = None) -> DifferenceSums:
    """Sums over the elements of two tensors of one shape, float64, not empty. `stored` is the coarser dtype they were stored in.

    `change` is b - a where more is known of it than its float64 sides say.
    """
    if change is None:
        change = after - before
    return DifferenceSums(
        square_before=square_sum(before),
        square_after=square_sum(after),
        square_change=square_sum(change),
        product=float((before * after).sum()),
        largest_change=float(change.abs().amax()),
        changed=float((change != 0).sum()),
        rounding_square=rounding_square(before, stored),
        nonfinite_before=float((~torch.isfinite(before)).sum()),
        nonfinite_after=float((~torch.isfinite(after)).sum()),
    )


def added(a: DifferenceSums, b: DifferenceSums) -> DifferenceSums:
    """Sums over the elements of both parts."""
    total = DifferenceSums(*(x + y for x, y in zip(a, b, strict=True)))
    return total._replace(largest_change=max(a.largest_change, b.largest_change))


def relative_change(sums: DifferenceSums) -> float:
    """||b - a|| / ||a||; 0 where nothing changed, NaN where something grew out of zeros."""
    return ratio(length(sums.square_change), length(sums.square_before)) if sums.square_change else 0.0


def cosine(sums: DifferenceSums) -> float:
    """<a, b> / (||a|| ||b||), between -1 and 1; NaN where one of them is zero."""
    quotient = ratio(sums.product, length(sums.square_before) * length(sums.square_after))
    return quotient if math.isnan(quotient) else max(-1.0, min(1.0, quotient))


def rounding_noise(sums: DifferenceSums) -> float:
    """Relative change that one rounding to the stored dtype is expected to make; NaN for zeros and for integers."""
    return ratio(length(sums.rounding_square), length(sums.square_before)) if sums.rounding_square else math.nan


def change_over_rounding(sums: DifferenceSums) -> float:
    """||b - a|| over the norm of one rounding; NaN for integers."""
    return ratio(length(sums.square_change), length(sums.rounding_square))
