"""Lines of JSON objects: all of them at once, or of a large file each one as it is asked for."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from modelscope_app.api import BadInput
from modelscope_app.data.quoting import shown

Row = dict[str, Any]

LARGE_BYTES = 8 * 2**20
"""Files of this size and more are not held: a parsed row takes several times its line."""


def text_lines(file: Path) -> Iterator[tuple[int, int, str]]:
    """1-based line numbers, places in the file and lines with their line ends; only a line feed ends a line."""
    place = 0
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            start, place = place, place + len(raw)
            if number == 1:
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise BadInput(f"{file}: is UTF-16 text; save it as UTF-8")
                if raw.startswith(b"\xef\xbb\xbf"):
                    start, raw = start + 3, raw[3:]
            try:
                yield number, start, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                reason = f"byte {error.start + 1} is 0x{raw[error.start]:02x}, which is not UTF-8; save the file as UTF-8"
                raise BadInput(f"{file}, line {number}: {reason}") from None


def read_json_lines(file: Path) -> tuple[Sequence[Row], array[int]]:
    """The rows, and the 1-based line of each. Raises BadInput naming the line of the first that is no object."""
    is_large = file.stat().st_size >= LARGE_BYTES
    rows: list[Row] = []
    lines, places = array("q"), array("q")
    for number, place, line in text_lines(file):
        if line.isspace():
            continue
        row = _parsed(file, number, line)
        if not is_large:
            rows.append(row)
        places.append(place)
        lines.append(number)
    return RowsOnDisk(file, places) if is_large else rows, lines


class RowsOnDisk(Sequence[Row]):
    """Rows of a large file, each parsed as it is asked for; 8 bytes of each are held."""

    def __init__(self, file: Path, places: array[int]) -> None:
        """`places` are where in the file its rows begin."""
        self._file = file
        self._places = places
        self._stream = file.open("rb")
        self._size = file.stat().st_size

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        start = self._places[index]
        after = index + 1 if index >= 0 else index + 1 + len(self)
        stop = self._places[after] if after < len(self) else self._size
        try:
            line = os.pread(self._stream.fileno(), stop - start, start).partition(b"\n")[
                0
            ]  # behind it may stand what is blank, but not for JSON
            row = _parse_json(line.decode("utf-8"))
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise BadInput(f"{self._file}: has changed since it was first read; start again")
        return row


def _parsed(file: Path, number: int, line: str) -> Row:
    try:
        row = _parse_json(line)
        if "\\ud" in line.lower():
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise BadInput(f"{file}, line {number}: is not JSON ({error.msg} at character {error.pos + 1})") from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise BadInput(f"{file}, line {number}: has {half}, half of a surrogate pair and no character") from None
    except ValueError as error:
        reason = "holds a number of thousands of digits" if "int_max_str_digits" in str(error) else str(error)
        raise BadInput(f"{file}, line {number}: {reason}") from None
    except RecursionError:
        raise BadInput(f"{file}, line {number}: is nested too deeply") from None
    if not isinstance(row, dict):
        raise BadInput(f'{file}, line {number}: is {shown(row)}, not an object like {{"text": "..."}}')
    return row


def _object(pairs: list[tuple[str, Any]]) -> Row:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return keys


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; leave the value out or write null")


_parse_json = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant).decode
