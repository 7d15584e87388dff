"""A real worker process on pipes, told what to do as the service tells it. A test module opts in with `pytest_plugins`.

PYTEST_DONT_REWRITE: a test module that opts in imports this one before pytest does.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from child_on_pipes import DEADLINE_SECONDS, ChildOnPipes

from modelscope_app.jobs.submission import HostOptions, new_run, open_checkpoints
from modelscope_app.plugin_host import PluginHost, parse_params
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.status import Status, read_status

PLUGINS = ("survivor", "tenant")


class WorkerProcess(ChildOnPipes):
    """One worker."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        super().__init__("modelscope_app.jobs.worker", environment, log)

    def hear_of(self, *words: str) -> dict[str, Any]:
        """The next message with one of these words; others are passed over. Fails where it ended instead."""
        while (said := self.hear()) is not None:
            if said["say"] in words:
                return said
        raise AssertionError(f"the worker ended without saying {' or '.join(words)}; its log: {self.log.read_text()}")

    def run(self, run: RunFolder | Path, **changes: Any) -> None:
        """Tell it to execute a run."""
        folder = run.folder if isinstance(run, RunFolder) else run
        message = {"device": "cpu", "analysis_bytes": 0, "model_bytes": 0, "limit_bytes": None, "others_bytes": 0, **changes}
        self.send(do="run", folder=str(folder), **message)

    def ended(self, run: RunFolder | Path, **changes: Any) -> Status:
        """Have it execute a run to its end; how that ended."""
        folder = run.folder if isinstance(run, RunFolder) else run
        self.run(run, **changes)
        said = self.hear_of("ended", "refused", "short", "never", "stale")
        assert said == {"say": "ended", "folder": str(folder)}, said
        return read_status(folder)

    def cancel(self, run: RunFolder) -> None:
        """Ask for a run's end."""
        self.send(do="cancel", folder=str(run.folder))

    def unload(self, fingerprint: str | None = None, idle_seconds: float = 0.0) -> None:
        """Have models dropped."""
        self.send(do="unload", fingerprint=fingerprint, idle_seconds=idle_seconds)

    def resident(self) -> list[dict[str, Any]]:
        """What is resident, once something has changed there."""
        models = self.hear_of("resident")["models"]
        assert isinstance(models, list)
        return models


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that comes soon."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS:.0f} s for {what}"
        time.sleep(0.01)


def events(run: RunFolder) -> list[dict[str, Any]]:
    """What happened in a run so far."""
    path = run.folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def log_of(run: RunFolder) -> str:
    """What was printed in a run so far."""
    path = run.folder / "log.txt"
    return path.read_text() if path.is_file() else ""


@pytest.fixture
def worker_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the plugins, where workers and this process find them."""
    site = tmp_path / "worker-site"
    for name in PLUGINS:
        install(site, name, (Path(__file__).parent / "jobs" / f"{name}.py").read_text())
    monkeypatch.syspath_prepend(str(site))
    for name in PLUGINS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return site


def install(site: Path, name: str, source: str) -> Path:
    """A plugin of one module, with its distribution; the module's file."""
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[modelscope_app]\n{name} = {name}\n")
    (site / f"{name}.py").write_text(source)
    return site / f"{name}.py"


def uninstall(site: Path, name: str) -> None:
    """The opposite."""
    shutil.rmtree(site / f"{name}-1.0.dist-info")
    (site / f"{name}.py").unlink()


@pytest.fixture
def worker_environment(worker_site: Path) -> dict[str, str]:
    """The environment of a worker that finds the plugins."""
    return {**os.environ, "PYTHONPATH": str(worker_site), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def start_worker(worker_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts a worker that has said hello; each is gone after the test."""
    started: list[WorkerProcess] = []

    def start(**environment: str) -> WorkerProcess:
        worker = WorkerProcess({**worker_environment, **environment}, tmp_path / f"worker-{len(started)}.log")
        started.append(worker)
        assert worker.hear_of("hello")
        return worker

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def worker(start_worker: Callable[..., WorkerProcess]) -> WorkerProcess:
    """One worker."""
    return start_worker()


@pytest.fixture
def queued_run(worker_site: Path, tmp_path: Path) -> Callable[..., RunFolder]:
    """Makes queued run folders, as a preparer does: `queued_run("survivor.training", rows=3)`."""
    made = 0

    def make(analysis: str, *checkpoints: Path, device: str = "auto", dtype: str = "auto", **params: Any) -> RunFolder:
        nonlocal made
        made += 1
        bound = PluginHost().analysis(analysis)
        opened = open_checkpoints(bound, [str(path) for path in checkpoints])
        options = HostOptions(device, dtype, 0, tmp_path / f"run-{made}")
        return new_run(bound, opened, parse_params(bound.analysis.params, params), options)

    return make
