"""Confidence intervals of a rate and of an AUROC, from summaries alone.

A rate of k in m has the exact interval of Clopper & Pearson (1934): with B the quantile function of the beta distribution and
alpha = 1 - level,

    low = B(alpha / 2; k, m - k + 1),    high = B(1 - alpha / 2; k + 1, m - k).

An AUROC A with standard error s is taken to be normal on the logit scale, which keeps the interval within 0 and 1 (Pepe 2003,
section 5.2):

    logit(A) -+ z s / (A (1 - A)).

With fewer than some fifteen prompts in a class and A near 1 it holds the true value less often than it says.

At A = 1 (or 0) every standard error from the data is 0. Among the prompts there are m = min(P, N) pairs of a positive and a negative
that share no prompt and so are independent, each in the right order with probability A. A sample without a single pair in the wrong
order therefore has at most the probability A^m, and

    A >= (1 - level)^(1 / m)

is a one-sided bound: that of Clopper & Pearson for m successes in m trials of the rarer class.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal, NamedTuple

Method = Literal["logit", "one-sided", "clopper-pearson", "bootstrap", "unknown"]


class Interval(NamedTuple):
    """A confidence interval and where it comes from."""

    low: float
    """Lower end; NaN if unknown."""

    high: float
    """Upper end; NaN if unknown."""

    level: float
    """The share of such intervals that hold the true value, were the study done again and again."""

    method: Method
    """`one-sided` says that one end is the observed 0 or 1 itself and only the other is a bound."""


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Exact interval of the rate behind `successes` in `trials`; [0, 1] without a trial.

    ValueError where `successes` is not within 0 ... `trials` or `level` not between 0 and 1.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: expected 0 to {trials}")
    tail = (1 - _checked(level)) / 2
    low = _beta_quantile(tail, successes, trials - successes + 1) if successes else 0.0
    high = _beta_quantile(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return Interval(low, high, level, "clopper-pearson")


def auroc_interval(auroc: float, standard_error: float, positives: int, negatives: int, level: float = 0.95) -> Interval:
    """Interval of an AUROC of `positives` and `negatives` independent prompts (or groups of prompts) with that standard error.

    `logit` where the standard error says something, `one-sided` at an AUROC of exactly 0 or 1, `unknown` (NaN) for a NaN and where
    a standard error of 0 comes with an AUROC in between, as for constant scores: those do not say how far another sample would be.
    """
    alpha, fewer = 1 - _checked(level), min(positives, negatives)
    if auroc in (0.0, 1.0) and fewer > 0:
        return one_sided_bound(auroc, fewer, level)
    if not (0 < auroc < 1 and 0 < standard_error < math.inf):
        return unknown_interval(level)
    middle = math.log(auroc) - math.log1p(-auroc)
    reach = NormalDist().inv_cdf(1 - alpha / 2) * standard_error / (auroc * (1 - auroc))
    return Interval(_logistic(middle - reach), _logistic(middle + reach), level, "logit")


def one_sided_bound(auroc: float, independent_pairs: int, level: float = 0.95) -> Interval:
    """How far from an observed AUROC of 0 or 1 the true one may be, from that many pairs without a prompt in common."""
    bound = (1 - _checked(level)) ** (1 / independent_pairs)
    return Interval(bound, 1.0, level, "one-sided") if auroc == 1 else Interval(0.0, 1 - bound, level, "one-sided")


def unknown_interval(level: float) -> Interval:
    """NaN at both ends."""
    return Interval(math.nan, math.nan, level, "unknown")


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level {level}: a confidence level is between 0 and 1, such as 0.95")
    return level


def _logistic(value: float) -> float:
    """1 / (1 + e^-value), without overflow on either side."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def _beta_quantile(probability: float, a: float, b: float) -> float:
    from scipy.special import betaincinv  # type: ignore[import-untyped]  # here because it takes 0.3 s to import

    return float(betaincinv(a, b, probability))
