"""Runs for tests, made by hand: a job that any field can be changed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.job import Job, JobCheckpoint


def made_job(**changes: Any) -> Job:
    """A job of weights.stats on one checkpoint."""
    values: dict[str, Any] = {
        "id": "20260101-000000-weights-stats-abcd",
        "analysis": "weights.stats",
        "analysis_version": 1,
        "plugin": {"distribution": "modelscope-app", "version": "0"},
        "params": {"bins": 64},
        "checkpoints": (JobCheckpoint("/models/tiny", "0" * 64),),
        "inputs": (),
        "device": "cpu",
        "dtype": "auto",
        "seed": 0,
        "created": "2026-01-01T00:00:00Z",
        "command": "mscope run weights.stats /models/tiny",
        "interpreter": "python",
    }
    return Job(**{**values, **changes})


def made_run(folder: Path, **changes: Any) -> RunFolder:
    """A queued run in `folder`, with that folder's name as its id unless told."""
    return RunFolder.create(folder, made_job(**{"id": folder.name, **changes}))
