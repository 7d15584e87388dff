"""What tests of the terminal app share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars
import pytest

from modelscope_app.api import View
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.job import Job, JobCheckpoint
from modelscope_app.runs.status import Status, write_status

MadeRun = Callable[..., RunFolder]


@pytest.fixture(autouse=True)
def own_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test finds the plugins there are for it."""
    monkeypatch.setattr("modelscope_app.tui.plugins._shared", None)


@pytest.fixture
def colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app as it is in a terminal with all colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def made_run(tmp_path: Path) -> MadeRun:
    """Writes run folders: `made_run(tables={...}, views=[...], facts={...}, state="done")`."""

    def make(
        tables: Mapping[str, polars.DataFrame] | None = None,
        views: list[View] | None = None,
        facts: Mapping[str, Any] | None = None,
        *,
        state: str = "done",
        error: str | None = None,
        id: str = "20260102-030405-weights-stats-abcd",
        analysis: str = "weights.stats",
        checkpoint: str = "/models/tiny",
        params: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> RunFolder:
        job = Job(
            id=id,
            analysis=analysis,
            analysis_version=1,
            plugin={"distribution": "modelscope-app", "version": "0.1.0"},
            params=params or {},
            checkpoints=(JobCheckpoint(checkpoint, "fingerprint"),),
            inputs=(),
            device="auto",
            dtype="auto",
            seed=0,
            created="2026-01-02T03:04:05+00:00",
            command=f"mscope run {analysis} {checkpoint}",
            interpreter="/usr/bin/python3",
        )
        run = RunFolder.create(folder or tmp_path / "runs" / id, job)
        for name, frame in (tables or {}).items():
            run.write_table(name, frame)
        for view in views or []:
            run.write_view(view)
        run.write_facts(facts or {})
        write_status(run.folder, Status(state=state, error=error, started=1767323045.0, finished=1767323046.0))  # type: ignore[arg-type]
        return run

    return make
