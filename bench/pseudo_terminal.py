"""A process with a terminal of its own, keys written to it and what it paints read back, for benchmarks."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

COLUMNS, LINES = 120, 40
_QUIET_SECONDS = 0.12


class PseudoTerminal:
    """A process with a terminal of its own."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str] | None = None, which: str = "") -> None:
        """Start it now, with `environment` on top of this process' own. `which` names it in messages."""
        self.which = which or words[0]
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        whole = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "TEXTUAL_ANIMATIONS": "none", **(environment or {})}
        self._began = time.perf_counter()
        self._process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=whole, start_new_session=True)
        os.close(slave)

    def _read(self, seconds: float) -> bytes:
        ready, _, _ = select.select([self._master], [], [], seconds)
        return os.read(self._master, 1 << 20) if ready else b""

    def press(self, keys: bytes) -> None:
        """Write to it."""
        if keys:
            os.write(self._master, keys)

    def drain(self, quiet: float = _QUIET_SECONDS) -> None:
        """Wait until it has been still."""
        while self._read(quiet):
            pass

    def until(self, text: bytes) -> float:
        """Seconds from its start until this is on the screen."""
        return self._wait_for(text, self._began)

    def timed(self, keys: bytes, text: bytes) -> float:
        """Seconds from these keys until this is on the screen."""
        self.drain()
        began = time.perf_counter()
        self.press(keys)
        seconds = self._wait_for(text, began)
        self.drain()
        return seconds

    def _wait_for(self, text: bytes, began: float) -> float:
        found = b""
        while text not in found:
            found += self._read(5)
            if time.perf_counter() - began > 60:
                raise SystemExit(f"{self.which}: {text!r} was not painted within a minute")
        return time.perf_counter() - began

    def key_to_paint(self, key: bytes, quiet: float = _QUIET_SECONDS) -> tuple[float, float]:
        """Seconds to the first and to the last byte that answer a key, pressed when it has been still for `quiet` seconds."""
        self.drain(quiet)
        began = time.perf_counter()
        self.press(key)
        first = last = 0.0
        while self._read(quiet if first else 5):
            last = time.perf_counter() - began
            first = first or last
        return first, last

    def resident_mb(self) -> float:
        """Of the process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
        os.close(self._master)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
