"""A process in a pseudo-terminal, for tests that look at what it writes there and when, byte by byte."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

PATIENCE_SECONDS = 60.0
"""Far longer than anything takes; a test that waits so long has failed."""
_LONGEST_REPAINT_SECONDS = 0.1
"""What is written within this time of its first byte is one repaint: what has to be laid out anew comes a few frames after the rest."""


class RawTerminal:
    """One process and what it has written."""

    def __init__(self, master: int) -> None:
        self._master = master
        self.written = b""
        """All of it so far."""

    def _read(self, seconds: float) -> bytes:
        ready, _, _ = select.select([self._master], [], [], max(0.0, seconds))
        try:
            found = os.read(self._master, 1 << 20) if ready else b""
        except OSError:  # the process has ended
            found = b""
        self.written += found
        return found

    def press(self, keys: bytes) -> None:
        """Write to it, as a terminal does when a key is pressed or the mouse moves."""
        os.write(self._master, keys)

    def wait_for(self, text: bytes, since: int = 0) -> None:
        """Until this was written after the first `since` bytes."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.written[since:]:
            self._read(0.1)
            assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:.0f} s for {text!r}; last: {self.written[-2000:]!r}"

    def press_and_wait(self, keys: bytes, text: bytes) -> None:
        """Until this is written in answer to keys."""
        since = len(self.written)
        self.press(keys)
        self.wait_for(text, since)

    def repaints(self, seconds: float) -> list[tuple[float, bytes]]:
        """What is written in the next seconds, by repaint: when it began, and its bytes."""
        began = time.monotonic()
        found: list[tuple[float, bytes]] = []
        while (left := began + seconds - time.monotonic()) > 0:
            if part := self._read(left):
                now = time.monotonic() - began
                if found and now - found[-1][0] < _LONGEST_REPAINT_SECONDS:
                    found[-1] = (found[-1][0], found[-1][1] + part)
                else:
                    found.append((now, part))
        return found


@contextmanager
def raw_terminal(words: Sequence[str], environment: Mapping[str, str], columns: int = 100, lines: int = 30) -> Iterator[RawTerminal]:
    """Run a command in a pseudo-terminal, with `environment` on top of this process' own; it is killed in the end."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    whole = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", "COLUMNS": str(columns), "LINES": str(lines), **environment}
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=whole, start_new_session=True)
    os.close(slave)
    try:
        yield RawTerminal(master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
