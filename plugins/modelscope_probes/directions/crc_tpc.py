"""Contrastive representation clustering by the top principal component (CRC-TPC; Burns et al. 2022, section 2.2 and appendix G).

Rows come in pairs: the activations of a text completed by 'no', and by 'yes'. Each side is normalised by itself first
(`modelscope_probes.pair_sides`), which takes away what says 'yes' or 'no' and leaves what says true or false. With the differences
D = x_yes - x_no, (n, d), w is the unit vector of largest variance

    w = argmax |D_c w|^2,    D_c = D less its mean (zero on the pairs that the normalisation was fitted on),    b = -w . mean

and a pair scores w . (x_yes - x_no) + b. Its sign is arbitrary: here the entry of largest size is positive; `oriented` turns it by
labels. Whatever varies most between the two sides is found, be it true or not (`modelscope_probes.distractor`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from modelscope_probes.directions.linear_probe import checked_rows


class CrcTpcProbe(NamedTuple):
    """A linear probe of differences of pairs, and how much of their variance it holds."""

    direction: torch.Tensor
    """(..., d) float64 of length 1; zero where the differences do not vary."""
    bias: torch.Tensor
    """(...) float64: the mean difference scores 0."""
    share: torch.Tensor
    """(...) of the variance of the differences along the direction; NaN where they do not vary."""


def crc_tpc(x_no: torch.Tensor, x_yes: torch.Tensor) -> CrcTpcProbe:
    """Fitted on normalised pairs x_no and x_yes, each (..., n, d)."""
    differences = checked_rows(x_yes) - checked_rows(x_no)
    mean = differences.mean(-2)
    centred = differences - mean[..., None, :]
    n, d = centred.shape[-2:]
    if d > n:
        values, vectors = torch.linalg.eigh(centred @ centred.mT)
        direction = (vectors[..., None, :, -1] @ centred)[..., 0, :]
    else:
        values, vectors = torch.linalg.eigh(centred.mT @ centred)
        direction = vectors[..., -1]
    varies = values[..., -1] > 0
    direction = torch.nn.functional.normalize(direction, dim=-1).masked_fill(~varies[..., None], 0.0)
    largest = direction.gather(-1, direction.abs().argmax(-1, keepdim=True))
    direction = torch.where(largest < 0, -direction, direction)
    share = torch.where(varies, values[..., -1] / centred.square().sum((-2, -1)), torch.nan)
    return CrcTpcProbe(direction, -(direction * mean).sum(-1), share)


def difference_scores(probe: CrcTpcProbe, x_no: torch.Tensor, x_yes: torch.Tensor) -> torch.Tensor:
    """(..., n): scores of pairs (..., n, d) normalised with the training statistics; above 0 says 'yes', once oriented."""
    return ((x_yes.double() - x_no.double()) @ probe.direction[..., None])[..., 0] + probe.bias[..., None]
