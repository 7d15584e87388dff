"""A run that was lost, cancelled or failed, or never began, becomes a queued one again."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from modelscope_app.api import BadInput
from modelscope_app.jobs.submission import reopen
from modelscope_app.runs.events import EventLog
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.lock import RunLock
from modelscope_app.runs.queue_record import QueueRecord, drop_queue_record, read_queue_record
from modelscope_app.runs.status import FINAL_STATES, Status, read_stored_status, write_status

if TYPE_CHECKING:
    from modelscope_app.jobs.submission import Opened
    from modelscope_app.plugin_host import BoundAnalysis, PluginHost
    from modelscope_app.runs.job import Job

Queued = Callable[["Job", "BoundAnalysis", "Opened", "str | None"], QueueRecord]
"""The record of a job, given its analysis, its checkpoints and where it was begun before."""


def readmitted(folder: Path, host_for: Callable[[str], PluginHost], queued: Queued) -> RunFolder:
    """The run in `folder`, queued. Raises BadInput where it is not this user's, is running or done, is with a service already,
    or can no longer be resumed, as `reopen` says."""
    run = RunFolder.open(folder)
    _check_owner(run.folder)
    _check_not_with_a_service(run)
    analysis, opened = reopen(run, host_for(run.job.analysis))
    record = queued(run.job, analysis, opened, run.read_status().device)
    try:
        _queue(run, record)
    except OSError as error:
        raise BadInput(f"{run.folder}: the run folder cannot be written ({error.strerror or error})") from None
    return run


def _queue(run: RunFolder, record: QueueRecord) -> None:
    lock = RunLock(run.folder, "queue")
    try:
        before = read_stored_status(run.folder)
        if before.state == "done":
            raise BadInput(f"run {run.id} is done; there is nothing to resume")
        _check_not_with_a_service(run)
        record.write(run.folder)
        try:
            write_status(run.folder, Status(state="queued", attempts=before.attempts, device=before.device, threads=before.threads))
        except BaseException:
            drop_queue_record(run.folder)
            raise
        with closing(EventLog(run.folder)) as events:
            events.add("state", state="queued")
    finally:
        lock.release()


def _check_owner(folder: Path) -> None:
    try:
        is_own = folder.stat().st_uid == os.getuid()
    except OSError as error:
        raise BadInput(f"{folder}: cannot be read ({error.strerror})") from None
    if not is_own:
        raise BadInput(f"{folder}: belongs to another user, who alone can resume it")


def _check_not_with_a_service(run: RunFolder) -> None:
    """Raise BadInput where a service has the run. What a killed one left beside a run that has ended does not count."""
    try:
        record = read_queue_record(run.folder)
    except BadInput:  # no service can take it up with a damaged record, so it is written anew
        return
    state = run.status
    if record is not None and state not in FINAL_STATES:
        advice = "" if record.host == socket.gethostname() else f"; if that machine is gone: `mscope runs resume {run.id}`"
        raise BadInput(f"run {run.id} is {state} and has already been given to the service on {record.host}{advice}")
