"""A real preparer process on pipes, asked as the service asks it. A test module opts in with `pytest_plugins`.

PYTEST_DONT_REWRITE: a test module that opts in imports this one before pytest does.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

DEADLINE_SECONDS = 60.0
"""Generous: what is waited for comes within milliseconds on an idle machine."""


class PreparerProcess:
    """One preparer; its standard error is kept in a file."""

    def __init__(self, environment: Mapping[str, str], log: Path, before_exec: Callable[[], None] | None = None) -> None:
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "modelscope_app.jobs.preparing"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd="/",
                env={**environment, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=before_exec,
            )
        self._pending = b""

    def send(self, line: bytes) -> None:
        """Write a line, whatever it is."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """The next thing it says; None when it ended."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while b"\n" not in self._pending:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the preparer said nothing for {DEADLINE_SECONDS:.0f} s; its log: {self.log.read_text()}"
            read = os.read(descriptor, 1 << 16)
            if not read:
                assert not self._pending, self._pending
                return None
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        said = json.loads(line)
        assert isinstance(said, dict)
        return said

    def ask(self, **message: Any) -> dict[str, Any]:
        """What it answers to a message. Fails where it ended instead."""
        self.send(json.dumps(message).encode())
        said = self.answer()
        assert said is not None, f"the preparer ended; its log: {self.log.read_text()}"
        return said

    def prepare(self, analysis: str, *checkpoints: Any, **changes: Any) -> dict[str, Any]:
        """Its answer to a submission of that analysis."""
        return self.ask(**request(analysis, *checkpoints, **changes))

    def prepared(self, analysis: str, *checkpoints: Any, **changes: Any) -> dict[str, Any]:
        """As `prepare`. Fails where it was refused."""
        said = self.prepare(analysis, *checkpoints, **changes)
        assert said["say"] == "prepared", said
        return said

    def end(self) -> int:
        """End its standard input, and give back its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(DEADLINE_SECONDS)

    def kill(self) -> None:
        """Leave nothing of it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def request(analysis: str, *checkpoints: Any, **changes: Any) -> dict[str, Any]:
    """A whole request to prepare that analysis."""
    host = {"device": "auto", "dtype": "auto", "seed": 0, "out": None, "cwd": None}
    return {
        "do": "prepare",
        "id": 1,
        "analysis": analysis,
        "checkpoints": [str(path) for path in checkpoints],
        "params": {},
        **host,
        **changes,
    }


@pytest.fixture
def plugin_site(tmp_path: Path) -> Path:
    """A folder with the plugin `submitted` and its distribution."""
    site = tmp_path / "site"
    (site / "submitted-1.0.dist-info").mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "jobs" / "submitted.py", site)
    (site / "submitted-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: submitted\nVersion: 1.0\n")
    (site / "submitted-1.0.dist-info" / "entry_points.txt").write_text("[modelscope_app]\nsubmitted = submitted\n")
    return site


@pytest.fixture
def site_environment(plugin_site: Path) -> dict[str, str]:
    """The environment of a process that finds it."""
    return {**os.environ, "PYTHONPATH": str(plugin_site), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def start_preparer(site_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., PreparerProcess]]:
    """Starts a preparer; each is gone after the test."""
    started: list[PreparerProcess] = []

    def start(before_exec: Callable[[], None] | None = None, **environment: str) -> PreparerProcess:
        started.append(PreparerProcess({**site_environment, **environment}, tmp_path / f"preparer-{len(started)}.log", before_exec))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def preparer(start_preparer: Callable[..., PreparerProcess]) -> PreparerProcess:
    """One preparer."""
    return start_preparer()
