"""What the spectrum of a difference would be if it were noise: an m x n matrix of independent entries of one size.

Let p <= q be its sides and gamma = p / q. As both grow, p sigma_i^2 / ||D||_F^2 follows the law of Marchenko & Pastur (1967):

    density(x) = sqrt((x_+ - x)(x - x_-)) / (2 pi gamma x),    x_+- = (1 +- sqrt(gamma))^2,    mean 1.

With x = 1 + gamma + 2 sqrt(gamma) cos(t), the part above x(t) has

    mass(t)   = (2 / pi) integral_0^t sin^2(u) / x(u) du        (share of the singular values)
    energy(t) = (t - sin(t) cos(t)) / pi                        (share of ||D||_F^2 they hold)

so the largest singular value is sqrt(m) + sqrt(n) times the entries' size, the stable rank m n / (sqrt(m) + sqrt(n))^2, and
the energy of the top k is energy(t) where mass(t) = k / p. For sides of a hundred or more these are right within some percent;
at 16 the stable rank of a square is a sixth too low, and below `SMALLEST_SIDE` nothing is said. One row or column has one singular
value, the norm, whatever its entries.
"""

from __future__ import annotations

import math
from functools import cache

import torch

SMALLEST_SIDE = 16
_STEPS = 20_000


def noise_stable_rank(rows: int, columns: int) -> float:
    """||D||_F^2 / sigma_1^2 of a matrix of noise; exactly 1 for one row or column, NaN for other sides below `SMALLEST_SIDE`."""
    side = min(rows, columns)
    if side < SMALLEST_SIDE:
        return 1.0 if side == 1 else math.nan
    return rows * columns / (math.sqrt(rows) + math.sqrt(columns)) ** 2


@cache
def noise_top_energy(rows: int, columns: int, count: int) -> float:
    """Share of ||D||_F^2 in the `count` largest squared singular values of a matrix of noise."""
    side = min(rows, columns)
    if count >= side:
        return 1.0
    angles, mass = _mass(side / max(rows, columns))
    angle = _angle_of_mass(angles, mass, count / side)
    return (angle - math.sin(angle) * math.cos(angle)) / math.pi


@cache
def noise_singular_values(rows: int, columns: int, count: int) -> torch.Tensor:
    """(min(count, rows, columns),) float64, descending: singular values of a matrix of noise with Frobenius norm 1.

    The i-th is taken where the mass above it is (i - 1/2) / p; the last few of a square of fewer than 20 rows are a quarter too
    high. NaN for sides of 2 to `SMALLEST_SIDE` - 1. The tensor is shared between calls: do not write to it.
    """
    side = min(rows, columns)
    if side < SMALLEST_SIDE:
        return torch.full((min(count, side),), 1.0 if side == 1 else math.nan, dtype=torch.float64)
    gamma = side / max(rows, columns)
    angles, mass = _mass(gamma)
    at = torch.tensor([_angle_of_mass(angles, mass, (i + 0.5) / side) for i in range(min(count, side))], dtype=torch.float64)
    return ((1 + gamma + 2 * math.sqrt(gamma) * torch.cos(at)) / side).sqrt()


def _mass(gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles 0 ... pi and the mass above each, by the midpoint rule."""
    angles = torch.linspace(0, math.pi, _STEPS + 1, dtype=torch.float64)
    middle = (angles[1:] + angles[:-1]) / 2
    density = torch.sin(middle) ** 2 / (1 + gamma + 2 * math.sqrt(gamma) * torch.cos(middle))
    mass = torch.cat((torch.zeros(1, dtype=torch.float64), torch.cumsum(density, 0) * (2 / _STEPS)))
    return angles, mass


def _angle_of_mass(angles: torch.Tensor, mass: torch.Tensor, share: float) -> float:
    return float(angles[min(int(torch.searchsorted(mass, share)), _STEPS)])
