"""How a run stands: status.json, beside the lock that says whether somebody is still at it.

A free lock beside an unfinished state means the run was lost, and nobody has to have been there to write that down.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from modelscope_app.api import BadInput, neutralised
from modelscope_app.runs.atomic import write_json
from modelscope_app.runs.lock import RunLock, is_locked
from modelscope_app.runs.reading import json_value, shaped

__all__ = [
    "FINAL_STATES",
    "NOT_BEGUN_STATES",
    "RESUMABLE_STATES",
    "RunLock",
    "Status",
    "is_locked",
    "read_status",
    "read_stored_status",
    "write_status",
]

State = Literal["queued", "waiting", "running", "cancelling", "done", "failed", "cancelled", "lost"]
FINAL_STATES: frozenset[State] = frozenset({"done", "failed", "cancelled", "lost"})
RESUMABLE_STATES: frozenset[State] = frozenset({"queued", "failed", "cancelled", "lost"})
"""A run is `queued` for ever when its process ended before it began."""
NOT_BEGUN_STATES: frozenset[State] = frozenset({"queued", "waiting"})


@dataclass(frozen=True, slots=True)
class Status:
    """One moment of a run."""

    state: State
    stage: str | None = None
    done: float | None = None
    total: float | None = None
    unit: str | None = None
    error: str | None = None
    """The sentence, when failed, cancelled or lost; neutralised."""
    exit_code: int | None = None
    started: float | None = None
    """Unix seconds of the latest start."""
    finished: float | None = None
    pid: int | None = None
    host: str | None = None
    peak_memory_bytes: int | None = None
    """Most resident memory of the process while the analysis ran."""
    memory_before_bytes: int | None = None
    """Resident memory when the analysis began, torch imported and checkpoint opened."""
    attempts: int = 0
    device: str | None = None
    """Where it runs, `cpu` or `cuda:0`; chosen when it first begins, and kept when it is resumed."""
    threads: int | None = None
    """Torch threads, fixed when it first begins: part of what makes a resumed run equal an uninterrupted one."""
    waiting_for: str | None = None
    """The sentence, while `waiting`; neutralised."""
    device_peak_bytes: int | None = None
    """Most memory the analysis took on its device, beyond the models it was given."""

    @property
    def seconds(self) -> float | None:
        """How long the latest attempt took, or has taken so far."""
        if self.started is None:
            return None
        return (self.finished or time.time()) - self.started

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def read_status(folder: Path) -> Status:
    """The status of a run, `lost` when nobody holds the lock of an unfinished run. Raises BadInput for a broken file."""
    status = read_stored_status(folder)
    if status.state in FINAL_STATES or is_locked(folder):
        return status
    status = read_stored_status(folder)  # it may have finished and let go between the two looks
    if status.state in FINAL_STATES or status.state in NOT_BEGUN_STATES:
        return status
    return replace(status, state="lost", error=status.error or "its process ended without a word")


def write_status(folder: Path, status: Status) -> None:
    """Replace the status."""
    write_json(folder / "status.json", status.to_json())


def read_stored_status(folder: Path) -> Status:
    """What status.json says, whoever is at the run. Raises BadInput for a broken file."""
    path = folder / "status.json"
    try:
        status = shaped(Status, json_value(path))
    except FileNotFoundError:
        raise BadInput(f"{folder}: not a run folder (it has no status.json)") from None
    except ValueError as error:
        raise BadInput(f"{path}: not a readable status ({error})") from None
    if status.error is None and status.waiting_for is None:
        return status
    return replace(
        status,
        error=None if status.error is None else neutralised(status.error),
        waiting_for=None if status.waiting_for is None else neutralised(status.waiting_for),
    )
