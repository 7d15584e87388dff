"""Tokenised rows of a large file, in a temporary file of their own."""

from __future__ import annotations

import errno
import os
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from modelscope_app.api import BadInput, Example
from modelscope_app.data.json_lines import Row
from modelscope_app.locations import cache_dir

_BYTES_PER_TOKEN = 8


class ExamplesOnDisk(Sequence[Example]):
    """Examples that are read as they are asked for; 12 bytes of each are held. Example i has id i.

    The file has no name and goes with the object. Raises BadInput where there is no room for it.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._ends = array("q")
        self._completion_starts = array("i")
        folder = cache_dir()
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - it is open as long as this object
        except OSError as error:
            raise self._no_room(error) from None

    def append(self, input_ids: Sequence[int], completion_start: int) -> None:
        """The tokens of the next row."""
        tokens = array("q", input_ids)
        end = (self._ends[-1] if self._ends else 0) + len(tokens)
        try:
            written = os.pwrite(self._stream.fileno(), tokens.tobytes(), (end - len(tokens)) * _BYTES_PER_TOKEN)
            if written < len(tokens) * _BYTES_PER_TOKEN:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._no_room(error) from None
        self._ends.append(end)
        self._completion_starts.append(completion_start)

    def _no_room(self, error: OSError) -> BadInput:
        return BadInput(f"{self._folder}: the tokens of the data file cannot be kept there ({error.strerror})")

    def length(self, id: int) -> int:
        """Tokens of an example, without reading it."""
        return self._ends[id] - (self._ends[id - 1] if id else 0)

    def get(self, id: int) -> Example | None:
        """The example, or None where there is none of that id."""
        return self[id] if 0 <= id < len(self) else None

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        id = range(len(self))[index]
        length = self.length(id)
        tokens = array("q")
        tokens.frombytes(os.pread(self._stream.fileno(), length * _BYTES_PER_TOKEN, (self._ends[id] - length) * _BYTES_PER_TOKEN))
        return Example(id, tuple(tokens), self._completion_starts[id], _RowOf(self._rows, id))


class _RowOf(Mapping[str, Any]):
    """A row that is parsed when it is looked into."""

    def __init__(self, rows: Sequence[Row], id: int) -> None:
        self._rows = rows
        self._id = id

    def __getitem__(self, key: str) -> Any:
        return self._rows[self._id][key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows[self._id])

    def __len__(self) -> int:
        return len(self._rows[self._id])
