"""How well directions that know nothing separate the classes.

Where activations lie near a few dimensions, many directions separate whatever these dimensions separate, and a high AUROC is no sign
that a probe found anything. The comparison has to be with directions that prefer what the data prefer: r ~ N(0, S), S the sample
covariance of the activations judged. With X_c (n, d) the centred activations and g ~ N(0, I_n),

    r = X_c^T g / sqrt(n - 1)    has covariance    X_c^T X_c / (n - 1) = S,

so S, d x d, is never formed. The scores of the centred activations X_c r differ from those of X by a constant, which no AUROC sees.

Scores are signed: a direction and its opposite count A and 1 - A. One g serves every layer, so that a layer's numbers do not depend
on which other layers are looked at. How an observed AUROC a stands among K random ones:

    percentile = (#{A_k < a} + #{A_k = a} / 2) / K,        p = (1 + #{A_k >= a}) / (1 + K).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from modelscope_probes.statistics.ranks import auroc, checked_labels

FEWEST_DIRECTIONS = 500
"""Below this the 99th percentile rests on fewer than five directions."""

_VALUES_AT_ONCE = 1 << 22


class Standing(NamedTuple):
    """An observed AUROC among those of random directions, for each layer."""

    percentile: torch.Tensor
    """(layer,) float64 in 0 ... 1: share of random directions with a lower AUROC, equal ones counting half."""

    p: torch.Tensor
    """(layer,) float64: share of random directions that do as well or better, the observed one counted among them."""


def random_directions(activations: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """(..., count, d) float32 directions from N(0, sample covariance) of `activations` (..., n, d): one a row of `noise` (count, n)."""
    return _directions(activations, noise)[0]


def random_direction_aurocs(
    activations: torch.Tensor, labels: torch.Tensor, count: int = FEWEST_DIRECTIONS, generator: torch.Generator | None = None
) -> torch.Tensor:
    """(layer, count) float64: signed AUROC of each of `count` random directions in each layer.

    `activations` is (layer, n, d) of any floating dtype, `labels` (n,) bool. NaN throughout where a class is absent, and in a layer
    with an activation that is not finite. The same generator state gives the same numbers on one machine; other layers beside it, or
    another machine, may round the matrix products of a layer otherwise, which can exchange two neighbours. Memory: the result, one
    layer in float32 (or some tens of megabytes of small ones), and blocks of directions of some tens of megabytes.
    """
    layers, prompts, width = activations.shape
    checked_labels(labels, prompts)
    aurocs = torch.full((layers, count), torch.nan, dtype=torch.float64)
    if prompts < 2:
        return aurocs
    for block in _blocks(count, prompts):
        noise = torch.randn((len(range(count)[block]), prompts), generator=generator).to(activations.device)
        # Some layers in one product: on cores that are shared, threads that wait for each other cost more than the sums.
        for some in _blocks(layers, prompts * max(width, len(noise))):
            directions, centred = _directions(activations[some], noise)
            aurocs[some, block] = auroc(directions @ centred.mT, labels)
    return aurocs


def standing(observed: torch.Tensor, random: torch.Tensor) -> Standing:
    """Where `observed` (layer,) stands among `random` (layer, count); NaN where either is."""
    count = random.shape[-1]
    lower = (random < observed[:, None]).sum(-1)
    equal = (random == observed[:, None]).sum(-1)
    unknown = observed.isnan() | random.isnan().any(-1)
    percentile = (lower + equal / 2).to(torch.float64) / count
    p = (1 + count - lower).to(torch.float64) / (1 + count)
    return Standing(percentile.masked_fill(unknown, torch.nan), p.masked_fill(unknown, torch.nan))


def _directions(activations: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions (..., count, d) and the centred activations (..., n, d) they are sums of."""
    values = activations.to(torch.float32)
    centred = values - values.mean(-2, keepdim=True)
    return (noise / math.sqrt(noise.shape[-1] - 1)) @ centred, centred


def _blocks(count: int, values_each: int) -> Iterator[slice]:
    step = max(1, _VALUES_AT_ONCE // values_each)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
