"""Contrast-consistent search (CCS; Burns et al. 2022, section 2.2): a direction found from pairs, without labels.

Rows come in pairs: the activations of a text completed by 'no', and by 'yes', each side normalised by itself
(`modelscope_probes.pair_sides`). With p = sigmoid(x . w + b), a probability of being true,

    L = mean[ (p_no - (1 - p_yes))^2 ] + mean[ min(p_no, p_yes)^2 ]

asks that one of the two is true (consistency) and that the probe is sure which (confidence). L = 0 for every feature that holds of
exactly one member of each pair, whatever it means (Farquhar et al. 2023, theorem 1); p = 1/2 everywhere has L = 1/4. So a low loss is
no evidence of truth: plant a feature and see (`modelscope_probes.distractor`).

As in the authors' code: w and b start uniform in +-1 / sqrt(d); AdamW (learning rate 1e-3, weight decay 0.01, on b as well) takes 1000
steps over all pairs; of 10 restarts the one of lowest loss is kept. All restarts and all leading dimensions are one batch, and all
leading dimensions start from the same draws. Adam depends on the axes: rotating the activations changes the answer, as does scaling
them.

A pair scores (p_yes + 1 - p_no) / 2, which above 1/2 says 'yes'. Sign, and so which end means true, is arbitrary until `oriented`.

Time: 1000 times two passes over both sides, in float64. Memory: those twice, and (..., n, restarts) a few times.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from modelscope_probes.directions.linear_probe import LinearProbe, checked_rows, scores

RESTARTS = 10
EPOCHS = 1000
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
_BETAS = (0.9, 0.999)
_STABILITY = 1e-8


class CcsProbe(NamedTuple):
    """The restart of lowest loss, and all of them."""

    direction: torch.Tensor
    """(..., d) float64, not normalised."""
    bias: torch.Tensor
    """(...) float64."""
    losses: torch.Tensor
    """(..., restarts) L of each restart at its end."""
    restart: torch.Tensor
    """(...) int64: which restart was kept."""
    directions: torch.Tensor
    """(..., restarts, d): the directions of all, whose agreement up to sign is a check."""


def ccs_loss(p_no: torch.Tensor, p_yes: torch.Tensor) -> torch.Tensor:
    """(...): L of probabilities (..., n) of the two members of n pairs."""
    return (p_no + p_yes - 1).square().mean(-1) + torch.minimum(p_no, p_yes).square().mean(-1)


def ccs(x_no: torch.Tensor, x_yes: torch.Tensor, generator: torch.Generator, *, restarts: int = RESTARTS, epochs: int = EPOCHS) -> CcsProbe:
    """Fitted on normalised pairs x_no and x_yes, each (..., n, d). `generator` draws the starts, on the CPU."""
    x_no, x_yes = checked_rows(x_no), checked_rows(x_yes)
    d = x_no.shape[-1]
    x = torch.nn.functional.pad(torch.cat((x_no, x_yes), dim=-2), (0, 1), value=1.0)  # (..., 2n, d + 1), so that b is one more weight
    start = (2 * torch.rand(d + 1, restarts, dtype=torch.float64, generator=generator) - 1) / math.sqrt(d)
    parameters = start.to(x.device).expand(*x.shape[:-2], d + 1, restarts).clone()
    momentum, square = torch.zeros_like(parameters), torch.zeros_like(parameters)
    for step in range(1, epochs + 1):
        gradient = _gradient(parameters, x)
        momentum.lerp_(gradient, 1 - _BETAS[0])
        square.lerp_(gradient.square_(), 1 - _BETAS[1])
        size = (square / (1 - _BETAS[1] ** step)).sqrt_().add_(_STABILITY)
        parameters.mul_(1 - LEARNING_RATE * WEIGHT_DECAY)
        parameters.addcdiv_(momentum, size, value=-LEARNING_RATE / (1 - _BETAS[0] ** step))
    p_no, p_yes = _probabilities(parameters, x)
    losses = ccs_loss(p_no.mT, p_yes.mT)  # (..., restarts)
    restart = losses.argmin(-1)
    kept = parameters.gather(-1, restart[..., None, None].expand(*parameters.shape[:-1], 1))[..., 0]
    return CcsProbe(kept[..., :d], kept[..., d], losses, restart, parameters[..., :d, :].mT)


def pair_scores(probe: LinearProbe, x_no: torch.Tensor, x_yes: torch.Tensor) -> torch.Tensor:
    """(..., n): (p_yes + 1 - p_no) / 2 of pairs (..., n, d) normalised with the training statistics."""
    return (scores(probe, x_yes).sigmoid() + 1 - scores(probe, x_no).sigmoid()) / 2


def _probabilities(parameters: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """p_no and p_yes, each (..., n, restarts), of both sides x (..., 2n, d + 1), one below the other."""
    p_no, p_yes = (x @ parameters).sigmoid_().chunk(2, dim=-2)
    return p_no, p_yes


def _gradient(parameters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(..., d + 1, restarts): of L in w and b. Where p_no = p_yes, half of min's gradient goes to each."""
    p_no, p_yes = _probabilities(parameters, x)
    excess = p_no + p_yes - 1
    is_smaller = (1 + torch.sign(p_yes - p_no)) / 2  # of p_no
    by_no = (excess + p_no * is_smaller) * p_no * (1 - p_no)
    by_yes = (excess + p_yes * (1 - is_smaller)) * p_yes * (1 - p_yes)
    return x.mT @ torch.cat((by_no, by_yes), dim=-2) * (4 / x.shape[-2])
