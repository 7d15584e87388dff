"""The header of one safetensors file: 8 bytes of length, a JSON object, then the values.

    {"__metadata__": {text: text}, name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}

A header is believed only after these held: it fits in the file and in 100 MB; it is UTF-8 JSON without duplicate keys; shapes
and offsets are non-negative integers; each range lies inside the file and is as long as shape and dtype say; the ranges
cover the values with no overlap and no hole. A dtype this version does not know is kept as it is spelled, and then only its
range can be checked. Whatever fails raises BadInput naming the file and, where there is one, the tensor.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from modelscope_app.api.errors import BadInput
from modelscope_app.api.tensor_header import TensorHeader
from modelscope_app.api.text import neutralised
from modelscope_app.checkpoints.dtypes import ELEMENT_BITS
from modelscope_app.checkpoints.json_text import LARGEST_BYTES, unique_object

_LENGTH_BYTES = 8
_MOST_ELEMENTS = 2**63 - 1
"""More than any file can hold; also keeps the product of a hostile shape small."""
_LONGEST_NAME_SHOWN = 160


class FileState(NamedTuple):
    """What tells that a file is still the one that was opened."""

    device: int
    """Of the file system, on which the inode number means one file."""
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    """Time of the last change of the inode, which unlike the modification time cannot be set back."""

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """The state that `os.stat` or `os.fstat` returned."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def same_content(self, other: FileState) -> bool:
        """Whether nothing was written between the two. Renaming a file or linking to it does not count."""
        return self[:4] == other[:4]


class Shard(NamedTuple):
    """One safetensors file whose header was read and checked."""

    path: Path
    """Absolute."""
    state: FileState
    """Of the file when its header was read."""
    data_start: int
    """First byte after the header."""
    metadata: dict[str, str]
    """The file's `__metadata__`; empty where it has none."""
    tensors: list[TensorHeader]
    """In the order of the header."""

    @property
    def name(self) -> str:
        """File name."""
        return self.path.name


def read_shard(path: Path) -> Shard:
    """Read and check the header of one file; its values are not touched. Raises BadInput."""
    descriptor = open_regular(path)
    try:
        state = FileState.of(os.fstat(descriptor))
        raw = _header_bytes(descriptor, path, state.size)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from None
    finally:
        os.close(descriptor)
    try:
        entries = unique_object(raw)
    except ValueError as error:
        raise BadInput(f"{path}: the header is wrong: {error}; the file is damaged or not safetensors") from None
    metadata = _metadata(entries.pop("__metadata__", None), path)
    data_start = _LENGTH_BYTES + len(raw)
    tensors = _tensor_headers(entries, path, data_start, state.size - data_start)
    return Shard(path, state, data_start, metadata, tensors)


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file. Raises BadInput for what is missing, unreadable or not a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe must not make us wait
    except FileNotFoundError:
        gone = "is a link to a file that is gone" if path.is_symlink() else "does not exist"
        raise BadInput(f"{path} {gone}") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadInput(f"{path} is not a regular file, so it is not a safetensors file")
    return descriptor


def shown(name: str) -> str:
    """A tensor's or a file's name as it stands in a message: neutralised, and cut where it is very long."""
    return neutralised(name, longest=_LONGEST_NAME_SHOWN)


def _header_bytes(descriptor: int, path: Path, size: int) -> bytes:
    start = os.pread(descriptor, _LENGTH_BYTES, 0)
    if len(start) < _LENGTH_BYTES:
        raise BadInput(f"{path} is {size} bytes long, too short to be safetensors; it was probably not written to its end")
    _refuse_other_formats(start, path)
    length = int.from_bytes(start, "little")
    if length > LARGEST_BYTES:
        raise BadInput(f"{path} claims a header of {length:,} bytes and at most {LARGEST_BYTES:,} are read; it is not a safetensors file")
    if length > size - _LENGTH_BYTES:
        raise BadInput(f"{path}: the header is {length:,} bytes and longer than the file ({size:,} bytes); the file is truncated")
    raw = os.pread(descriptor, length, _LENGTH_BYTES)
    if len(raw) != length:
        raise BadInput(f"{path} became shorter while it was read")
    if raw[:1] != b"{":
        raise BadInput(f"{path}: the header does not begin with '{{'; it is not a safetensors file")
    return raw


def _refuse_other_formats(start: bytes, path: Path) -> None:
    if start == b"version ":
        raise BadInput(f"{path} is a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`")
    if start[:4] == b"GGUF":
        raise BadInput(f"{path} is a GGUF file whatever its name says; mscope reads safetensors only")
    if start[:4] == b"PK\x03\x04":
        raise BadInput(f"{path} is a zip archive, as torch.save writes them, whatever its name says; mscope reads safetensors only")


def _metadata(value: object, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise BadInput(f"{path}: __metadata__ in the header has to map text to text and does not; the file is damaged")
    return value


def _tensor_headers(entries: dict[str, Any], path: Path, data_start: int, data_size: int) -> list[TensorHeader]:
    headers: list[TensorHeader] = []
    file_name = path.name
    covered_to = 0
    in_order = True
    for name, entry in entries.items():
        try:
            dtype, shape = entry["dtype"], entry["shape"]
            begin, end = entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise _wrong(path, name, "its entry needs dtype, shape and two data_offsets") from None
        if type(dtype) is not str or type(shape) is not list or type(begin) is not int or type(end) is not int:
            raise _wrong(path, name, "dtype has to be text, shape a list, and data_offsets two whole numbers")
        elements = 1
        for length in shape:
            if type(length) is not int or length < 0:
                raise _wrong(path, name, "its shape has to be whole numbers, none negative")
            elements *= length
            if elements > _MOST_ELEMENTS or length > _MOST_ELEMENTS:
                raise _wrong(path, name, "its shape has more elements than any file can hold")
        if not 0 <= begin <= end:
            raise _wrong(path, name, f"its data_offsets {_number(begin)} to {_number(end)} are not a range")
        if end > data_size:
            raise BadInput(
                f"{path} is truncated: the tensor {shown(name)} ends at byte {_number(data_start + end)} "
                f"and the file is {data_start + data_size:,} bytes long; copy or download it again"
            )
        bits = ELEMENT_BITS.get(dtype)
        if bits is not None and elements * bits != (end - begin) * 8:
            size = f"{elements * bits / 8:,.15g}" if elements * bits < 2**50 else "far more"
            raise _wrong(path, name, f"shape {_shape_text(shape)} of {dtype} needs {size} bytes and its range has {end - begin:,}")
        in_order = in_order and begin == covered_to
        covered_to = end
        headers.append(TensorHeader(name, dtype, tuple(shape), file_name, data_start + begin, data_start + end))
    if not in_order or covered_to != data_size:
        _check_cover(headers, path, data_start, data_start + data_size)
    return headers


def _check_cover(headers: list[TensorHeader], path: Path, data_start: int, file_size: int) -> None:
    """Raise BadInput unless the ranges, taken in order, cover every byte after the header once."""
    covered_to = data_start
    previous = ""
    for header in sorted(headers, key=lambda header: (header.begin, header.end)):
        if header.begin < covered_to:
            raise BadInput(f"{path}: the tensors {shown(previous)} and {shown(header.name)} overlap; the file is damaged")
        if header.begin > covered_to:
            unused = f"{header.begin - covered_to:,} bytes before the tensor {shown(header.name)}"
            raise BadInput(f"{path}: {unused} belong to no tensor; the file is damaged")
        covered_to, previous = header.end, header.name
    if covered_to != file_size:
        after = f"after the tensor {shown(previous)}" if headers else "after the header"
        raise BadInput(f"{path}: {file_size - covered_to:,} bytes {after} belong to no tensor; the file is damaged")


def _wrong(path: Path, name: str, what: str) -> BadInput:
    return BadInput(f"{path}: the tensor {shown(name)} is described wrongly: {what}; the file is damaged")


def _number(value: int) -> str:
    """A number from a header, which may have thousands of digits."""
    return f"{value:,}" if abs(value) <= _MOST_ELEMENTS else "beyond 2^63"


def _shape_text(shape: list[int]) -> str:
    return "[" + ", ".join(map(str, shape[:8])) + (", ...]" if len(shape) > 8 else "]")
