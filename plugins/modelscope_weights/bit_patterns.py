"""Statistics of narrow dtypes from a count of each bit pattern.

A dtype of 8 or 16 bits has 256 or 65,536 values. Counting how often each occurs says everything about a tensor but the
order of its values: range, moments, zeros, NaN, any histogram, any share beyond a bound. All of them are exact up to one
float64 sum over the patterns, come from a single pass over the data, and counts of parts simply add up.
"""

from __future__ import annotations

from functools import cache

import torch

from modelscope_weights.row_chunks import CHUNK_ELEMENTS, real_values


def has_few_patterns(dtype: torch.dtype) -> bool:
    """Whether a dtype is narrow enough to count every bit pattern."""
    return dtype.itemsize <= 2


@cache
def pattern_values(dtype: torch.dtype) -> torch.Tensor:
    """(2^bits,) float64: the value of each bit pattern read as an unsigned number. Booleans count as 0 and 1."""
    patterns = torch.arange(1 << (8 * dtype.itemsize), dtype=torch.int32).to(_unsigned(dtype))
    return real_values(patterns if dtype == torch.bool else patterns.view(dtype))


def pattern_counts(chunk: torch.Tensor) -> torch.Tensor:
    """(2^bits,) int64: how often each bit pattern occurs."""
    patterns = 1 << (8 * chunk.dtype.itemsize)
    counts = torch.zeros(patterns, dtype=torch.int64)
    for block in torch.split(chunk.contiguous().reshape(-1).view(_unsigned(chunk.dtype)), CHUNK_ELEMENTS):
        counts += torch.bincount(block.to(torch.int64), minlength=patterns)
    return counts


def _unsigned(dtype: torch.dtype) -> torch.dtype:
    return torch.uint8 if dtype.itemsize == 1 else torch.uint16
