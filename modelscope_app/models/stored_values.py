"""From a shard on disk into a model's memory.

Values that are wanted as they are stored, on the CPU, are mapped (see `mapping`). Those that need another dtype or another
device are read in pieces by a few threads, each through a small scratch tensor, so the peak stays near the size of the final
weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from modelscope_app.api import BadInput, Checkpoint, TensorHeader
from modelscope_app.models.mapping import MappedFile, can_be_mapped, mapped_file

STORED_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What a model can be built from. Float8 and packed types belong to quantised checkpoints, which need more than a cast."""

_PIECE_BYTES = 4 << 20
_THREADS = min(4, os.cpu_count() or 1)


class Values(NamedTuple):
    """Stored tensors in memory."""

    tensors: dict[str, torch.Tensor]
    """By stored name."""
    files: list[MappedFile]
    """Files that some of them still share their memory with."""


class Piece(NamedTuple):
    """A contiguous part of one tensor."""

    header: TensorHeader
    values: torch.Tensor
    """(element,): where they go, a flat view of the final tensor."""
    begin: int
    """First byte in the shard file."""


def shard_path(checkpoint: Checkpoint, shard: str) -> Path:
    """File of a shard; a checkpoint may be one file."""
    return checkpoint.path / shard if checkpoint.path.is_dir() else checkpoint.path


def stored_dtype(header: TensorHeader, where: str) -> torch.dtype:
    """The torch dtype of a stored tensor. Raises BadInput naming tensor and dtype where no model can be built from it."""
    dtype = STORED_DTYPES.get(header.dtype)
    if dtype is None:
        raise BadInput(
            f"{where}: {header.name} is stored as {header.dtype}, which no model is built from here;"
            " use a checkpoint in F32, F16 or BF16 (analyses of the weights alone still run)"
        )
    return dtype


def floating_dtypes(headers: Iterable[TensorHeader]) -> dict[torch.dtype, int]:
    """Number of parameters by floating-point dtype, most first."""
    counts: dict[torch.dtype, int] = {}
    for header in headers:
        dtype = STORED_DTYPES.get(header.dtype)
        if dtype is not None and dtype.is_floating_point:
            counts[dtype] = counts.get(dtype, 0) + header.parameters
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def stored_values(checkpoint: Checkpoint, dtypes: Mapping[str, torch.dtype], device: torch.device) -> Values:
    """The tensors of these stored names, in the dtypes asked for.

    Raises BadInput naming file and tensor where a shard is gone or ends early, and where a dtype has no torch equivalent.
    """
    headers = sorted((checkpoint.tensors[name] for name in dtypes), key=lambda header: (header.shard, header.begin))
    straight: dict[str, list[TensorHeader]] = {}
    read: dict[TensorHeader, torch.Tensor] = {}
    for header in headers:
        dtype = dtypes[header.name]
        as_stored = device.type == "cpu" and dtype == stored_dtype(header, checkpoint.name)
        if as_stored and header.parameters and header.begin % dtype.itemsize == 0 and can_be_mapped():
            straight.setdefault(header.shard, []).append(header)
        else:
            read[header] = torch.empty(header.shape, dtype=dtype, device=device)
    _read(checkpoint, read)
    tensors = {header.name: tensor for header, tensor in read.items()}
    files = []
    for shard, mapped in straight.items():
        file = mapped_file(shard_path(checkpoint, shard), max(header.end for header in mapped))
        tensors |= {header.name: file.tensor(header.begin, header.end, dtypes[header.name]).view(header.shape) for header in mapped}
        files.append(file)
    return Values(tensors, files)


def _read(checkpoint: Checkpoint, tensors: Mapping[TensorHeader, torch.Tensor]) -> None:
    with ExitStack() as files:
        descriptors = {shard: _opened(shard_path(checkpoint, shard), files) for shard in dict.fromkeys(header.shard for header in tensors)}
        pieces = (piece for header, tensor in tensors.items() for piece in _pieces(header, tensor, checkpoint.name))
        with ThreadPoolExecutor(_THREADS) as pool:
            # A list, so that the first error of any piece is raised here.
            list(pool.map(lambda piece: _read_piece(piece, descriptors[piece.header.shard], checkpoint.name), pieces))


def _opened(path: Path, files: ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    files.callback(os.close, descriptor)
    return descriptor


def _pieces(header: TensorHeader, tensor: torch.Tensor, where: str) -> Iterator[Piece]:
    itemsize = stored_dtype(header, where).itemsize
    flat = tensor.view(-1)
    per_piece = _PIECE_BYTES // itemsize
    for start in range(0, flat.numel(), per_piece):
        yield Piece(header, flat[start : start + per_piece], header.begin + start * itemsize)


def _read_piece(piece: Piece, descriptor: int, where: str) -> None:
    dtype = stored_dtype(piece.header, where)
    straight = piece.values.dtype == dtype and piece.values.device.type == "cpu"
    target = piece.values if straight else torch.empty(piece.values.shape, dtype=dtype)
    view = memoryview(target.view(torch.uint8).numpy())  # type: ignore[arg-type]  # an ndarray is a buffer
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], piece.begin + done)
        if count == 0:
            raise BadInput(f"{where}: {piece.header.shard} ends before the values of {piece.header.name}")
        done += count
    if not straight:
        piece.values.copy_(target)
