"""How much rounding to a stored dtype moves a tensor: the floor below which a change says nothing.

Neighbouring numbers of a dtype with machine epsilon eps and smallest normal number tiny lie, at x,

    ulp(x) = eps * max(2^floor(log2 |x|), tiny)

apart. Rounding a number that lies anywhere between two neighbours moves it by at most half of that, evenly spread, so by
ulp^2 / 12 in mean square. One rounding of a whole tensor is therefore expected to move it by sqrt(sum ulp(x)^2 / 12).
"""

from __future__ import annotations

from functools import cache

import torch

from modelscope_weights.bit_patterns import has_few_patterns, pattern_values
from modelscope_weights.square_sums import square_sum

_EXPONENT_BITS = 0x7FF << 52


def rounding_square(values: torch.Tensor, dtype: torch.dtype) -> float:
    """Expected squared Euclidean norm of the error of rounding `values`, any shape, float64, to `dtype`; 0 for integers."""
    if not dtype.is_floating_point:
        return 0.0
    epsilon, tiny = spacing_of(dtype)
    powers = (values.contiguous().view(torch.int64) & _EXPONENT_BITS).view(torch.float64)  # 2^floor(log2 |x|)
    return square_sum(powers.clamp_(min=tiny).mul_(epsilon)) / 12


@cache
def spacing_of(dtype: torch.dtype) -> tuple[float, float]:
    """Machine epsilon and smallest normal number of a floating-point dtype.

    Narrow ones are asked for their values: epsilon is what follows 1, less 1, and the smallest positive number is epsilon times
    the smallest normal one. What torch states about some of the 8-bit dtypes is not so.
    """
    if not has_few_patterns(dtype):
        information = torch.finfo(dtype)
        return information.eps, information.tiny
    values = pattern_values(dtype)
    positive = values[torch.isfinite(values) & (values > 0)]
    epsilon = float(positive[positive > 1].amin()) - 1
    return epsilon, float(positive.amin()) / epsilon


def coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The floating-point dtype of larger epsilon; a floating-point dtype before an integer one."""
    if not (a.is_floating_point and b.is_floating_point):
        return a if a.is_floating_point else b
    return a if spacing_of(a)[0] >= spacing_of(b)[0] else b
