"""What a client and the service say to each other, without any input or output: both clients act out the same generators.

A generator yields steps and is sent what came of each; a step that failed is thrown in. What it returns is the answer.

What happens when things fail:
- nobody listens: the service is started and asked again, or, for a client that must not start it, NotRunning is raised;
- the service is shutting down: it has accepted nothing, so the client waits for its end, starts another and asks that;
- the connection breaks before an answer: a question is asked again; something that changes the world is not, since it may have
  happened, and an error says so;
- the connection breaks in the middle of events, or nothing is heard for too long: they are asked for again from the first one
  that was not heard, for as long as `PATIENCE_SECONDS`;
- a run whose service was killed is lost and then queued again by the next one: it has not ended until that is settled.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from modelscope_app.api import BadInput, JobFailed, UsageError
from modelscope_app.jobs import answers
from modelscope_app.jobs.address import log_path, service_socket
from modelscope_app.jobs.answers import Fit, JobInfo, NotRunning
from modelscope_app.jobs.protocol import API_HEADER, API_VERSION
from modelscope_app.jobs.starting import absolute_python_path
from modelscope_app.locations import absolute_path
from modelscope_app.runs.queue_record import read_queue_record

Value = TypeVar("Value")

PATIENCE_SECONDS = 60.0
"""For which a client goes on asking for events of a service it hears nothing of."""
SETTLING_SECONDS = 10.0
"""A run of a service that was killed is lost, and queued again, within that."""

_ANSWER_SECONDS = 30.0
_SILENCE_SECONDS = 30.0
"""Three times as long as a stream of events is ever silent."""
_RETRY_SECONDS = 0.1


class NobodyListens(Exception):
    """Thrown into a conversation: there was no connection, so nothing was asked."""


class ConnectionBroke(Exception):
    """Thrown into a conversation: what was asked may have been heard, and the answer was not."""


class TookTooLong(ConnectionBroke):
    """No answer came in time."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request; comes back as a Reply. A stream that was opened before is closed."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    timeout_seconds: float | None = _ANSWER_SECONDS
    any_version: bool = False
    """Leave the API version open: whoever answers is asked."""
    is_stream: bool = False
    """Leave the body of an answer of status 200 to `Read`."""

    @property
    def headers(self) -> dict[str, str]:
        """Of the request."""
        return {} if self.any_version else {API_HEADER: str(API_VERSION)}


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    api: str | None
    """The API version its header names."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Read:
    """The next bytes of the stream; empty at its end."""


@dataclass(frozen=True, slots=True)
class Start:
    """Make sure that a service answers."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let time pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hand:
    """Hand out an event."""

    event: dict[str, Any]


Step = Ask | Read | Start | Sleep | Hand
Conversation = Generator[Step, Any, Value]


@dataclass(frozen=True, slots=True)
class Question(Generic[Value]):
    """A request, and how its answer is read."""

    ask: Ask
    read: Callable[[Any], Value]

    def asked(self, start: bool) -> Conversation[Value]:
        """The conversation about it. `start` says whether the service may be started for it."""
        reply = yield from _replied(self.ask, start)
        return answers.read_answer(reply.status, reply.api, reply.body, self.read, self.ask.any_version)


def submit(
    analysis: str,
    checkpoints: Sequence[str | Path],
    params: Mapping[str, Any] | None,
    device: str,
    dtype: str,
    seed: int,
    out: str | Path | None,
    interpreter: str | None,
) -> Question[JobInfo]:
    """A new job. Paths are read from the working folder of this process. Checking it may take as long as reading its inputs.

    Raises UsageError for what cannot be sent.
    """
    if isinstance(checkpoints, str | Path):
        raise UsageError(f"checkpoints takes a list of paths, as in [{os.fspath(checkpoints)!r}]")
    body = {
        "analysis": analysis,
        "checkpoints": [os.fspath(checkpoint) for checkpoint in checkpoints],
        "params": _plain(params or {}),
        "device": device,
        "dtype": dtype,
        "seed": seed,
        "out": None if out is None else str(absolute_path(out)),
        "cwd": str(Path.cwd()),
        **_environment(interpreter),
    }
    return Question(Ask("POST", "/jobs", body, timeout_seconds=None), JobInfo.from_json)


@dataclass(frozen=True, slots=True)
class EstimateQuestion(Question[Fit]):
    """What a job would come to. A service that is too old to say leaves it unknown."""

    def asked(self, start: bool) -> Conversation[Fit]:
        """The conversation about it."""
        reply = yield from _replied(self.ask, start)
        if reply.status == 404 and reply.api == str(API_VERSION):
            return Fit("unknown", "unknown: the service that runs is too old to say; `mscope service stop` ends it, and the next is newer")
        return answers.read_answer(reply.status, reply.api, reply.body, self.read)


def estimate(
    analysis: str,
    checkpoints: Sequence[str | Path],
    params: Mapping[str, Any] | None,
    device: str,
    dtype: str,
    interpreter: str | None,
) -> Question[Fit]:
    """Whether a job would fit, if it was submitted now. Raises UsageError for what cannot be sent."""
    as_submitted = submit(analysis, checkpoints, params, device, dtype, 0, None, interpreter).ask
    return EstimateQuestion(replace(as_submitted, path="/estimates"), Fit.from_json)


def resume(run: str | Path, interpreter: str | None) -> Question[JobInfo]:
    """A run that ended before its end, on the queue again."""
    return Question(Ask("POST", "/jobs", {"run": _named(run), **_environment(interpreter)}, timeout_seconds=None), JobInfo.from_json)


def jobs() -> Question[tuple[JobInfo, ...]]:
    """All jobs the service knows."""
    return Question(Ask("GET", "/jobs"), answers.jobs)


def job(run: str) -> Question[JobInfo]:
    """One job."""
    return Question(Ask("GET", f"/jobs/{quote(run, safe='')}"), JobInfo.from_json)


def cancel(run: str) -> Question[JobInfo]:
    """Its end is asked for."""
    return Question(Ask("POST", f"/jobs/{quote(run, safe='')}/cancel", {}), JobInfo.from_json)


def devices() -> Question[tuple[answers.DeviceInfo, ...]]:
    """Devices, and what happens on them."""
    return Question(Ask("GET", "/devices"), answers.devices)


def resident() -> Question[tuple[answers.ResidentModel, ...]]:
    """Models that are resident."""
    return Question(Ask("GET", "/checkpoints"), answers.resident)


def unload(checkpoint: str | Path | None) -> Question[int]:
    """Models leave their devices."""
    named = None if checkpoint is None else _named_checkpoint(checkpoint)
    return Question(Ask("POST", "/checkpoints/unload", {"checkpoint": named}), answers.unloaded)


def health() -> Question[answers.ServiceHealth]:
    """The service itself, whatever its version."""
    return Question(Ask("GET", "/health", any_version=True), answers.health)


def shutdown(force: bool) -> Question[None]:
    """The end of the service, whatever its version."""
    return Question(Ask("POST", "/shutdown", {"force": force}, any_version=True), lambda value: None)


def following(run: str, since: int, follow: bool, start: bool) -> Conversation[JobInfo]:
    """Events of a run with sequence numbers from `since` on, each handed out once and in order; how it stands in the end.

    With `follow`, until the run has ended. Raises UnknownRun where there is none.
    """
    heard = time.monotonic()
    lost_since: float | None = None
    expected = since
    is_last = not follow
    while True:
        try:
            path = f"/jobs/{quote(run, safe='')}/events?since={expected}&follow={'false' if is_last else 'true'}"
            reply = yield from _replied(Ask("GET", path, timeout_seconds=_SILENCE_SECONDS, is_stream=True), start)
            if reply.status != 200:
                answers.read_answer(reply.status, reply.api, reply.body, lambda value: None)
            answers.check_version(reply.status, reply.api)
            unfinished = b""
            while part := (yield Read()):
                *lines, unfinished = (unfinished + part).split(b"\n")
                for event in map(_event, lines):
                    if event is not None and event["seq"] >= expected:
                        expected = event["seq"] + 1
                        yield Hand(event)
                    heard = time.monotonic()
            found = yield from job(run).asked(start)
            if is_last:
                return found
            if found.is_final:
                lost_since = lost_since or time.monotonic()
                is_last = not _may_be_queued_again(found, lost_since)
            else:
                lost_since = None
        except ConnectionBroke:
            if time.monotonic() - heard > PATIENCE_SECONDS:
                raise JobFailed(f"nothing was heard of the service for {PATIENCE_SECONDS:.0f} s; its log is {log_path()}") from None
        if not is_last:
            yield Sleep(_RETRY_SECONDS)


def _replied(ask: Ask, start: bool) -> Conversation[Reply]:
    """What the service answered, started and asked again where that does no harm."""
    is_question = ask.method == "GET"
    failing_since: float | None = None
    """Not since it was asked: a submission that took long to check may be refused by a service that ends meanwhile."""
    while True:
        try:
            reply: Reply | None = yield ask
            assert reply is not None
            if reply.status != 503:
                return reply
        except NobodyListens:
            if not start:
                raise NotRunning("the service is not running; start it with `mscope service start`") from None
            reply = None
        except TookTooLong:
            if ask.is_stream:
                raise  # whoever follows a run has more patience
            raise JobFailed(f"the service does not answer at {service_socket()}; its log is {log_path()}") from None
        except ConnectionBroke:
            if not is_question:
                raise JobFailed(
                    "the service went away before it answered; `mscope runs list` shows whether it had taken that up, and "
                    f"{log_path()} what happened"
                ) from None
            reply = None
        failing_since = failing_since or time.monotonic()
        if time.monotonic() - failing_since > PATIENCE_SECONDS or (reply is not None and not start):
            if reply is not None:
                return reply
            raise JobFailed(f"the service keeps going away before it answers; its log is {log_path()}")
        yield Sleep(_RETRY_SECONDS)
        if start:
            yield Start()


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        return answers.event(line)
    except (ValueError, RecursionError):
        raise ConnectionBroke from None


def _may_be_queued_again(found: JobInfo, lost_since: float) -> bool:
    """Whether it is lost for the moment: a service that has just started has not looked at it yet."""
    if found.state != "lost" or time.monotonic() - lost_since > SETTLING_SECONDS:
        return False
    try:
        return read_queue_record(Path(found.folder)) is not None
    except BadInput:
        return False


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Params as JSON holds them: paths as text, tuples as lists."""

    def written(value: Any) -> Any:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise TypeError(f"{type(value).__name__} is none of text, number, true, false, list and path")

    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(params), default=written, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"params cannot be sent to the service ({error})") from None
    return found


def _environment(interpreter: str | None) -> dict[str, str | None]:
    return {"interpreter": interpreter or sys.executable, "python_path": absolute_python_path()}


def _named(reference: str | Path) -> str:
    """A path made absolute; the id of a run as it is."""
    return str(absolute_path(reference)) if _is_path(reference) else str(reference)


def _named_checkpoint(reference: str | Path) -> str:
    """A path made absolute, `hf:org/name` resolved; a fingerprint as it is."""
    from modelscope_app.checkpoints.finding import absolute
    from modelscope_app.checkpoints.hub_cache import PREFIX

    return str(absolute(reference)) if str(reference).startswith(PREFIX) or _is_path(reference) else str(reference)


def _is_path(reference: str | Path) -> bool:
    return isinstance(reference, Path) or "/" in reference or reference.startswith((".", "~")) or os.path.lexists(reference)
