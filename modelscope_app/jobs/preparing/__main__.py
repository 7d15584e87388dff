"""`python -P -m modelscope_app.jobs.preparing`: answers what the service asks on standard input, one thing after the other."""

from __future__ import annotations

# The first import of all: what is written later than this counts as changed.
from modelscope_app.jobs.staleness import ImportedFiles  # isort: skip

import os
import sys
import threading
import time
from contextlib import suppress
from queue import SimpleQueue

from modelscope_app.jobs.preparing.preparer import Preparer
from modelscope_app.jobs.protocol import Speaker, take_over_stdout

_GRACE_SECONDS = 10.0
"""From the end of standard input to the end of the process, where a plugin hangs."""


def main() -> None:
    """Answer until standard input ends, or something imported has changed."""
    speaker = Speaker(take_over_stdout())
    lines: SimpleQueue[bytes | None] = SimpleQueue()
    threading.Thread(target=_read, args=(_take_over_stdin(), lines), daemon=True).start()
    preparer = Preparer(speaker, ImportedFiles())
    while (line := lines.get()) is not None and preparer.answers(line):
        pass
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a plugin may have put anything there
            stream.flush()
    os._exit(0)  # a plugin may have left threads that never end


def _read(descriptor: int, lines: SimpleQueue[bytes | None]) -> None:
    """Pass on whole lines. After the last the service is gone, and nobody else would end a plugin that hangs."""
    with os.fdopen(descriptor, "rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                lines.put(line)
    lines.put(None)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def _take_over_stdin() -> int:
    """A private descriptor of standard input; descriptor 0 itself becomes an empty file, so that no plugin reads the messages."""
    private = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return private


if __name__ == "__main__":
    main()
