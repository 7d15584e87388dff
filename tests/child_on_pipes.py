"""A child process of the service, run on pipes as the service runs it: what its tests have in common."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

DEADLINE_SECONDS = 60.0
"""Generous: what is waited for comes within a second or two on an idle machine."""


class ChildOnPipes:
    """One child process that speaks lines of JSON; its standard error is kept in a file."""

    def __init__(self, module: str, environment: Mapping[str, str], log: Path, before_exec: Callable[[], None] | None = None) -> None:
        self.log = log
        self.heard: list[dict[str, Any]] = []
        """Everything it has said so far."""
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd="/",
                env=dict(environment),
                start_new_session=True,
                preexec_fn=before_exec,
            )
        self._pending = b""

    def write(self, line: bytes) -> None:
        """Write a line, whatever it is."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def send(self, **message: Any) -> None:
        """Write a message."""
        self.write(json.dumps(message).encode())

    def hear(self) -> dict[str, Any] | None:
        """The next thing it says; None when it ended."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while b"\n" not in self._pending:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"nothing said for {DEADLINE_SECONDS:.0f} s; the process' log: {self.log.read_text()}"
            read = os.read(descriptor, 1 << 16)
            if not read:
                assert not self._pending, self._pending
                return None
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        said = json.loads(line)
        assert isinstance(said, dict)
        self.heard.append(said)
        return said

    def end_input(self) -> None:
        """End its standard input, as the service's own end does."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def exit_code(self) -> int:
        """Wait for its end."""
        return self.process.wait(DEADLINE_SECONDS)

    def kill(self) -> None:
        """Leave nothing of it, nor of what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
