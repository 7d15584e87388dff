"""How many prompts a narrower interval would need.

Standard errors of means, rates and AUROCs fall with the square root of the number of prompts while the ratio of the classes is kept:

    half-width(n) ~ 1 / sqrt(n),    n_needed = n (half-width / target)^2.

For the interval of an AUROC, which is not symmetric, the half-width is half the distance of its ends. The rule is for intervals well
inside 0 and 1 and takes the AUROC to stay what it is; a one-sided bound narrows faster, about as 1 / n.

An interval of a few prompts may be narrow by luck, so a class also gets what it lacks of the least that anything is said of.
"""

from __future__ import annotations

import math


def more_prompts(half_width: float, target: float, positives: int, negatives: int, lacking: tuple[int, int] = (0, 0)) -> int | None:
    """Prompts to add to `positives` and `negatives`, in their ratio, to bring an interval from `half_width` to `target`.

    Of each class at least what is `lacking` of it. 0 where the interval is that narrow already and nothing lacks; None where a class is
    empty or a half-width is not a positive number, from which nothing follows.
    """
    if not (0 < half_width < math.inf and 0 < target < math.inf and positives > 0 and negatives > 0):
        return None
    growth = (half_width / target) ** 2
    if not math.isfinite(growth):
        return None
    counts = zip((positives, negatives), lacking, strict=True)
    return sum(max(0, missing, math.ceil(count * growth - 1e-9) - count) for count, missing in counts)
