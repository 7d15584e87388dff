"""A threshold for alarms from scores of benign prompts (split conformal prediction; Vovk et al. 2005; Angelopoulos & Bates 2021).

Let s_(1) <= ... <= s_(n) be the scores of n benign prompts that took no part in the fit, A the false-positive rate allowed, and

    k = ceil((n + 1)(1 - A))

If a further benign prompt is exchangeable with them, its score exceeds s_(k) with probability at most A, whatever the distribution:
its rank among all n + 1 is uniform, and it is above k with probability (n + 1 - k) / (n + 1) <= A. Ties only lower it. This holds on
average over draws of the n prompts; given one draw, the rate is Beta(n + 1 - k, k) distributed if scores have no ties.

k > n means that no finite threshold will do: (n + 1) A >= 1 is needed, 99 prompts for 1 %. An interpolated quantile would answer all
the same, and would be exceeded more often than A. (n + 1)(1 - A) is computed in fractions, so that no rounding decides whether n
is enough.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from modelscope_app.api import BadInput, UsageError

Rate = Fraction | str
"""A false-positive rate: a fraction, or its decimal or "1/n" text, so that 0.01 is one in a hundred exactly."""


def conformal_threshold(benign: torch.Tensor, allowed: Rate) -> torch.Tensor | None:
    """(...): s_(k) of benign scores (..., n); a score ABOVE it is an alarm. None if n is below `benign_needed(allowed)`."""
    if bool(benign.isnan().any()):
        raise BadInput("benign scores hold NaN; no threshold can be set from them")
    rank = threshold_rank(benign.shape[-1], allowed)
    return None if rank is None else benign.double().kthvalue(rank, dim=-1).values


def threshold_rank(count: int, allowed: Rate) -> int | None:
    """k for `count` benign scores, or None if it would be above `count`."""
    rank = math.ceil((count + 1) * (1 - exact_rate(allowed)))
    return rank if rank <= count else None


def benign_needed(allowed: Rate) -> int:
    """The smallest number of benign scores for which there is a threshold: ceil(1 / A) - 1."""
    return math.ceil(1 / exact_rate(allowed)) - 1


def exact_rate(allowed: Rate) -> Fraction:
    """The rate as a fraction. UsageError unless it is between 0 and 1, or if it is a float, which 0.01 is not exactly."""
    if isinstance(allowed, float):
        raise UsageError(f"a false-positive rate is given exactly, as {str(allowed)!r} or a Fraction, not as a float")
    try:
        rate = Fraction(allowed)
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{allowed!r} is no false-positive rate; write it like 0.01 or 1/100") from error
    if not 0 < rate < 1:
        raise UsageError(f"a false-positive rate lies between 0 and 1, which {allowed} does not")
    return rate
