"""What the service says to this worker, read by a thread of its own, so that it is heard while torch is inside a long kernel.

When the service is gone, a worker that executes nothing ends at once. A running job is asked to save what it has; if it has not
ended after `LAST_WORDS_SECONDS`, the process does, and the free lock of the run says that it was lost.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelscope_app.jobs.interruption import Interruption
from modelscope_app.jobs.protocol import leave

LAST_WORDS_SECONDS = 10.0

_CUT_SHORT = 1
"""Exit code of a worker whose job did not stop in time; nobody is there to hear it."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A run that this worker is to execute."""

    folder: Path
    device: str
    """`auto`, `cpu`, `cuda:0`."""
    analysis_bytes: int
    """It is expected to take on the device, beyond its models."""
    model_bytes: int
    """All its models."""
    limit_bytes: int | None
    """The most that jobs may take of the device."""
    others_bytes: int
    """What other workers hold of that."""
    interruption: Interruption = field(default_factory=Interruption)


class Inbox:
    """Assignments in the order they came."""

    def __init__(self, descriptor: int, unload: Callable[[str | None, float], None]) -> None:
        self._descriptor = descriptor
        self._unload = unload
        self._changed = threading.Condition()
        self._waiting: deque[Assignment] = deque()
        self._current: Assignment | None = None
        self._is_closed = False

    def listen(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._listen, name="inbox", daemon=True).start()

    def next(self) -> Assignment | None:
        """Wait for the next assignment; None when the service is gone."""
        with self._changed:
            self._current = None
            self._changed.wait_for(lambda: self._is_closed or self._waiting)
            self._current = None if self._is_closed else self._waiting.popleft()
            return self._current

    def done(self) -> None:
        """The current assignment has ended."""
        with self._changed:
            self._current = None

    def _listen(self) -> None:
        try:
            with os.fdopen(self._descriptor, "rb") as lines:
                for line in lines:
                    try:
                        self._hear(json.loads(line))
                    except Exception:  # one message nobody understands is no reason to be deaf to the next
                        print(f"a worker was told {line[:1000]!r} and cannot do that", file=sys.stderr)
                        traceback.print_exc()
        finally:
            self._close()

    def _hear(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "run":
                assignment = _assignment(message)
                with self._changed:
                    self._waiting.append(assignment)
                    self._changed.notify()
            case "cancel":
                for assignment in self._known(Path(message["folder"])):
                    assignment.interruption.ask("cancelled")
            case "unload":
                self._unload(message["fingerprint"], float(message["idle_seconds"]))
            case other:
                raise ValueError(f"{other!r} is nothing a worker does")

    def _known(self, folder: Path) -> list[Assignment]:
        with self._changed:
            everything = [self._current, *self._waiting]
        return [assignment for assignment in everything if assignment is not None and assignment.folder == folder]

    def _close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            current = self._current
        if current is None:
            leave(0)
        current.interruption.ask("the service ended while it ran", ends_as="lost")
        time.sleep(LAST_WORDS_SECONDS)
        leave(_CUT_SHORT)


def _assignment(message: dict[str, Any]) -> Assignment:
    limit = message["limit_bytes"]
    return Assignment(
        folder=Path(message["folder"]),
        device=str(message["device"]),
        analysis_bytes=int(message["analysis_bytes"]),
        model_bytes=int(message["model_bytes"]),
        limit_bytes=None if limit is None else int(limit),
        others_bytes=int(message["others_bytes"]),
    )
