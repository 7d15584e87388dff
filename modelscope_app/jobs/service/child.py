"""A child process that speaks `protocol`: started by exec, in a session of its own, with a log for what it prints."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, NamedTuple

from modelscope_app.jobs.address import log_path
from modelscope_app.jobs.protocol import encode

_LONGEST_LINE = 16 << 20
_LAST_BYTES = 8192

LOG_FORMAT = "%(asctime)s service %(levelname)s %(message)s"
"""Of the service's own lines in the log."""
_SERVICE_LINE = re.compile(r"\S+ \S+ service [A-Z]+ ")

log = logging.getLogger(__name__)


class Interpreter(NamedTuple):
    """The Python a job runs with; environments may share a service."""

    path: str
    python_path: str | None
    """PYTHONPATH."""


class Child:
    """One child process."""

    def __init__(self, module: str, interpreter: Interpreter) -> None:
        self.module = module
        self.interpreter = interpreter
        self._process: asyncio.subprocess.Process | None = None
        self._log_begins = 0

    @property
    def pid(self) -> int:
        """Its process and group; 0 before it was started."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Start it. Raises OSError where there is no such interpreter."""
        environment = {**os.environ, "PYTHONPATH": self.interpreter.python_path or ""}
        if not self.interpreter.python_path:
            del environment["PYTHONPATH"]
        with log_path().open("ab") as errors:
            self._log_begins = errors.tell()
            self._process = await asyncio.create_subprocess_exec(
                *(self.interpreter.path, "-P", "-m", self.module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                cwd="/",
                env=environment,
                start_new_session=True,
                limit=_LONGEST_LINE,
            )

    def send(self, **message: Any) -> None:
        """Write a message; one that has ended is noticed by whoever reads from it."""
        stdin = self._process.stdin if self._process is not None else None
        if stdin is not None and not stdin.is_closing():
            stdin.write(encode(message))

    def dismiss(self) -> None:
        """End its standard input, which tells it to end."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its whole process group."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """What it says, until it ends. A child that says what is no message is killed."""
        assert self._process is not None and self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
                if not line:
                    return
                message = json.loads(line)
                if not isinstance(message, dict) or not isinstance(message.get("say"), str):
                    raise ValueError("no message")
            except ValueError as error:
                log.error("process %d (%s) said what it should not (%s) and is killed", self.pid, self.module, error)
                self.signal(signal.SIGKILL)
                return
            yield message

    def last_words(self) -> str:
        """The last line that stands in the log since it was started and is not the service's own; for a sentence on why it ended."""
        try:
            with log_path().open("rb") as stream:
                stream.seek(max(self._log_begins, stream.seek(0, os.SEEK_END) - _LAST_BYTES))
                lines = stream.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        said = (line.strip() for line in reversed(lines) if not _SERVICE_LINE.match(line))
        return next((line for line in said if line), "")

    async def ended(self) -> int:
        """Wait for its end, end what it left behind in its group, and return the exit code (negative: the signal)."""
        assert self._process is not None
        code = await self._process.wait()
        self.signal(signal.SIGKILL)
        return code


def how_it_ended(code: int) -> str:
    """What an exit code says, as the end of a sentence that begins with who it was.

    >>> how_it_ended(-11)
    'was ended by SIGSEGV'
    >>> how_it_ended(3)
    'ended with exit code 3'
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGKILL:
        return "was killed (SIGKILL), by somebody or by the system for want of memory"
    return f"was ended by {name}"
