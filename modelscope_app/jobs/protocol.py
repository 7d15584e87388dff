"""What service, workers and preparers say to each other: JSON objects, one a line, over the pipes of a child process.

The service starts `python -P -m modelscope_app.jobs.worker` and `python -P -m modelscope_app.jobs.preparing` with the interpreter
and PYTHONPATH a job was submitted with. It writes to their standard input and reads their standard output; what plugins print
there goes to standard error, which is a log. When standard input ends, the service is gone, and the child ends too.

To a worker
    {"do": "run", "folder", "device", "analysis_bytes", "model_bytes", "limit_bytes", "others_bytes"}
                                           execute the run in that folder on that device. `limit_bytes` (or null) is the most
                                           that jobs may take of the device, `others_bytes` what other workers hold of it
    {"do": "cancel", "folder"}             ask that run to stop, begun or not
    {"do": "unload", "fingerprint", "idle_seconds"}
                                           drop the resident models of this checkpoint (null: all) that nobody used for so long
From a worker
    {"say": "hello", "api", "devices": [{"device", "name", "capacity_bytes"}], "threads", "torch"}
    {"say": "begun", "folder"}             it fits and is being executed
    {"say": "short", "folder", "needs_bytes", "free_bytes", "capacity_bytes"}
                                           it does not fit now, with everything else unloaded; it was not begun
    {"say": "never", "folder", "needs_bytes", "free_bytes", "capacity_bytes"}
                                           it does not fit into the device at all; it was not begun
    {"say": "refused", "folder", "error", "exit_code"}
                                           it was not begun: another process has it, or what it reads has changed
    {"say": "stale"}                       a file it imported has changed: nothing was begun, and it ends
    {"say": "ended", "folder"}             status.json says how
    {"say": "resident", "models": [{"path", "fingerprint", "device", "dtype", "memory_bytes", "since", "last_used"}]}
                                           after every change; times are Unix seconds

To a preparer
    {"do": "prepare", "id", "analysis", "checkpoints", "params", "device", "dtype", "seed", "out", "cwd"}
                                           check it all, and make a queued run of it
    {"do": "estimate", "id", ...}          as "prepare", but only say what it would need; nothing is made
    {"do": "readmit", "id", "folder"}      make a run that was lost, cancelled or failed, or never began, a queued one
From a preparer
    {"say": "prepared", "id", "run", "folder", "warnings"}
    {"say": "estimated", "id", "need", "fingerprints", "models": [{"fingerprint", "path", "dtype"}], "warnings"}
                                           `fingerprints` of what was named, `models` that would be built
    {"say": "refused", "id", "error", "exit_code"}
    {"say": "stale", "id"}                 as a worker's
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

API_VERSION = 1
"""Raised when a client of this version would misunderstand an older service, or the other way round."""

API_HEADER = "Mscope-Api"
"""Each request and answer names the API version in it."""

DEVICE_LOST = 70
"""Exit code of a worker whose device gave up."""


def encode(message: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message, allow_nan=False).encode() + b"\n"


class Speaker:
    """Writes messages to a file descriptor; from any thread, each whole."""

    def __init__(self, descriptor: int) -> None:
        import threading

        self._descriptor = descriptor
        self._guard = threading.Lock()

    def say(self, word: str, **values: Any) -> None:
        """Send {"say": word, ...}. Nobody listening is no error: the end of standard input says so too."""
        line = encode({"say": word, **values})
        with self._guard:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except BrokenPipeError:
                pass


def take_over_stdin() -> int:
    """A private descriptor of standard input; descriptor 0 itself becomes empty, so that no plugin and no child of it reads a message."""
    private = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return private


def take_over_stdout() -> int:
    """A private descriptor of standard output; descriptor 1 itself becomes standard error, so nothing a plugin prints is a message."""
    private = os.dup(1)
    os.set_inheritable(private, False)
    os.dup2(2, 1)
    return private


def leave(code: int) -> NoReturn:
    """End the process at once, whatever threads a plugin has left."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a plugin may have put anything there
            stream.flush()
    os._exit(code)
