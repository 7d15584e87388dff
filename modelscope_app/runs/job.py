"""What was asked: job.json, written once when a run is created and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelscope_app.api import BadInput, neutralised
from modelscope_app.runs.reading import fits, json_value, shaped

FORMAT = 1
"""Raised when a run folder of this version cannot be read by an older one."""


@dataclass(frozen=True, slots=True)
class JobCheckpoint:
    """A checkpoint (or series) a job was given."""

    path: str
    """Absolute."""
    fingerprint: str
    """Of its content; for a series, of all members."""
    series: bool = False


@dataclass(frozen=True, slots=True)
class JobInput:
    """What a param names for reading, so that resuming on something else is noticed."""

    param: str
    kind: str
    """`data-file`, `file`, `checkpoint` or `run`."""
    path: str
    """Absolute, or `hf:org/name`."""
    fingerprint: str
    """Of its content when the job was submitted."""


@dataclass(frozen=True, slots=True)
class Job:
    """One execution of an analysis, as submitted."""

    id: str
    analysis: str
    analysis_version: int
    plugin: Mapping[str, str]
    """`distribution` and `version` of the plugin."""
    params: Mapping[str, Any]
    checkpoints: tuple[JobCheckpoint, ...]
    inputs: tuple[JobInput, ...]
    device: str
    """As asked: `auto`, `cpu`, `cuda:0`. The one it got is in status.json."""
    dtype: str
    """As asked: `auto`, `float32` ..."""
    seed: int
    created: str
    """UTC, ISO 8601, with or without microseconds."""
    command: str
    """The headless command that does it again."""
    interpreter: str
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def created_at(self) -> datetime:
        """`created` as a time; one that names no zone is UTC. Raises ValueError for what is no time."""
        time = datetime.fromisoformat(self.created)
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def read_job(path: Path) -> Job:
    """The job in `path` (a job.json), its id neutralised. Raises BadInput when it is not one, or of a newer format."""
    try:
        return _job(json_value(path))
    except FileNotFoundError:
        raise BadInput(f"{path.parent}: not a run folder (it has no job.json)") from None
    except NewerFormat as error:
        raise BadInput(f"{path}: {error}") from None
    except ValueError as error:
        raise BadInput(f"{path}: not a readable job.json ({error})") from None


class NewerFormat(ValueError):
    """A later version wrote it."""


def _job(value: Any) -> Job:
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    if fits(value.get("format"), int) and value["format"] > FORMAT:
        raise NewerFormat(f"written by a newer version (format {value['format']}, this one reads {FORMAT}); update modelscope-app")
    for name, kind in (("checkpoints", JobCheckpoint), ("inputs", JobInput)):
        if not isinstance(value.get(name), list):
            raise ValueError(f"its {name!r} is no list")
        try:
            value[name] = tuple(shaped(kind, item) for item in value[name])
        except ValueError as error:
            raise ValueError(f"one of its {name}: {error}") from None
    job = shaped(Job, value)
    try:
        _ = job.created_at
    except ValueError:
        raise ValueError(f"it was created {job.created!r}, which is no time in ISO 8601") from None
    return replace(job, id=neutralised(job.id))
