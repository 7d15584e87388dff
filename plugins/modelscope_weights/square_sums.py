"""Sums of squares in float64, which end at 1.8e308 and lose their digits on the way to zero, and what may be said from them.

The square of a number below 1e-154 has fewer digits than the number, that of one below 1e-162 none. A sum of squares of at least
`SMALLEST_SQUARE` has lost less than 1e-13 of itself that way, whatever was added up; a smaller one, unless it is the zero
of zeros, says nothing. Only float64 files hold numbers that small.
"""

from __future__ import annotations

import math

import torch

SMALLEST_SQUARE = 1e-300
_LOST = 5e-324
"""The smallest positive float64: what a sum of squares is said to be when all of it was lost."""


def square_sum(values: torch.Tensor) -> float:
    """sum x^2 over `values`, float64, any shape. It is 0 where all of them are 0 and nowhere else, and so are sums of such sums."""
    square = float((values * values).sum())
    return _LOST if square == 0 and bool((values != 0).any()) else square


def is_measurable(square: float) -> bool:
    """Whether a sum of squares has kept its digits: false where it overflowed, holds NaN, or nearly vanished."""
    return square == 0 or SMALLEST_SQUARE <= square < math.inf


def length(square: float) -> float:
    """The square root of a sum of squares; NaN where the sum is not measurable."""
    return math.sqrt(square) if is_measurable(square) else math.nan


def ratio(numerator: float, denominator: float) -> float:
    """The quotient, NaN where it is not defined: over zero, over infinity, of or over what is unknown."""
    return numerator / denominator if denominator and math.isfinite(denominator) else math.nan
