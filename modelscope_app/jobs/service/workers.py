"""A worker as the service sees it: a child process, the device it was given, what it executes and what is resident there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from modelscope_app.jobs.service.child import Child, Interpreter

if TYPE_CHECKING:
    from modelscope_app.jobs.service.queued_job import QueuedJob

MODULE = "modelscope_app.jobs.worker"


class Facts(NamedTuple):
    """What a worker of an interpreter has said of the machine."""

    devices: tuple[str, ...]
    names: dict[str, str]
    capacity_bytes: dict[str, int]


class Worker:
    """One worker process. It owns a device from its first job on."""

    def __init__(self, interpreter: Interpreter) -> None:
        self.interpreter = interpreter
        self.child = Child(MODULE, interpreter)
        self.device: str | None = None
        self.job: QueuedJob | None = None
        self.is_ready = False
        """It has said hello."""
        self.is_leaving = False
        """It was told to end, or said that it will."""
        self.resident: list[dict[str, Any]] = []
        self.since = time.time()
        self.idle_since = 0.0
        """On the loop's clock."""

    @property
    def is_idle(self) -> bool:
        """Whether it could begin a job at once."""
        return self.is_ready and not self.is_leaving and self.job is None

    @property
    def resident_bytes(self) -> int:
        """Of all models it holds."""
        return sum(model["memory_bytes"] for model in self.resident)

    @property
    def held_bytes(self) -> int:
        """What it holds of its device, and what the job it has is about to take."""
        if self.job is None:
            return self.resident_bytes
        need = self.job.record.need
        return self.resident_bytes + need.analysis_bytes + (0 if self.holds(self.job.fingerprints) else need.model_bytes)

    def holds(self, fingerprints: frozenset[str]) -> bool:
        """Whether a model of one of these checkpoints is resident."""
        return any(model["fingerprint"] in fingerprints for model in self.resident)

    def dismiss(self) -> None:
        """Tell it to end."""
        self.is_leaving = True
        self.child.dismiss()


def facts(hello: dict[str, Any]) -> Facts:
    """What a hello says. Raises KeyError, TypeError or ValueError for one that says something else."""
    devices = [(str(one["device"]), str(one.get("name") or one["device"]), int(one["capacity_bytes"])) for one in hello["devices"]]
    return Facts(
        tuple(device for device, _, _ in devices),
        {device: name for device, name, _ in devices},
        {device: capacity for device, _, capacity in devices},
    )
