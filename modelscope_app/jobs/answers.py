"""What the service answers, as frozen values.

Keys that a newer service adds are passed over; a value of another shape than it should have is a JobFailed that says which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from modelscope_app.api import BadInput, ExitCode, JobFailed, MscopeError, UsageError
from modelscope_app.jobs.address import log_path, service_socket
from modelscope_app.jobs.protocol import API_VERSION
from modelscope_app.runs.atomic import finite
from modelscope_app.runs.queue_record import Need
from modelscope_app.runs.reading import shaped
from modelscope_app.runs.status import FINAL_STATES, State

Value = TypeVar("Value")


Verdict = Literal["fits", "will wait", "does not fit", "unknown"]
"""Whether a job would begin at once."""


class NotRunning(BadInput):
    """No service of this user answers on this machine."""


class UnknownRun(BadInput):
    """There is no such run."""


class Busy(BadInput):
    """The service cannot do that now: the run has ended, or jobs are queued or running."""


class ShuttingDown(BadInput):
    """The service takes nothing more."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """One job: a run that was given to the service."""

    run: str
    """Its id."""
    folder: str
    """The run folder, absolute."""
    analysis: str
    state: State
    error: str | None = None
    """The sentence of a job that failed, was cancelled or was lost."""
    exit_code: int | None = None
    waiting_for: str | None = None
    """The sentence, while `waiting`."""
    device: str | None = None
    """Where it runs; None until it has begun."""
    submitted: float | None = None
    """Unix seconds."""
    stage: str | None = None
    done: float | None = None
    total: float | None = None
    unit: str | None = None
    need: Need | None = None
    """Memory and time it is expected to take."""
    position: int | None = None
    """How many jobs are before it on the queue; None once it has begun."""
    warnings: tuple[str, ...] = ()
    """Sentences about a submission; of a job just submitted alone."""

    @property
    def is_final(self) -> bool:
        """Whether it has ended: done, failed, cancelled or lost."""
        return self.state in FINAL_STATES

    @classmethod
    def from_json(cls, value: Any) -> JobInfo:
        """From the object a service sends. Raises ValueError."""
        need = _object(value).get("need")
        warnings = value.get("warnings") or []
        if not isinstance(warnings, list):
            raise ValueError("'warnings' is no list")
        return _shaped(cls, {**value, "warnings": tuple(warnings), "need": None if need is None else _shaped(Need, need)})


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker process."""

    pid: int
    interpreter: str
    """Absolute path of its Python."""
    run: str | None = None
    """What it executes."""
    since: float | None = None
    """Unix seconds when it was started."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device of the machine, and what the service does on it."""

    device: str
    """`cpu` or `cuda:0`."""
    name: str
    capacity_bytes: int | None = None
    """None until a worker has said."""
    limit_bytes: int | None = None
    """The most that jobs may take, where the settings say."""
    resident_bytes: int = 0
    """Of the models that are resident."""
    workers: tuple[WorkerInfo, ...] = ()
    running: tuple[str, ...] = ()
    """Ids of runs."""
    queued: int = 0

    @classmethod
    def from_json(cls, value: Any) -> DeviceInfo:
        """From the object a service sends. Raises ValueError."""
        workers = tuple(_shaped(WorkerInfo, one) for one in _list(value, "workers"))
        return _shaped(cls, {**value, "workers": workers, "running": tuple(_list(value, "running"))})


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model that a worker keeps on a device between jobs."""

    path: str
    """Of its checkpoint, absolute."""
    fingerprint: str
    device: str
    dtype: str
    memory_bytes: int
    since: float
    """Unix seconds."""
    last_used: float
    """Unix seconds."""
    worker: int | None = None
    """Process that holds it."""


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """The service itself."""

    api: int
    """Version of its API."""
    version: str
    """Of the package it was started from."""
    pid: int
    started: float
    """Unix seconds."""
    host: str
    socket: str
    log: str
    data_dir: str | None = None
    """Where it puts runs that name no folder; None where it does not say."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a job would fit into its device, asked before it is submitted."""

    verdict: Verdict
    sentence: str
    """For people, with the figures; begins with the verdict."""
    need: Need | None = None
    """Memory and time it is expected to take; None where that could not be told."""
    device: str | None = None
    """Where it would run; None where that is not known yet."""
    free_bytes: int | None = None
    """There, with every model unloaded that the job does not use."""
    capacity_bytes: int | None = None
    """Of that device, under the limit in the settings."""

    @classmethod
    def from_json(cls, value: Any) -> Fit:
        """From the object a service sends. Raises ValueError."""
        need = _object(value).get("need")
        fit = _shaped(cls, {**value, "need": None if need is None else _shaped(Need, need)})
        if fit.verdict not in get_args(Verdict):
            raise ValueError(f"{fit.verdict!r} is no verdict")
        return fit


def devices(value: Any) -> tuple[DeviceInfo, ...]:
    """Those of GET /devices. Raises ValueError."""
    return tuple(DeviceInfo.from_json(one) for one in _list(value, "devices"))


def jobs(value: Any) -> tuple[JobInfo, ...]:
    """Those of GET /jobs. Raises ValueError."""
    return tuple(JobInfo.from_json(one) for one in _list(value, "jobs"))


def resident(value: Any) -> tuple[ResidentModel, ...]:
    """Those of GET /checkpoints. Raises ValueError."""
    return tuple(_shaped(ResidentModel, one) for one in _list(value, "resident"))


def health(value: Any) -> ServiceHealth:
    """GET /health. Raises ValueError."""
    return _shaped(ServiceHealth, value)


def unloaded(value: Any) -> int:
    """How many models went, of POST /checkpoints/unload. Raises ValueError."""
    count = _object(value).get("unloaded")
    if not isinstance(count, int) or isinstance(count, bool):
        raise ValueError("'unloaded' is no integer")
    return count


def event(line: bytes) -> dict[str, Any] | None:
    """One line of a stream of events; None for a sign of life. Raises ValueError for what is neither."""
    if not line.strip():
        return None
    value = finite(json.loads(line))
    match value:
        case {"seq": int(), "kind": str()}:
            return dict(value)
    raise ValueError("it is no event")


def read_answer(status: int, api: str | None, body: bytes, read: Callable[[Any], Value], any_version: bool = False) -> Value:
    """The value of an answer. Raises the error it stands for, by the exit code it names.

    `api` is the version its header names. An answer of another version is not read, unless `any_version`.
    """
    check_version(status, api, any_version)
    try:
        value = finite(json.loads(body))
        if status < 400:
            return read(value)
        sentence = _object(value)["error"]
        if not isinstance(sentence, str):
            raise ValueError("'error' is no text")
    except (ValueError, KeyError, RecursionError) as error:
        raise JobFailed(f"the service's answer cannot be read (status {status}: {error}); its log is {log_path()}") from None
    raise _refusal(status, sentence, value.get("exit_code"))


def check_version(status: int, api: str | None, any_version: bool = False) -> None:
    """Raise where the answer is of another API version, or not of this service at all."""
    if api is None:
        if status >= 500:
            raise JobFailed(f"the service failed to answer (status {status}); its log is {log_path()}")
        raise BadInput(
            f"{service_socket()}: what answers there is not the service (status {status}); set MSCOPE_RUNTIME_DIR to another folder"
        )
    if api != str(API_VERSION) and not any_version:
        raise BadInput(
            f"the service that runs speaks version {api} of its API, and this mscope version {API_VERSION}: stop it with "
            "`mscope service stop`, and the next command starts one of this version; or update modelscope-app here"
        )


def _refusal(status: int, sentence: str, exit_code: Any) -> MscopeError:
    kinds: Mapping[int, type[MscopeError]] = {404: UnknownRun, 409: Busy, 503: ShuttingDown}
    if status in kinds:
        return kinds[status](sentence)
    if exit_code == ExitCode.USAGE:
        return UsageError(sentence)
    return BadInput(sentence) if exit_code == ExitCode.BAD_INPUT else JobFailed(sentence)


def _shaped(kind: type[Value], value: Any) -> Value:
    """`shaped`, with keys that mean nothing here left out."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return shaped(kind, {name: item for name, item in _object(value).items() if name in known})


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _list(value: Any, name: str) -> list[Any]:
    found = _object(value).get(name)
    if not isinstance(found, list):
        raise ValueError(f"{name!r} is no list")
    return found
