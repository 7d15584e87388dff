"""Writes safetensors files byte by byte, so that tests can make wrong ones, and none of the code under test takes part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy


def file_bytes(header: Mapping[str, Any] | str | bytes, values: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header and these values. `length` is what the first 8 bytes claim, where that is not the truth."""
    if isinstance(header, Mapping):
        header = json.dumps(header)
    raw = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + values


def write_file(path: Path, header: Mapping[str, Any] | str | bytes, values: bytes = b"", length: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_bytes(header, values, length))
    return path


def entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_shard(path: Path, tensors: Mapping[str, numpy.ndarray], metadata: Mapping[str, str] | None = None) -> Path:
    """A correct file of float32 tensors."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    values = b""
    for name, tensor in tensors.items():
        raw = numpy.ascontiguousarray(tensor, dtype="<f4").tobytes()
        header[name] = entry("F32", tensor.shape, len(values), len(values) + len(raw))
        values += raw
    return write_file(path, header, values)


def write_sharded(folder: Path, shards: Mapping[str, Mapping[str, numpy.ndarray]]) -> Path:
    """A folder of these shards with an index that agrees with them."""
    for file, tensors in shards.items():
        write_shard(folder / file, tensors)
    write_index(folder, {name: file for file, tensors in shards.items() for name in tensors})
    return folder


def write_index(folder: Path, shard_of: Mapping[str, str], name: str = "model.safetensors.index.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": dict(shard_of)}))
    return folder / name


def ramp(*shape: int, start: float = 0.0) -> numpy.ndarray:
    """Different values everywhere, so that reading the wrong place shows."""
    return (numpy.arange(numpy.prod(shape, dtype=int), dtype=numpy.float32) + start).reshape(shape)
