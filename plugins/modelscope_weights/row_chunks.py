"""Reading a tensor a few rows at a time, so that memory depends on the chunk and not on the model.

A chunk is a run of rows along the first dimension holding at most `CHUNK_ELEMENTS` values, or a single row where one row
holds more. At 2^18 values its float64 working copies are 2 MiB each and stay in the processor's cache; larger chunks are not
faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from modelscope_app.api import Checkpoint, TensorHeader

CHUNK_ELEMENTS = 1 << 18

READABLE_DTYPES = frozenset(
    {
        *("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"),
        *("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F16", "BF16", "F32", "F64"),
    }
)
"""Header dtypes whose values are real numbers torch can hold."""


def unreadable_reason(header: TensorHeader) -> str | None:
    """Why a tensor has no statistics, or None where it has."""
    if header.dtype in READABLE_DTYPES:
        return None
    if header.dtype.startswith("C"):
        return f"complex values ({header.dtype}) have no order"
    return f"dtype {header.dtype} is not one that can be read as numbers"


def row_ranges(shape: tuple[int, ...], elements: int = CHUNK_ELEMENTS) -> list[tuple[int, int]]:
    """Row ranges [start, stop) that cover a tensor; none where it has no elements.

    >>> row_ranges((5, 4), elements=8)
    [(0, 2), (2, 4), (4, 5)]
    """
    if 0 in shape:
        return []
    if not shape:
        return [(0, 1)]
    per_row = 1
    for size in shape[1:]:
        per_row *= size
    rows = max(1, elements // per_row)
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def rows_of(checkpoint: Checkpoint, header: TensorHeader, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` as a matrix (row, everything else), in the stored dtype. A scalar is one row, (1, 1)."""
    whole = not header.shape or (start, stop) == (0, header.shape[0])
    values = checkpoint.tensor(header.name) if whole else checkpoint.rows(header.name, start, stop)
    return values.reshape(stop - start, -1)


def chunk_reader(
    checkpoint: Checkpoint, header: TensorHeader, check_cancelled: Callable[[], None] = lambda: None
) -> Callable[[], Iterator[torch.Tensor]]:
    """A function that reads the tensor's chunks, (row, everything else) each, anew at every call.

    A tensor of a single chunk is read once and kept for later calls. `check_cancelled` is asked before each chunk.
    """
    ranges = row_ranges(header.shape)
    kept: list[torch.Tensor] = []

    def chunks() -> Iterator[torch.Tensor]:
        if kept:
            yield kept[0]
            return
        for start, stop in ranges:
            check_cancelled()
            chunk = rows_of(checkpoint, header, start, stop)
            if len(ranges) == 1:
                kept.append(chunk)
            yield chunk

    return chunks


def real_values(chunk: torch.Tensor) -> torch.Tensor:
    """The chunk in float64: exactly, except integers beyond 2^53, which are rounded."""
    return chunk.to(torch.float64)
