"""Expected distance of two networks from moments alone (LAFTR; Dhawan et al. 2023, arXiv:2302.03519).

Two networks of equal shape, f_0 with weights W_0, b_0 and f_1 with W_1, b_1, are linear layers s = W a + b with an activation
a' = phi(s) between them and none after the last. Let D stand for "f_1 minus f_0". The activation is linearised where f_0 stands:

    s  = W_0 a + b_0                    a'  = phi(s)      = r s
    Ds = DW a + Db + W_1 Da             Da' = phi'(s) Ds  = p Ds

For ReLU r = p = 1[s > 0], the unit's gate. The method keeps of the data only the input's mean and covariance and, per hidden unit,
what its gate does on average, and takes gates to be independent of the input and of each other: r = p ~ Bernoulli(mu), mu the share
of the data at which the unit is active.

Other activations have two slopes that differ, r = phi(s) / s and p = phi'(s); of these mean and covariance are kept, which is this
project's own extension. r is far from independent of s where a unit saturates, so it is averaged with weight s^2: E[r] = E[s phi] / E[s^2]
makes E[r] s the best line through 0, and E[r^2] = E[phi^2] / E[s^2] keeps the unit's size. p is averaged plainly.

With z = (a, Da) stacked, and a unit's two slopes stacked alike in t,

    linear layer      m -> M m + c             C -> M C M'                            M = [W_0 0; DW W_1],  c = (b_0, Db)
    gates             m -> E[t] o m            C -> (E[t] E[t]') o C + Cov[t] o (C + m m')
    distance          E 1/2 |f_1 - f_0|^2 = 1/2 (|m_D|^2 + tr C_DD)                   over the last layer's Ds

where Cov[t] has entries only within a unit. This is exact for the network with random gates: the distance is quadratic in the input
and in each unit's slopes, so that it depends on nothing but their first two moments. It is an approximation of the networks
themselves, whose gates follow the input. All of it is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

ACTIVATIONS = ("relu", "tanh", "gelu")
"""Those whose slopes are known here."""


class Linear(NamedTuple):
    """One linear layer, s = weight a + bias."""

    weight: torch.Tensor
    """(out, in) float64."""
    bias: torch.Tensor
    """(out,) float64."""


class Gates(NamedTuple):
    """Slopes of one layer's units as random numbers: index 0 for r, which a' = r s, and 1 for p, which Da' = p Ds."""

    mean: torch.Tensor
    """(2, unit) float64."""
    covariance: torch.Tensor
    """(2, 2, unit) float64: of a unit's two slopes; different units are independent."""
    is_bernoulli: bool
    """Whether r = p is 0 or 1, as with ReLU; decides how they are drawn, and changes no expectation."""


class InputMoments(NamedTuple):
    """What is kept of the input."""

    mean: torch.Tensor
    """(feature,) float64."""
    covariance: torch.Tensor
    """(feature, feature) float64, over the data as it is: divided by the number of rows."""


def slopes(activation: str, s: torch.Tensor) -> torch.Tensor:
    """(2, ...): r = phi(s) / s and p = phi'(s) at the pre-activations (...); at 0 the limit of r, and 0 for ReLU.

    >>> slopes("relu", torch.tensor([-1.0, 0.0, 2.0])).tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    >>> slopes("tanh", torch.tensor([0.0])).tolist()
    [[1.0], [1.0]]
    """
    if activation == "relu":
        gate = (s > 0).to(s.dtype)
        return torch.stack((gate, gate))
    if activation == "tanh":
        value = s.tanh()
        return torch.stack((torch.where(s == 0, 1.0, value / s), 1 - value**2))
    if activation == "gelu":
        below = torch.special.ndtr(s)
        return torch.stack((below, below + s * torch.exp(-(s**2) / 2) / math.sqrt(2 * math.pi)))
    raise ValueError(f"activation is {activation!r}; slopes are known of {', '.join(ACTIVATIONS)}")


def bernoulli_gates(rate: torch.Tensor) -> Gates:
    """Gates that are open with probability `rate` (unit,): those of ReLU, one number a unit."""
    return Gates(rate.expand(2, -1), (rate * (1 - rate)).expand(2, 2, -1), True)


def expected_distance(before: Sequence[Linear], after: Sequence[Linear], gates: Sequence[Gates], inputs: InputMoments) -> float:
    """E 1/2 |f_1 - f_0|^2 on the outputs, f_0 being `before` and f_1 `after`; `gates` are those between the layers.

    Raises ValueError where the networks or the gates are of different shapes.
    """
    _check_shapes(before, after, gates)
    features = len(inputs.mean)
    mean = torch.cat((inputs.mean, torch.zeros_like(inputs.mean)))  # (2 feature,): a and Da
    covariance = inputs.covariance.new_zeros(2 * features, 2 * features)
    covariance[:features, :features] = inputs.covariance
    for index, (first, second) in enumerate(zip(before, after, strict=True)):
        if index:
            mean, covariance = _after_gates(mean, covariance, gates[index - 1])
        mean, covariance = _after_linear(mean, covariance, first, second)
    outputs = len(mean) // 2
    return float(mean[outputs:].square().sum() + covariance.diagonal()[outputs:].sum()) / 2


def _after_linear(mean: torch.Tensor, covariance: torch.Tensor, first: Linear, second: Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments of (s, Ds), (2 out,) and (2 out, 2 out), from those of (a, Da)."""
    upper = torch.cat((first.weight, torch.zeros_like(first.weight)), dim=1)
    lower = torch.cat((second.weight - first.weight, second.weight), dim=1)
    stacked = torch.cat((upper, lower))  # (2 out, 2 in)
    shift = torch.cat((first.bias, second.bias - first.bias))
    return stacked @ mean + shift, stacked @ covariance @ stacked.T


def _after_gates(mean: torch.Tensor, covariance: torch.Tensor, gates: Gates) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments of (r s, p Ds), (2 unit,) and (2 unit, 2 unit), from those of (s, Ds)."""
    units = len(mean) // 2
    average = gates.mean.flatten()  # (2 unit,)
    halves = mean.reshape(2, units)
    second_moment = _within_units(covariance) + halves[:, None] * halves[None, :]  # (2, 2, unit)
    gated = torch.outer(average, average) * covariance
    _within_units(gated).add_(gates.covariance * second_moment)
    return average * mean, gated


def _within_units(covariance: torch.Tensor) -> torch.Tensor:
    """(2, 2, unit) view of (2 unit, 2 unit): the entries between the two numbers of a unit."""
    units = len(covariance) // 2
    return covariance.view(2, units, 2, units).diagonal(dim1=1, dim2=3)


def drawn_distances(
    before: Sequence[Linear], after: Sequence[Linear], gates: Sequence[Gates], inputs: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """(draw,): 1/2 |f_1 - f_0|^2 at each of `inputs` (draw, feature), gates drawn anew for each.

    Their mean tends to `expected_distance`. `generator` is on the CPU, so that the draws are the same on every device.
    """
    _check_shapes(before, after, gates)
    value, change = inputs, torch.zeros_like(inputs)
    for index, (first, second) in enumerate(zip(before, after, strict=True)):
        if index:
            drawn = _drawn_slopes(gates[index - 1], len(inputs), generator)  # (2, draw, unit)
            value, change = drawn[0] * value, drawn[1] * change
        change = value @ (second.weight - first.weight).T + (second.bias - first.bias) + change @ second.weight.T
        value = value @ first.weight.T + first.bias
    return change.square().sum(dim=1) / 2


def drawn_inputs(mean: torch.Tensor, root: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, feature) normal inputs with that mean and covariance `root root'`; `generator` is on the CPU."""
    normal = torch.randn(count, root.shape[1], dtype=torch.float64, generator=generator).to(root.device)
    return mean + normal @ root.T


def covariance_root(covariance: torch.Tensor) -> torch.Tensor:
    """(n, n) R with R R' = `covariance` (n, n), which may be singular: features that never vary are common."""
    values, vectors = torch.linalg.eigh(covariance)
    root: torch.Tensor = vectors * values.clamp(min=0).sqrt()
    return root


def _drawn_slopes(gates: Gates, count: int, generator: torch.Generator) -> torch.Tensor:
    """(2, count, unit): 0 or 1 for both slopes alike, or normal numbers of the same mean and covariance."""
    mean, covariance = gates.mean, gates.covariance
    units = mean.shape[1]
    if gates.is_bernoulli:
        uniform = torch.rand(count, units, dtype=torch.float64, generator=generator).to(mean.device)
        return (uniform < mean[0]).to(mean.dtype).expand(2, -1, -1)
    normal = torch.randn(2, count, units, dtype=torch.float64, generator=generator).to(mean.device)
    scale = covariance[0, 0].sqrt()  # Cholesky, by unit; a unit whose first slope never varies has no part of it in the second
    slope = torch.where(scale > 0, covariance[0, 1] / scale, 0.0)
    rest = (covariance[1, 1] - slope**2).clamp(min=0).sqrt()
    return torch.stack((mean[0] + scale * normal[0], mean[1] + slope * normal[0] + rest * normal[1]))


def _check_shapes(before: Sequence[Linear], after: Sequence[Linear], gates: Sequence[Gates]) -> None:
    shapes = [tuple(tuple(layer.weight.shape) for layer in network) for network in (before, after)]
    if not before or shapes[0] != shapes[1]:
        raise ValueError(f"layers are {shapes[0]} and {shapes[1]}; both networks have the same, and one at least")
    units = [gate.mean.shape[1] for gate in gates]
    if units != [out for out, _ in shapes[0][:-1]]:
        raise ValueError(f"gates are of {units} units, and the hidden layers have {[out for out, _ in shapes[0][:-1]]}")
