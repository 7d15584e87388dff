"""A planted distractor: would the method rather find this than the truth? (Farquhar et al. 2023, section 4.1)

There, a random word is appended to both texts of each pair, and unsupervised methods find the word. They cannot find it as it stands: what
moves both members of a pair alike, x_no + d_i v and x_yes + d_i v with a coin d_i = +-1, drops out of their difference, and is
inconsistent for CCS, since both members get the same p. What they find is the feature that a model makes of word and answer
together, 'the answer is yes' XOR 'the word is the second', which holds of exactly one member of each pair. This is what is planted:

    x_yes_i + d_i (a / 2) v,    x_no_i - d_i (a / 2) v

v is a random unit vector, one for all pairs and leading dimensions. Half of the d_i are +1, so that the planted part has mean zero
on either side and normalising each side by itself leaves it. The difference of pair i moves by d_i a v, with

    a = strength * median_i |D_i - mean D|,    D_i = x_yes_i - x_no_i

a strength of 1 being as long as a typical difference is. CRC-TPC, without dividing by std, turns to v when strength^2 exceeds about the
share of variance of its first component. Labels of pairs are independent of d, so a probe that reads the truth has AUROC near 1/2 on
the distractor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from modelscope_app.api import BadInput
from modelscope_probes.directions.linear_probe import checked_rows


class Planted(NamedTuple):
    """Pairs with a distractor in both members."""

    no: torch.Tensor
    """(..., n, d) float64."""
    yes: torch.Tensor
    """(..., n, d) float64."""
    distractor: torch.Tensor
    """(n,) bool: whether d_i = +1. A probe that found it has an AUROC on this far from 1/2, on either side."""
    direction: torch.Tensor
    """(d,) float64: v, of length 1."""
    distance: torch.Tensor
    """(...) float64: a."""


def planted(x_no: torch.Tensor, x_yes: torch.Tensor, strength: float, generator: torch.Generator) -> Planted:
    """Of pairs x_no and x_yes, each (..., n, d), before they are normalised; `strength` as above. BadInput for fewer than two pairs."""
    x_no, x_yes = checked_rows(x_no), checked_rows(x_yes)
    n, d = x_no.shape[-2:]
    if n < 2 or x_no.shape != x_yes.shape:
        raise BadInput(f"a distractor needs two pairs or more, of one shape, not {tuple(x_no.shape)} and {tuple(x_yes.shape)}")
    direction = torch.nn.functional.normalize(torch.randn(d, dtype=torch.float64, generator=generator), dim=0).to(x_no.device)
    distractor = (torch.randperm(n, generator=generator) < n // 2).to(x_no.device)
    differences = x_yes - x_no
    distance = strength * torch.linalg.vector_norm(differences - differences.mean(-2, keepdim=True), dim=-1).median(-1).values
    shift = torch.where(distractor, 0.5, -0.5)[:, None] * direction * distance[..., None, None]  # (..., n, d)
    return Planted(x_no - shift, x_yes + shift, distractor, direction, distance)
