"""Each side of contrast pairs normalised by itself, so that what says 'yes' or 'no' is gone before a direction is sought.

With x_i the rows of one side, a feature at a time,

    mean-std: (x - mean) / std        mean: x - mean

where std divides by n (ddof 0), and a feature that is constant on the fitting rows is divided by 1. The statistics
of a side are fitted on training pairs and kept: held-out pairs are normalised with THOSE. Normalising held-out rows by their own mean,
as some published evaluations do, lets every row's score depend on the others it is tested with, and cannot be done for one prompt.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from modelscope_probes.directions.linear_probe import LinearProbe, Probe, checked_rows

Normalisation = Literal["mean-std", "mean"]


class Side(NamedTuple):
    """Statistics of one side, by which any of its rows is normalised."""

    mean: torch.Tensor
    """(..., d) float64."""
    scale: torch.Tensor
    """(..., d) float64: what is divided by, nowhere 0."""

    def normalised(self, x: torch.Tensor) -> torch.Tensor:
        """(..., n, d) float64: rows of this side, whether they were fitted on or not."""
        return (x.double() - self.mean[..., None, :]) / self.scale[..., None, :]


def side(x: torch.Tensor, normalisation: Normalisation = "mean-std") -> Side:
    """Statistics of the rows x (..., n, d) of one side."""
    x = checked_rows(x)
    mean = x.mean(-2)
    if normalisation == "mean":
        return Side(mean, torch.ones_like(mean))
    std = x.std(-2, correction=0)
    return Side(mean, torch.where(std > 0, std, 1.0))


def raw_probe(probe: LinearProbe, side: Side) -> Probe:
    """The probe that gives raw rows of this side the score `probe` gives the normalised ones: w / scale, b - mean . w / scale."""
    direction = probe.direction / side.scale
    return Probe(direction, probe.bias - (direction * side.mean).sum(-1))
