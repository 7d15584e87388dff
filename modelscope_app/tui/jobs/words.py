"""How jobs read: state, progress, rate and remaining time as text, with a sign for each state beside its word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from modelscope_app.api import neutralised
from modelscope_app.rendering.wording import bytes_text, count_text, progress_text

if TYPE_CHECKING:
    from modelscope_app.jobs.answers import DeviceInfo, JobInfo
    from modelscope_app.tui.jobs.snapshot import JobsSnapshot

SIGNS: Mapping[str, str] = {
    "queued": "·",
    "waiting": "~",
    "running": ">",
    "cancelling": "x",
    "done": "+",
    "failed": "!",
    "cancelled": "-",
    "lost": "?",
}
"""One character for each state; the word stands beside it."""


def state_text(state: str) -> str:
    """A state with its sign.

    >>> state_text("failed")
    '! failed'
    """
    return f"{SIGNS.get(state, ' ')} {state}"


def progress_of(job: JobInfo, rate: float | None) -> str:
    """Where a job stands: `moments: 50 of 200 tensors, 5 tensors/s, 30 s left`, or why it waits."""
    if job.state == "waiting":
        return neutralised(job.waiting_for or "waits for memory", 300)
    if job.state == "queued":
        return "next" if not job.position else f"{count_text(job.position, 'job')} before it"
    if job.is_final:
        return neutralised(job.error or "", 300)
    if job.done is None:
        return neutralised(job.stage or "", 60)
    stage, unit = neutralised(job.stage or "", 40), neutralised(job.unit or "", 20)
    return progress_text(stage, job.done, job.total, unit, rate or 0.0, 1.0)


def share_of(job: JobInfo) -> float | None:
    """How much of its stage is done, 0 to 1; None where that is not known."""
    if job.done is None or not job.total:
        return None
    return min(1.0, max(0.0, job.done / job.total))


def bar_of(share: float, cells: int, ascii_only: bool = False) -> str:
    """A share as a bar with its percentage, so that it reads without colour.

    >>> bar_of(0.5, 8, ascii_only=True)
    '[####    ]  50%'
    """
    full = int(share * cells)
    if ascii_only:
        return f"[{'#' * full}{' ' * (cells - full)}] {int(share * 100):3d}%"
    return f"{'━' * full}{'─' * (cells - full)} {int(share * 100):3d}%"


def device_text(device: DeviceInfo, snapshot: JobsSnapshot) -> str:
    """A device in a few words: what models take of it."""
    models = [model for model in snapshot.resident if model.device == device.device]
    capacity = device.limit_bytes if device.limit_bytes is not None else device.capacity_bytes
    of = f" of {bytes_text(capacity)}" if capacity else ""
    return f"{neutralised(device.device)} {count_text(len(models), 'model')} {bytes_text(device.resident_bytes)}{of}"


def checkpoint_name(path: str) -> str:
    """What a checkpoint is called in a line of a list."""
    return neutralised(Path(path).name or path, 60)
