"""Standard error of an AUROC, and of the difference of two, without resampling (DeLong, DeLong & Clarke-Pearson 1988).

How much one positive x_i, or one negative y_j, is worth by itself are its structural components, with the kernel k of `ranks`:

    V10_i = (1/N) sum_j k(x_i, y_j) = (R(x_i) - R^X(x_i)) / N
    V01_j = (1/P) sum_i k(x_i, y_j) = 1 - (R(y_j) - R^Y(y_j)) / P

where R are midranks among all scores and R^X, R^Y within the class (Sun & Xu 2014: O(n log n) instead of P N). Their mean is the
area A, and with sample variances (divisor one less than the count)

    var(A) = var(V10) / P + var(V01) / N.

Two sets of scores on the same prompts have correlated areas; the variance of the difference is that of the components' differences:

    var(A - B) = var(V10^A - V10^B) / P + var(V01^A - V01^B) / N.

Variances are taken of N V10 and P V01, which are multiples of 1/2 and exact: a standard error is 0 exactly where all components of a
class agree, as at A = 1. There the data cannot say how far A may be from 1 (see `intervals`), and 0 must not be read as certainty.
Prompts are taken to be independent; for groups of related prompts see `cluster_bootstrap`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from modelscope_probes.statistics.ranks import checked_labels, finite_rows, midranks


class Components(NamedTuple):
    """Structural components of each row of scores, as counts of comparisons won."""

    won: torch.Tensor
    """(..., P) float64: N V10, how many negatives each positive is above, ties half."""

    lost: torch.Tensor
    """(..., N) float64: P (1 - V01), how many positives each negative is above, ties half."""

    @property
    def auroc(self) -> torch.Tensor:
        """(...) float64, equal to `ranks.auroc` to the last bit."""
        return self.won.sum(-1) / (self.won.shape[-1] * self.lost.shape[-1] or torch.nan)

    @property
    def variance(self) -> torch.Tensor:
        """(...) float64: var(A); NaN with fewer than two prompts in a class."""
        positives, negatives = self.won.shape[-1], self.lost.shape[-1]
        if min(positives, negatives) < 2:
            return torch.full(self.won.shape[:-1], torch.nan, dtype=torch.float64)
        return self.won.var(-1) / (positives * negatives**2) + self.lost.var(-1) / (negatives * positives**2)


class AurocEstimate(NamedTuple):
    """An AUROC with its standard error, for each row of scores."""

    auroc: torch.Tensor
    """(...) float64."""

    standard_error: torch.Tensor
    """(...) float64. 0 says that the data hold no disagreement, not that the area is certain. NaN below two prompts in a class."""


class AurocDifference(NamedTuple):
    """AUROC of the first scores minus that of the second, for each row."""

    difference: torch.Tensor
    """(...) float64."""

    standard_error: torch.Tensor
    """(...) float64."""

    z: torch.Tensor
    """(...) float64: difference over standard error; NaN where that is 0."""

    p: torch.Tensor
    """(...) float64: two-sided, from the normal distribution; NaN where z is."""


def components(scores: torch.Tensor, labels: torch.Tensor) -> Components:
    """Structural components of `scores` (..., n) under `labels` (n,) bool; NaN in rows with a score that is not finite.

    Memory: about four float64 of the shape of `scores`.
    """
    checked_labels(labels, scores.shape[-1])
    overall = midranks(scores)
    overall[~finite_rows(scores).cpu()] = torch.nan
    labels = labels.cpu()
    return Components(
        won=overall[..., labels] - midranks(scores[..., labels]),
        lost=overall[..., ~labels] - midranks(scores[..., ~labels]),
    )


def delong(scores: torch.Tensor, labels: torch.Tensor) -> AurocEstimate:
    """AUROC and standard error of each row of `scores` (..., n); `labels` is (n,) bool. NaN as in `ranks.auroc`."""
    parts = components(scores, labels)
    return AurocEstimate(parts.auroc, parts.variance.sqrt())


def paired_difference(first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor) -> AurocDifference:
    """Difference of two AUROCs on the same prompts: `first` and `second` (..., n), `labels` (n,) bool."""
    if first.shape != second.shape:
        raise ValueError(f"scores of shapes {tuple(first.shape)} and {tuple(second.shape)} are not of the same prompts and layers")
    one, other = components(first, labels), components(second, labels)
    difference, standard_error = one.auroc - other.auroc, Components(one.won - other.won, one.lost - other.lost).variance.sqrt()
    z = torch.where(standard_error > 0, difference / standard_error, torch.nan)
    return AurocDifference(difference, standard_error, z, torch.special.erfc(z.abs() / math.sqrt(2)))
