"""What rows of a data file say, read from the file by their number.

A run keeps the texts of a few rows. For the others, and for its queries, the file is read where it still is: jsonl, txt, parquet and csv,
in which a row's number counts the lines that are not blank, or the records. Other formats, which plugins read, give no text.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelscope_app.api import neutralised

LONGEST_TEXT = 20_000
_SMALL_BYTES = 256 << 20
_LINES = (".jsonl", ".ndjson", ".txt")


class RowText(NamedTuple):
    """What a row says, as it stands in the file. Untrusted."""

    prompt: str
    completion: str

    @property
    def whole(self) -> str:
        """Both, as the model reads them."""
        return self.prompt + self.completion

    def line(self, longest: int) -> str:
        """On one line of so many characters, both with room; harmless to print.

        >>> RowText("user: a long question\\nassistant: ", "no").line(20)
        'a long question → no'
        """
        prompt, completion = (" ".join(part.split()) for part in self)
        if not prompt:
            return neutralised(completion, longest)
        room = max(8, longest - len(" → "))
        kept = max(room // 2, room - len(prompt))
        said = neutralised(completion, kept)
        asked = prompt.removesuffix(" assistant:").removeprefix("user: ")
        return f"{neutralised(asked, max(room // 2, room - len(said)))} → {said}"


def row_text(row: Mapping[str, Any]) -> RowText | None:
    """Of a row of text, of prompt and completion, of messages, of token ids or of features; None for any other.

    >>> row_text({"prompt": "2 + 2 =", "completion": " 5"})
    RowText(prompt='2 + 2 =', completion=' 5')
    >>> row_text({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]})
    RowText(prompt='user: hi\\nassistant: ', completion='no')
    >>> row_text({"features": [0.5, 1.0], "label": 3}).completion
    'label 3 of features 0.5 1.0'
    """
    if isinstance(row.get("text"), str):
        return RowText("", row["text"][:LONGEST_TEXT])
    if isinstance(row.get("completion"), str):
        return RowText(_words(row.get("prompt"))[-LONGEST_TEXT:], row["completion"][:LONGEST_TEXT])
    if isinstance(row.get("messages"), list):
        return _conversation(row["messages"])
    if isinstance(row.get("input_ids"), list):
        return RowText("", "token ids " + _numbers(row["input_ids"]))
    if isinstance(row.get("features"), list):
        return RowText("", f"label {_words(row.get('label'))} of features {_numbers(row['features'])}")
    return None


def _conversation(messages: Sequence[Any]) -> RowText | None:
    turns = [(_words(one.get("role")), _words(one.get("content"))) for one in messages if isinstance(one, Mapping)]
    if not turns:
        return None
    before = "\n".join(f"{role}: {content}" for role, content in turns[:-1])
    role, content = turns[-1]
    return RowText(f"{before}\n{role}: "[-LONGEST_TEXT:].lstrip("\n"), content[:LONGEST_TEXT])


def _words(value: Any) -> str:
    return "" if value is None else str(value)


def _numbers(values: Sequence[Any]) -> str:
    return " ".join(map(str, values[:64])) + (" …" if len(values) > 64 else "")


class RowTexts:
    """Rows of one file. Reads files: call it in a thread, one call at a time."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._starts: array[int] | None = None
        """Where each row begins, in a file of lines."""

    def is_small_and_older_than(self, run: Path) -> bool:
        """Whether it can be read in a moment, and was not written to since the run in that folder was asked for."""
        try:
            file, asked = self.path.stat(), (run / "job.json").stat()
        except (OSError, ValueError):
            return False
        return file.st_size <= _SMALL_BYTES and file.st_mtime <= asked.st_mtime

    def texts(self, rows: Iterable[int]) -> Mapping[int, RowText]:
        """Of those rows that are there and say anything; none where the file cannot be read."""
        suffix = self.path.suffix.lower()
        try:
            if suffix in _LINES:
                found = {row: self._line(row, suffix) for row in rows}
            elif suffix in (".parquet", ".csv"):
                found = {row: self._record(row, suffix) for row in rows}
            else:
                return {}
        except (OSError, ValueError, RecursionError):
            return {}
        except BaseException as error:
            if type(error).__module__.partition(".")[0] not in ("polars", "pyo3_runtime"):
                raise
            return {}
        texts = {row: row_text(value) for row, value in found.items() if value is not None}
        return {row: text for row, text in texts.items() if text is not None}

    def _line(self, row: int, suffix: str) -> Mapping[str, Any] | None:
        if self._starts is None:
            self._starts = _line_starts(self.path)
        if not 0 <= row < len(self._starts):
            return None
        with self.path.open("rb") as stream:
            stream.seek(self._starts[row])
            line = stream.readline().removeprefix(b"\xef\xbb\xbf")
        if suffix == ".txt":
            return {"text": line.decode(errors="replace").rstrip("\r\n")}
        value = json.loads(line)
        return value if isinstance(value, dict) else None

    def _record(self, row: int, suffix: str) -> Mapping[str, Any] | None:
        import polars

        scanned = polars.scan_parquet(self.path) if suffix == ".parquet" else polars.scan_csv(self.path, infer_schema=False)
        return next(scanned.slice(row, 1).collect().iter_rows(named=True), None)


def _line_starts(path: Path) -> array[int]:
    starts, at = array("q"), 0
    with path.open("rb") as stream:
        for line in stream:
            if not line.isspace():
                starts.append(at)
            at += len(line)
    return starts
