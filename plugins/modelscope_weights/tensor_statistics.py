"""Everything `weights.stats` says about one tensor, from its chunks.

Narrow dtypes are read once, by bit pattern. Wider ones need their range before a histogram and their deviation before a
share of outliers: a tensor of one chunk is kept in memory between the two passes, a larger one is read twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from modelscope_weights.bit_patterns import has_few_patterns, pattern_counts, pattern_values
from modelscope_weights.histograms import bin_counts, bin_edges, bin_indices
from modelscope_weights.moments import Moments, euclidean_norm, kurtosis, merged, moments, standard_deviation
from modelscope_weights.row_chunks import CHUNK_ELEMENTS, real_values

OUTLIER_DEVIATIONS = 6.0
"""Distance from the mean, in standard deviations, beyond which a value is counted; 2e-9 of a Gaussian lies there."""

Chunks = Callable[[], Iterable[torch.Tensor]]
"""A tensor, chunk by chunk, each (row, everything else), read anew at every call."""


class TensorStatistics(NamedTuple):
    """Numbers about one tensor, over its finite values. NaN stands for unknown."""

    finite: float
    """Number of finite values."""
    nan: float
    positive_infinite: float
    negative_infinite: float
    zeros: float
    """Values equal to zero, either sign."""
    minimum: float
    maximum: float
    mean: float
    std: float
    """Population standard deviation."""
    norm: float
    """Euclidean (Frobenius) norm; unknown where there are values and none is finite."""
    rms: float
    """Root of the mean square."""
    kurtosis: float
    """Fourth central moment over the squared variance; 3 for a Gaussian."""
    outliers: float
    """Values further than six standard deviations from the mean."""
    zero_rows: float
    """Rows along the first dimension that hold zeros only; unknown for vectors and scalars."""
    distinct: float
    """Distinct bit patterns; unknown for dtypes wider than 16 bits."""


class _Distribution(NamedTuple):
    """What one way of reading finds out about the values."""

    whole: Moments
    histogram: torch.Tensor
    outliers: int
    zero_rows: int
    distinct: float


def tensor_statistics(chunks: Chunks, bins: int, has_rows: bool) -> tuple[TensorStatistics, torch.Tensor]:
    """Statistics of a tensor and its histogram, (bins,) int64. `has_rows`: whether it has two dimensions or more."""
    first = next(iter(chunks()), None)
    narrow = first.dtype if first is not None and has_few_patterns(first.dtype) else None
    found = by_value(chunks, bins) if narrow is None else by_pattern(chunks, narrow, bins)
    whole, norm, deviation = found.whole, euclidean_norm(found.whole), standard_deviation(found.whole)
    some = whole.finite > 0
    statistics = TensorStatistics(
        finite=whole.finite,
        nan=whole.nan,
        positive_infinite=whole.positive_infinite,
        negative_infinite=whole.negative_infinite,
        zeros=whole.zeros,
        minimum=whole.minimum if some else math.nan,
        maximum=whole.maximum if some else math.nan,
        mean=whole.mean if some else math.nan,
        std=deviation,
        norm=norm,
        rms=norm / math.sqrt(whole.finite) if some else math.nan,
        kurtosis=kurtosis(whole),
        outliers=found.outliers if math.isfinite(deviation) else math.nan,
        zero_rows=found.zero_rows if has_rows else math.nan,
        distinct=found.distinct,
    )
    return statistics, found.histogram


def by_pattern(chunks: Chunks, dtype: torch.dtype, bins: int) -> _Distribution:
    """The distribution of a narrow dtype, in one pass, from counts of its bit patterns."""
    counts = torch.zeros(1 << (8 * dtype.itemsize), dtype=torch.int64)
    zero_rows = 0
    for chunk in chunks():
        counts += pattern_counts(chunk)
        zero_rows += _zero_rows(chunk)
    occurring = counts > 0
    values, counts = pattern_values(dtype)[occurring], counts[occurring]
    whole = moments(values, counts)
    histogram = torch.zeros(bins, dtype=torch.int64)
    edges = bin_edges(whole.minimum, whole.maximum, bins)
    if edges is not None:
        finite = torch.isfinite(values)
        histogram.scatter_add_(0, bin_indices(values[finite], edges), counts[finite])
    outliers = int(counts[_are_outliers(values, whole)].sum())
    return _Distribution(whole, histogram, outliers, zero_rows, float(values.numel()))


def by_value(chunks: Chunks, bins: int) -> _Distribution:
    """The distribution of any dtype, in two passes over the values."""
    whole = Moments()
    zero_rows = 0
    for chunk in chunks():
        zero_rows += _zero_rows(chunk)
        for block in _blocks(chunk):
            whole = merged(whole, moments(block))
    histogram = torch.zeros(bins, dtype=torch.int64)
    outliers = 0
    edges = bin_edges(whole.minimum, whole.maximum, bins)
    for chunk in chunks():
        for block in _blocks(chunk):
            if edges is not None:
                histogram += bin_counts(block, edges)
            outliers += int(_are_outliers(block, whole).sum())
    return _Distribution(whole, histogram, outliers, zero_rows, math.nan)


def _are_outliers(values: torch.Tensor, whole: Moments) -> torch.Tensor:
    return torch.isfinite(values) & ((values - whole.mean).abs() > OUTLIER_DEVIATIONS * standard_deviation(whole))


def _zero_rows(chunk: torch.Tensor) -> int:
    # An 8-bit dtype without a zero would round the 0 of a comparison to its smallest number.
    comparable = chunk.to(torch.float32) if chunk.dtype.is_floating_point and chunk.dtype.itemsize == 1 else chunk
    return int((comparable == 0).all(dim=1).sum())


def _blocks(chunk: torch.Tensor) -> Iterable[torch.Tensor]:
    """Flat float64 blocks; a single row may hold more than a chunk should."""
    for block in torch.split(chunk.reshape(-1), CHUNK_ELEMENTS):
        yield real_values(block)
