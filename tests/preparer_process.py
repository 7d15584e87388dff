"""A real preparer process on pipes, asked as the service asks it. A test module opts in with `pytest_plugins`.

PYTEST_DONT_REWRITE: a test module that opts in imports this one before pytest does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from child_on_pipes import ChildOnPipes


class PreparerProcess(ChildOnPipes):
    """One preparer."""

    def __init__(self, environment: Mapping[str, str], log: Path, before_exec: Callable[[], None] | None = None) -> None:
        super().__init__("modelscope_app.jobs.preparing", {**environment, "OMP_NUM_THREADS": "1"}, log, before_exec)

    def ask(self, **message: Any) -> dict[str, Any]:
        """What it answers to a message. Fails where it ended instead."""
        self.send(**message)
        said = self.hear()
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
        self.end_input()
        return self.exit_code()


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
