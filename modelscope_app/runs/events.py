"""events.jsonl: what happened in a run, one JSON object a line, each with a sequence number and a time.

Lines are appended whole with one write. A reader that meets a last line without its newline leaves it for later.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelscope_app.api import BadInput
from modelscope_app.runs.atomic import finite
from modelscope_app.runs.reading import file_bytes


class EventLog:
    """Appends events; safe to use from several threads of one process. Raises BadInput where the file cannot be written."""

    def __init__(self, folder: Path) -> None:
        path = folder / "events.jsonl"
        self._guard = threading.Lock()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise BadInput(f"{path}: cannot be written ({error.strerror})") from None
        try:
            self._sequence = _next_sequence(path, self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise

    def add(self, kind: str, **values: Any) -> None:
        """Append one event."""
        with self._guard:
            event = {"seq": self._sequence, "time": round(time.time(), 3), "kind": kind, **finite(values)}
            os.write(self._descriptor, (json.dumps(event, allow_nan=False) + "\n").encode())
            self._sequence += 1

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _next_sequence(path: Path, descriptor: int) -> int:
    """One after the last whole line; a torn last line (the process died while writing) is cut off."""
    content = file_bytes(path)
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.ftruncate(descriptor, whole)
    return content.count(b"\n")


def read_events(folder: Path, since: int = 0) -> Iterator[dict[str, Any]]:
    """Events with sequence numbers from `since` on. A missing file has none; a line that is no event is passed over.

    Every event has an integer `seq` and a text `kind`; the other values are whatever the file says. Raises BadInput for a file
    that cannot be read.
    """
    return (event for event in EventReader(folder).new() if event["seq"] >= since)


class EventReader:
    """Reads on where it stopped, so that following a long run costs what is new of it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"
        self._position = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Events whose lines were finished since the last call; as `read_events` has them."""
        try:
            content = file_bytes(self._path, self._position)
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]  # only unfinished lines are ever cut off, so the position stays good
        self._position += len(whole)
        for line in whole.splitlines():
            try:
                event = finite(json.loads(line))
            except (ValueError, RecursionError):
                continue
            match event:
                case {"seq": int(), "kind": str()}:
                    yield event
