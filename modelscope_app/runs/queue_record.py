"""queue.json: that the service is to execute a run, and what it needs to know for that without opening a checkpoint.

It is there from submission until the run has ended, so a service that was killed finds its queue again in the run folders.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from modelscope_app.api import BadInput
from modelscope_app.runs.atomic import write_json
from modelscope_app.runs.reading import json_value, shaped

FILE_NAME = "queue.json"

Basis = Literal["declared", "earlier runs", "unknown"]


@dataclass(frozen=True, slots=True)
class Need:
    """Memory and time a job is expected to take."""

    analysis_bytes: int = 0
    """On the device, beyond its models."""
    model_bytes: int = 0
    """All models it has built, in the dtype asked for."""
    seconds: float | None = None
    basis: Basis = "unknown"
    """Where `analysis_bytes` comes from."""
    declared_bytes: int | None = None
    """What the analysis itself says it takes; None where it says nothing."""

    @property
    def total_bytes(self) -> int:
        """On an empty device."""
        return self.analysis_bytes + self.model_bytes


@dataclass(frozen=True, slots=True)
class QueueRecord:
    """A run that waits for the service, or is executed by one of its workers."""

    submitted: float
    """Unix seconds; the queue's order."""
    host: str
    """Name of the machine whose service it was given to; run folders may be shared between machines."""
    interpreter: str
    """Absolute path of the Python that executes it."""
    python_path: str | None = None
    """PYTHONPATH there."""
    need: Need = field(default_factory=Need)
    requeues: int = 0
    """How often it was taken up again after a service was lost."""

    def write(self, folder: Path) -> None:
        """Put it into a run folder."""
        write_json(folder / FILE_NAME, asdict(self))


def read_queue_record(folder: Path) -> QueueRecord | None:
    """The record of a run folder; None where the run was not given to a service, or has ended. Raises BadInput for a damaged one."""
    path = folder / FILE_NAME
    try:
        value: Any = json_value(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise BadInput(f"{path}: not a readable queue record ({error})") from None
    try:
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        return shaped(QueueRecord, {**value, "need": shaped(Need, value.get("need", {}))})
    except ValueError as error:
        raise BadInput(f"{path}: not a readable queue record ({error})") from None


def drop_queue_record(folder: Path) -> None:
    """The run has ended."""
    (folder / FILE_NAME).unlink(missing_ok=True)
