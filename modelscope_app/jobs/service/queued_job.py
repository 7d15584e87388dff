"""A job as the service knows it; what becomes of it is in its run folder."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_app.jobs.service.child import Interpreter
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.queue_record import QueueRecord

if TYPE_CHECKING:
    from modelscope_app.jobs.service.workers import Worker


class QueuedJob:
    """A run that was given to the service and has not ended."""

    def __init__(self, run: RunFolder, record: QueueRecord, device: str) -> None:
        self.run = run
        self.record = record
        self.device = device
        """As asked, `auto` included; or where it was begun before."""
        self.interpreter = Interpreter(record.interpreter, record.python_path)
        self.fingerprints = frozenset(checkpoint.fingerprint for checkpoint in run.job.checkpoints)
        self.worker: Worker | None = None
        """Who executes it, or is about to."""
        self.waiting_for: str | None = None
        self.waits = 0
        """How often it was tried and did not fit, since something last ended."""
        self.short_on: dict[str, float] = {}
        """Devices it did not fit on, and when on the loop's clock that was."""
        self.too_small: set[str] = set()
        """Devices it can never fit on."""
        self.retry_at = 0.0
        """On the loop's clock; a waiting job is not tried before."""
        self.fruitless_starts = 0
        """How often a worker died before it had begun it."""
        self.is_cancelled = False
        """Somebody asked for its end."""
        self.is_over = False
        """It has ended, and is about to leave the queue."""
        self.guard = asyncio.Lock()
        """Held while its run folder is written to."""

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.run.folder

    def to_json(self, position: int | None) -> dict[str, Any]:
        """As clients see it. Reads status.json of a job that a worker has. Raises BadInput for a damaged one."""
        if self.worker is not None:
            said = ended_json(self.run, self.record)
            return {**said, "device": said["device"] or self.worker.device}
        state = "waiting" if self.waiting_for else "queued"
        return {**_shared(self.run, self.record), "state": state, "waiting_for": self.waiting_for, "position": position}


def ended_json(run: RunFolder, record: QueueRecord | None) -> dict[str, Any]:
    """A run as its folder says, in the shape clients see."""
    status = run.read_status()
    return {
        **_shared(run, record),
        "state": status.state,
        "error": status.error,
        "exit_code": status.exit_code,
        "waiting_for": status.waiting_for,
        "device": status.device,
        "stage": status.stage,
        "done": status.done,
        "total": status.total,
        "unit": status.unit,
    }


def _shared(run: RunFolder, record: QueueRecord | None) -> dict[str, Any]:
    need = record.need if record is not None else None
    return {
        "run": run.id,
        "folder": str(run.folder),
        "analysis": run.analysis,
        "state": None,
        "error": None,
        "exit_code": None,
        "waiting_for": None,
        "device": None,
        "submitted": record.submitted if record is not None else None,
        "stage": None,
        "done": None,
        "total": None,
        "unit": None,
        "need": None
        if need is None
        else {"analysis_bytes": need.analysis_bytes, "model_bytes": need.model_bytes, "seconds": need.seconds, "basis": need.basis},
        "position": None,
    }
