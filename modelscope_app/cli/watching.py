"""Following a run from its folder until it ends, whoever executes it.

The folder says all there is to say, so nothing is asked of the service but that it lives: a run that was given to it goes on only
with one. Where it is gone, it is started again, which is how the queue of a killed service comes back. A run that was lost with its
service may be queued again within seconds; it counts as lost when it was not.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from modelscope_app.api import BadInput, MscopeError, neutralised
from modelscope_app.cli.progress import Watcher
from modelscope_app.jobs.listener import Listener
from modelscope_app.runs.events import EventReader
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.queue_record import QueueRecord, read_queue_record
from modelscope_app.runs.status import FINAL_STATES, NOT_BEGUN_STATES, Status, is_locked

_LOOK_SECONDS = 0.2
_SERVICE_SECONDS = 1.0
"""Between two looks at the service."""
_BEGIN_SECONDS = 2.0
"""A process that has just made a run folder may take so long to begin."""


def queued_here(run: RunFolder) -> QueueRecord | None:
    """The queue record of a run that the service of this machine has and that has not ended for good.

    Raises BadInput for a damaged record.
    """
    record = read_queue_record(run.folder)
    if record is None or record.host != socket.gethostname() or run.status in FINAL_STATES - {"lost"}:
        return None
    return record


def if_gone(host: str, run: RunFolder) -> str:
    """The end of a sentence that leaves a run to a machine: what to do where that is not this one and will not come back."""
    return "" if host == socket.gethostname() else f"; if that machine is gone: `mscope runs resume {run.id}`"


def watch(run: RunFolder, watcher: Watcher) -> Status:
    """Tell the watcher what happens until the run has ended; how it ended. Raises BadInput for one that nobody will ever begin."""
    from modelscope_app.jobs.conversation import SETTLING_SECONDS

    events = EventReader(run.folder)
    service = _Service(run, watcher)
    executed_at = time.monotonic()
    lost_at: float | None = None
    told: str | None = None
    watcher.started(run.id, str(run.folder))
    try:
        while True:
            status = run.read_status()  # before the record: the one of a run that is lost for good is dropped
            record = read_queue_record(run.folder)
            if told is not None and status.state == "running":
                watcher.waits("running")
                told = None
            for event in events.new():
                tell(watcher, event)
            is_queued_here = record is not None and record.host == socket.gethostname()
            now = time.monotonic()
            lost_at = (lost_at or now) if status.state == "lost" else None
            if status.state in FINAL_STATES and not (lost_at and is_queued_here and now - lost_at < SETTLING_SECONDS):
                return status
            if is_queued_here:
                service.keep_alive()
            if status.state not in NOT_BEGUN_STATES or is_locked(run.folder):
                executed_at = now
            elif record is not None:
                why = _why_it_waits(run, status, record, service)
                if why != told and not (why == "queued" and told):  # a worker is about to begin it
                    watcher.waits(why)
                    told = why
            elif now - executed_at > _BEGIN_SECONDS:
                raise BadInput(f"run {run.id} is {status.state} and nobody executes it; to begin: mscope runs resume {run.id}")
            time.sleep(_LOOK_SECONDS)
    finally:
        watcher.ended()


def tell(listener: Listener, event: dict[str, Any]) -> None:
    """Pass on an event; one of another kind or shape is nothing to tell."""
    match event:
        case {"kind": "stage", "name": str(name), "resumed": bool(resumed)}:
            listener.stage(neutralised(name), resumed)
        case {"kind": "progress", "stage": str(stage), "done": float() | int() as done, "total": total, "unit": str(unit)}:
            if total is None or isinstance(total, float | int):
                listener.progress(neutralised(stage), done, total, neutralised(unit))
        case {"kind": "warning", "message": str(message)}:
            listener.warning(neutralised(message))


def _why_it_waits(run: RunFolder, status: Status, record: QueueRecord, service: _Service) -> str:
    if record.host != socket.gethostname():
        return f"{status.state}: with the service of {neutralised(record.host)}{if_gone(record.host, run)}"
    if status.state == "waiting":
        return f"waiting: {status.waiting_for or 'for memory'}"
    position = service.position()
    if position is None:
        return "queued"
    return "queued: next" if position == 0 else f"queued: {position} before it"


class _Service:
    """The service that a run needs to go on; looked at once a second."""

    def __init__(self, run: RunFolder, watcher: Watcher) -> None:
        self._run = run
        self._watcher = watcher
        self._looked_at = float("-inf")
        self._asked_at = float("-inf")
        self._position: int | None = None

    def keep_alive(self) -> None:
        """Start it again where it is gone. Raises BadInput or JobFailed where that cannot be done."""
        from modelscope_app.jobs.starting import ensure_service, is_running

        if time.monotonic() - self._looked_at < _SERVICE_SECONDS:
            return
        if not is_running():
            self._watcher.note(f"the service is gone; it is started again to go on with run {self._run.id}")
            ensure_service()
        self._looked_at = time.monotonic()

    def position(self) -> int | None:
        """How many jobs are before the run on the queue; None where the service does not say."""
        from modelscope_app.jobs.client import Client

        if time.monotonic() - self._asked_at >= _SERVICE_SECONDS:
            self._asked_at = time.monotonic()
            try:
                with Client(start=False) as client:
                    self._position = client.job(self._run.id).position
            except MscopeError:
                self._position = None
        return self._position
