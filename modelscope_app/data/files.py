"""Rows of a data file: jsonl, parquet, csv, txt, and whatever plugins read. A bad row is an error with file, line and reason.

| suffix           | a row is                     | its values                                                                       |
|------------------|------------------------------|----------------------------------------------------------------------------------|
| .jsonl, .ndjson  | a line that is not blank     | as JSON has them; rows may have different keys, and 1 stays apart from "1"       |
| .parquet         | a row                        | as stored                                                                        |
| .csv             | a record below the header    | text; an empty cell is missing; a column of nothing but numbers is read as those |
| .txt             | a line that is not blank     | {"text": the line}                                                               |

A row's id is its 0-based position among the rows. Text files are UTF-8, with or without a byte order mark. Line-based files
are parsed line by line instead of by polars: its JSON reader turns 1 into "1" where a column holds both, its CSV reader fills
short records up in silence, and neither says which line was wrong.
"""

from __future__ import annotations

import csv
import importlib
import math
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelscope_app.api import BadInput, MscopeError, Reader
from modelscope_app.data.json_lines import Row, read_json_lines, text_lines

TEXT_COLUMNS = frozenset({"text", "prompt", "completion"})
"""Columns that are text even where a csv file happens to hold only numbers in them."""

_LONGEST_CSV_CELL = 2**31 - 1


class Rows(NamedTuple):
    """The rows of a data file, and where each of them stands."""

    path: Path
    """Absolute path of the file."""
    rows: Sequence[Row]
    """The rows; row i has id i. Those of a large jsonl file are parsed as they are asked for."""
    lines: Sequence[int] | None = None
    """1-based line of each row, in a file of lines."""

    def place(self, id: int) -> str:
        """Where a row stands, for messages: `train.jsonl, line 12`, or `train.parquet, row 11` where there are no lines."""
        where = f"row {id}" if self.lines is None else f"line {self.lines[id]}"
        return f"{self.path}, {where}"

    def bad_row(self, id: int, reason: str) -> BadInput:
        """The error for a row: file, line, reason."""
        return BadInput(f"{self.place(id)}: {reason}")


def read_rows(path: str | Path, readers: Sequence[Reader] = ()) -> Rows:
    """All rows of a data file, by its suffix (see the module's table); `readers` are those of plugins.

    Raises BadInput for a file that is missing, empty, of an unknown suffix, not UTF-8 or malformed, naming the line.
    """
    file = Path(path).expanduser().absolute()
    if not file.exists():
        raise BadInput(f"{file}: no such file")
    if file.is_dir():
        raise BadInput(f"{file} is a folder: name one data file")
    read = _reading(file, readers)
    try:
        rows = read(file)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror or error})") from None
    if not rows.rows:
        raise BadInput(f"{file}: has no rows")
    return rows


def _reading(file: Path, readers: Sequence[Reader]) -> Callable[[Path], Rows]:
    name = file.name.lower()
    for suffix, read in READ_BY_SUFFIX.items():
        if name.endswith(suffix):
            return read
    for reader in sorted(readers, key=lambda reader: -len(reader.suffix)):
        if name.endswith(reader.suffix.lower()):
            return lambda path: _read_by_plugin(path, reader)
    known = ", ".join([*READ_BY_SUFFIX, *sorted(reader.suffix for reader in readers)])
    raise BadInput(f"{file}: no reader for this kind of file; what is read: {known}")


def _read_jsonl(file: Path) -> Rows:
    rows, lines = read_json_lines(file)
    return Rows(file, rows, lines)


def _read_txt(file: Path) -> Rows:
    kept = [(number, line.removesuffix("\n").removesuffix("\r")) for number, _, line in text_lines(file) if not line.isspace()]
    return Rows(file, [{"text": line} for _, line in kept], array("q", (number for number, _ in kept)))


def _read_csv(file: Path) -> Rows:
    last_line = 0

    def physical_lines() -> Iterator[str]:
        nonlocal last_line
        for number, _, line in text_lines(file):
            last_line = number
            yield line

    records: list[list[str]] = []
    lines = array("q")
    header: list[str] | None = None
    previous_limit = csv.field_size_limit(_LONGEST_CSV_CELL)
    try:
        first_line = 1
        for record in csv.reader(physical_lines(), strict=True):
            if record and header is None:
                header = _csv_header(file, record)
            elif record and header is not None:
                if len(record) != len(header):
                    raise BadInput(f"{file}, line {first_line}: has {_cells(len(record))}, and the header has {len(header)}")
                records.append(record)
                lines.append(first_line)
            first_line = last_line + 1
    except csv.Error as error:
        raise BadInput(f"{file}, line {first_line}: is not a CSV record ({error})") from None
    finally:
        csv.field_size_limit(previous_limit)
    if not records or header is None:
        return Rows(file, [])
    columns = [_csv_values(name, [record[index] for record in records]) for index, name in enumerate(header)]
    return Rows(file, [dict(zip(header, values, strict=True)) for values in zip(*columns, strict=True)], lines)


def _csv_header(file: Path, names: list[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"{file}: the header names the column {name!r} twice")
    return names


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})").fullmatch
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?").fullmatch


def _csv_values(name: str, cells: list[str]) -> list[Any]:
    """A column's values. Cells like 007 or 1,5 are not numbers here, so a column of codes stays text."""
    filled = [cell for cell in cells if cell]
    if filled and name not in TEXT_COLUMNS:
        if all(_WHOLE_NUMBER(cell) for cell in filled):
            return [int(cell) if cell else None for cell in cells]
        if all(_NUMBER(cell) and math.isfinite(float(cell)) for cell in filled):
            return [float(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]


def _read_parquet(file: Path) -> Rows:
    import polars

    try:
        frame = polars.read_parquet(file, glob=False)
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
        first_line = str(error).partition("\n")[0]
        raise BadInput(f"{file}: is not a readable parquet file ({first_line})") from None
    return Rows(file, frame.to_dicts())


def _read_by_plugin(file: Path, reader: Reader) -> Rows:
    import polars

    module, _, function = reader.read.partition(":")
    try:
        frame = getattr(importlib.import_module(module), function)(file)
    except MscopeError:
        raise
    except Exception as error:
        raise BadInput(f"{file}: the reader {reader.read} failed with {type(error).__name__}: {error}") from error
    if not isinstance(frame, polars.DataFrame):
        raise BadInput(f"{file}: the reader {reader.read} returned a {type(frame).__name__}, not a polars DataFrame")
    return Rows(file, frame.to_dicts())


READ_BY_SUFFIX: Mapping[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".txt": _read_txt,
}
"""The formats the host reads itself. A plugin's reader for one of these suffixes is never asked."""
