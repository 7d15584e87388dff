"""Following the events of a run: lines of events.jsonl as they come, each client at its own place in the file.

What a client has not read yet stays in the file, so a slow one costs no memory.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from modelscope_app.api import BadInput
from modelscope_app.runs.lock import is_locked
from modelscope_app.runs.status import FINAL_STATES, read_stored_status

CHUNK_BYTES = 256 * 1024
POLL_SECONDS = 0.05
SIGN_OF_LIFE_SECONDS = 10.0


class EventTail:
    """Whole lines of a run's events.jsonl, in pieces of at most `CHUNK_BYTES` (or one line, where one is longer)."""

    def __init__(self, folder: Path, since: int) -> None:
        self._path = folder / "events.jsonl"
        self._since = since
        self._position = 0

    def read(self) -> tuple[bytes, bool]:
        """The next lines with sequence numbers from `since` on, and whether there was anything to read."""
        content = self._piece(CHUNK_BYTES)
        self._position += len(content)
        lines = [line for line in content.splitlines(keepends=True) if self._is_wanted(line)]
        return b"".join(lines), bool(content)

    def _piece(self, size: int) -> bytes:
        """Lines that are whole."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return b""
        try:
            while True:
                content = os.pread(descriptor, size, self._position)
                whole = content[: content.rfind(b"\n") + 1]
                if whole or len(content) < size:
                    return whole
                size *= 2
        except OSError:
            return b""
        finally:
            os.close(descriptor)

    def _is_wanted(self, line: bytes) -> bool:
        try:
            event = json.loads(line)
            return isinstance(event["kind"], str) and event["seq"] >= self._since
        except (ValueError, KeyError, TypeError, RecursionError):
            return False


async def event_lines(folder: Path, since: int, follow: bool, is_active: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Events of a run as lines of JSON. With `follow` it goes on until the run has ended; `is_active` says that it is still queued."""
    tail = EventTail(folder, since)
    loop = asyncio.get_running_loop()
    last = loop.time()
    while True:
        over = not follow or (not is_active() and _has_ended(folder))
        lines, more = tail.read()
        if lines or loop.time() - last >= SIGN_OF_LIFE_SECONDS:
            last = loop.time()
            yield lines or b"\n"
        if more:
            await asyncio.sleep(0)
        elif over:
            return
        else:
            await asyncio.sleep(POLL_SECONDS)


def _has_ended(folder: Path) -> bool:
    """Whether nothing more will come: whoever executed the run has let go of it."""
    try:
        if is_locked(folder):
            return False
        return read_stored_status(folder).state in FINAL_STATES or not (folder / "queue.json").exists()
    except BadInput:
        return True
