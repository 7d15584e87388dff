"""Moments of the finite values of a tensor, merged chunk by chunk.

With n, mean mu and centred sums M_k = sum (x - mu)^k of two parts a and b, and delta = mu_b - mu_a, the whole has

    mu = mu_a + delta n_b / n
    M2 = M2_a + M2_b + delta^2 n_a n_b / n                                            (Chan, Golub & LeVeque 1979)
    M3 = M3_a + M3_b + delta^3 n_a n_b (n_a - n_b) / n^2 + 3 delta (n_a M2_b - n_b M2_a) / n
    M4 = M4_a + M4_b + delta^4 n_a n_b (n_a^2 - n_a n_b + n_b^2) / n^3
         + 6 delta^2 (n_a^2 M2_b + n_b^2 M2_a) / n^2 + 4 delta (n_a M3_b - n_b M3_a) / n      (Pebay 2008)

No sum of squares is ever subtracted from another, and a mean is kept as a rounded number and what the rounding left, so that
delta is known to its own size: a large mean beside a small deviation costs no digits. Inside a chunk the mean is taken first
and the deviations after it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from modelscope_weights.square_sums import SMALLEST_SQUARE, length, ratio


class Moments(NamedTuple):
    """Counts and moments of a set of values. Moments, minimum and maximum are over the finite ones."""

    finite: int = 0
    """Number of finite values."""
    nan: int = 0
    positive_infinite: int = 0
    negative_infinite: int = 0
    zeros: int = 0
    """Values equal to zero, negative zero among them."""
    minimum: float = math.inf
    """Infinity where there is no finite value."""
    maximum: float = -math.inf
    mean: float = 0.0
    mean_rest: float = 0.0
    """What is to be added to `mean` for more digits than one number has."""
    m2: float = 0.0
    """Sum of squared deviations from the mean."""
    m3: float = 0.0
    m4: float = 0.0


def moments(values: torch.Tensor, counts: torch.Tensor | None = None) -> Moments:
    """Moments of `values`, (n,) float64. With `counts`, (n,) int64, value i stands for `counts[i]` values."""

    def total(terms: torch.Tensor, times: torch.Tensor | None) -> float:
        return float((terms.sum() if times is None else (terms * times).sum()).item())

    def size(chosen: torch.Tensor, times: torch.Tensor | None) -> int:
        return int((chosen.sum() if times is None else times[chosen].sum()).item())

    is_finite = torch.isfinite(values)
    special = Moments()
    if not bool(is_finite.all()):
        special = Moments(
            nan=size(torch.isnan(values), counts),
            positive_infinite=size(values == math.inf, counts),
            negative_infinite=size(values == -math.inf, counts),
        )
        values, counts = values[is_finite], None if counts is None else counts[is_finite]
    count = values.numel() if counts is None else int(counts.sum().item())
    if count == 0:
        return special
    minimum, maximum = float(values.amin().item()), float(values.amax().item())
    special = special._replace(finite=count, zeros=size(values == 0, counts), minimum=minimum, maximum=maximum)
    if minimum == maximum:
        return special._replace(mean=minimum)
    mean = total(values, counts) / count
    deviations = values - mean
    # The rounding error of `mean` shows as deviations that do not sum to zero; both are corrected by it.
    rest = total(deviations, counts) / count
    deviations = deviations - rest
    mean, rest = _rounded(mean, rest)
    squares = deviations * deviations
    return special._replace(
        mean=mean,
        mean_rest=rest,
        m2=total(squares, counts),
        m3=total(squares * deviations, counts),
        m4=total(squares * squares, counts),
    )


def merged(a: Moments, b: Moments) -> Moments:
    """Moments of both sets of values together."""
    together = Moments(
        finite=a.finite + b.finite,
        nan=a.nan + b.nan,
        positive_infinite=a.positive_infinite + b.positive_infinite,
        negative_infinite=a.negative_infinite + b.negative_infinite,
        zeros=a.zeros + b.zeros,
        minimum=min(a.minimum, b.minimum),
        maximum=max(a.maximum, b.maximum),
    )
    if a.finite == 0 or b.finite == 0:
        filled = a if b.finite == 0 else b
        return together._replace(mean=filled.mean, mean_rest=filled.mean_rest, m2=filled.m2, m3=filled.m3, m4=filled.m4)
    n = a.finite + b.finite
    # Shares n_a / n and n_b / n instead of counts: the same formulas without high powers of n.
    p, q = a.finite / n, b.finite / n
    delta = (b.mean - a.mean) + (b.mean_rest - a.mean_rest)
    mean, rest = _rounded(a.mean, a.mean_rest + delta * q)
    square = delta * delta
    return together._replace(
        mean=mean,
        mean_rest=rest,
        m2=a.m2 + b.m2 + n * p * q * square,
        m3=a.m3 + b.m3 + n * p * q * (p - q) * square * delta + 3 * delta * (p * b.m2 - q * a.m2),
        m4=a.m4
        + b.m4
        + n * p * q * (p * p - p * q + q * q) * square * square
        + 6 * square * (p * p * b.m2 + q * q * a.m2)
        + 4 * delta * (p * b.m3 - q * a.m3),
    )


def standard_deviation(of: Moments) -> float:
    """Population standard deviation sqrt(M2 / n); NaN without finite values, and where float64 cannot hold M2 (see `square_sums`)."""
    if not of.finite or (of.m2 == 0 and of.minimum < of.maximum):
        return math.nan
    return length(of.m2) / math.sqrt(of.finite)


def euclidean_norm(of: Moments) -> float:
    """sqrt(sum x^2) = sqrt(M2 + n mu^2), a sum of two positive parts.

    0 without any values; NaN where there are some and none is finite, and where float64 cannot hold the sum.
    """
    if not of.finite:
        return 0.0 if of.nan + of.positive_infinite + of.negative_infinite == 0 else math.nan
    square = of.m2 + of.finite * of.mean * of.mean
    return math.nan if square == 0 and of.zeros < of.finite else length(square)


def kurtosis(of: Moments) -> float:
    """n M4 / M2^2: 3 for a Gaussian, 1.8 for a uniform distribution; NaN where all values are equal or M4 out of range."""
    spread = of.m2 / of.finite if of.finite else 0.0
    square = spread * spread
    return ratio(of.m4 / of.finite, square) if square >= SMALLEST_SQUARE else math.nan


def _rounded(large: float, small: float) -> tuple[float, float]:
    """The sum of two numbers, |large| >= |small|, as a rounded number and the rest (Dekker 1971)."""
    total = large + small
    return total, small - (total - large)
