"""Histograms of equal-width bins between the smallest and the largest finite value.

Bin i holds edge_i <= x < edge_{i+1}, the last bin its right edge too, with edges as evenly spaced as float64 allows: the
definition of `numpy.histogram`. Where all values are equal the range is widened around them, so that bins have a width.
"""

from __future__ import annotations

import math

import torch


def bin_edges(minimum: float, maximum: float, bins: int) -> torch.Tensor | None:
    """(bins + 1,) float64 ascending edges, or None where the range is empty or wider than float64 can say."""
    if minimum == maximum:
        half = max(abs(minimum), 1.0) / 2
        minimum, maximum = minimum - half, maximum + half
    if not (math.isfinite(maximum - minimum) and minimum < maximum):
        return None
    edges = minimum + torch.arange(bins + 1, dtype=torch.float64) * ((maximum - minimum) / bins)
    edges[-1] = maximum
    return edges


def bin_indices(values: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """(n,) int64: the bin of each of `values`, (n,) float64, all between the first and the last edge."""
    bins = edges.shape[0] - 1
    scale = bins / float(edges[-1] - edges[0])
    if not math.isfinite(scale):
        return (torch.searchsorted(edges, values, right=True) - 1).clamp_(0, bins - 1)
    # Arithmetic finds the bin up to rounding, which the edges themselves then settle: half the time of a search.
    index = ((values - edges[0]) * scale).to(torch.int64).clamp_(0, bins - 1)
    index -= (values < edges[index]).to(torch.int64)
    index += (values >= edges[index + 1]).to(torch.int64)
    return index.clamp_(0, bins - 1)


def bin_counts(values: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """(bins,) int64: how many of `values`, (n,) float64, fall into each bin. Values that are not finite fall into none."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        values = values[finite]
    return torch.bincount(bin_indices(values, edges), minlength=edges.shape[0] - 1)
