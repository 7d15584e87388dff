"""`python -P -m modelscope_app.jobs.preparing`: answers what the service asks on standard input, one thing after the other."""

from __future__ import annotations

# The first import of all: what is written later than this counts as changed.
from modelscope_app.jobs.staleness import ImportedFiles  # isort: skip

import os
import threading
import time
from queue import SimpleQueue

from modelscope_app.jobs.preparing.preparer import Preparer
from modelscope_app.jobs.protocol import Speaker, leave, take_over_stdin, take_over_stdout

_GRACE_SECONDS = 10.0
"""From the end of standard input to the end of the process, where a plugin hangs."""


def main() -> None:
    """Answer until standard input ends, or something imported has changed."""
    speaker = Speaker(take_over_stdout())
    lines: SimpleQueue[bytes | None] = SimpleQueue()
    threading.Thread(target=_read, args=(take_over_stdin(), lines), daemon=True).start()
    preparer = Preparer(speaker, ImportedFiles())
    while (line := lines.get()) is not None and preparer.answers(line):
        pass
    leave(0)


def _read(descriptor: int, lines: SimpleQueue[bytes | None]) -> None:
    """Pass on whole lines. After the last the service is gone, and nobody else would end a plugin that hangs."""
    with os.fdopen(descriptor, "rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                lines.put(line)
    lines.put(None)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
