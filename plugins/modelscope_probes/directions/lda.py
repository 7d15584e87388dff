"""Linear discriminant analysis of two classes (Fisher 1936): the difference of means, whitened by the scatter within the classes.

With Z (n, d) the rows less their class means, n_0 + n_1 = n rows and D = mu_1 - mu_0,

    S = Z^T Z / n,    w = S^-1 D,    b = -w . (mu_0 + mu_1) / 2 + log(n_1 / n_0)

f(x) is then the log odds of True given x, if both classes are Gaussian with covariance S and as frequent as in training. The
direction is that of the least-squares fit of y on x with an intercept: the total scatter is S + (n_0 n_1 / n^2) D D^T, and
(S + c D D^T)^-1 D is a positive multiple of S^-1 D.

- n > 2d: S as it is. Where it is singular (its smallest Cholesky pivot is rounding noise), the Moore-Penrose inverse stands for S^-1,
  which ignores directions without scatter.

- n <= 2d: S shrunk towards a multiple of the identity (Ledoit & Wolf 2004), with m = tr S / d,

      S* = (1 - rho) S + rho m I,    rho = min(beta, delta) / delta,
      delta = (||S||_F^2 - d m^2) / d,    beta = (sum_i |z_i|^4 / n - ||S||_F^2) / (d n)

  but rho at least 1e-8, so that S* can be inverted. The rows of Z count as centred. Nothing is standardised: one feature of huge
  variance makes m, and so the shrinkage of all others, huge. Where d > n no (d, d) array is made; with G = Z Z^T (n, n) and
  e = (1 - rho) / n (Woodbury),

      S*^-1 D = [ D - e Z^T (rho m I + e G)^-1 Z D ] / (rho m)

Where no row differs from its class mean there is no scatter to whiten by, and S = I is taken: w = D. So it is for the last token of
prompts that all end alike, below the first layer.

Memory: three float64 arrays of the size of x, and one of (..., side, side), where side is d, or n where d > n.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from modelscope_probes.directions.linear_probe import checked_labels, checked_rows, class_means

_EPSILON = torch.finfo(torch.float64).eps
_LEAST_SHRINKAGE = 1e-8


class LdaProbe(NamedTuple):
    """A linear probe and how its scatter was estimated."""

    direction: torch.Tensor
    """(..., d) float64, not normalised."""
    bias: torch.Tensor
    """(...) float64: 0 at the midpoint of the class means, plus the log prior ratio."""
    log_prior_ratio: float
    """log(n_1 / n_0), which the bias contains; without it the midpoint scores 0."""
    is_shrunk: bool
    """Whether the scatter was shrunk, which it is if n <= 2d."""
    shrinkage: torch.Tensor
    """(...) rho, between 0 and 1; 0 if not shrunk, 1 where there is no scatter within the classes at all."""


def lda(x: torch.Tensor, y: torch.Tensor) -> LdaProbe:
    """Fitted on rows x (..., n, d) with labels y (n,) bool. BadInput if a class is missing."""
    x = checked_rows(x)
    n, d = x.shape[-2:]
    y = checked_labels(y, n)
    low, high = class_means(x, y)
    difference = high - low
    within = x - torch.where(y[:, None], high[..., None, :], low[..., None, :])  # (..., n, d)
    # the mean of equal numbers is off by some roundings, whose squares are no scatter
    scatterless = within.square().sum((-2, -1)) <= (64 * _EPSILON) ** 2 * x.square().sum((-2, -1))
    within = within.masked_fill(scatterless[..., None, None], 0.0)
    is_shrunk = n <= 2 * d
    if is_shrunk:
        direction, shrinkage = _shrunk_solution(within, difference)
    else:
        direction, shrinkage = _solution(within, difference), torch.zeros_like(difference[..., 0])
    direction = torch.where(scatterless[..., None], difference, direction)
    shrinkage = torch.where(scatterless, 1.0, shrinkage)
    true = int(y.sum())
    log_prior_ratio = math.log(true / (n - true))
    bias = log_prior_ratio - (direction * (low + high)).sum(-1) / 2
    return LdaProbe(direction, bias, log_prior_ratio, is_shrunk, shrinkage)


def ledoit_wolf(z: torch.Tensor, gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """rho and m, each (...), of centred rows z (..., n, d); `gram` is z^T z or z z^T."""
    n, d = z.shape[-2:]
    sizes = z.square().sum(-1)  # (..., n)
    m = sizes.sum(-1) / (n * d)
    square = gram.square().sum((-2, -1)) / n**2
    delta = (square - d * m.square()) / d
    beta = ((sizes.square().sum(-1) / n - square) / (d * n)).clamp(min=0)
    # delta = 0: S is m I already, whatever the shrinkage
    return torch.where(delta > 0, torch.minimum(beta, delta) / delta, 1.0), m


def _shrunk_solution(within: torch.Tensor, difference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S*^-1 D (..., d) and rho (...)."""
    n, d = within.shape[-2:]
    gram = within @ within.mT if d > n else within.mT @ within
    rho, m = ledoit_wolf(within, gram)
    rho = rho.clamp(min=_LEAST_SHRINKAGE)
    ridge, scale = torch.where(m > 0, rho * m, 1.0), (1 - rho) / n
    matrix = scale[..., None, None] * gram
    matrix.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
    column = difference[..., None]  # (..., d, 1)
    factor = torch.linalg.cholesky(matrix)
    if d <= n:
        return torch.cholesky_solve(column, factor)[..., 0], rho
    inner = torch.cholesky_solve(within @ column, factor)
    return (difference - scale[..., None] * (within.mT @ inner)[..., 0]) / ridge[..., None], rho


def _solution(within: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """S^-1 D, (..., d), by Cholesky; by the Moore-Penrose inverse for those where that is singular."""
    n, d = within.shape[-2:]
    scatter = within.mT @ within / n
    factor, failed = torch.linalg.cholesky_ex(scatter)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    is_singular = (failed != 0) | ~(pivots > d * _EPSILON * scatter.diagonal(dim1=-2, dim2=-1).amax(-1))
    column = difference[..., None]
    direction = torch.cholesky_solve(column, torch.where(is_singular[..., None, None], torch.eye(d).to(factor), factor))
    if bool(is_singular.any()):
        direction[is_singular] = torch.linalg.pinv(scatter[is_singular], hermitian=True) @ column[is_singular]
    return direction[..., 0]
