"""What the service writes into run folders: states of runs that no worker executes. Each holds the run's lock for the moment.

Raises BadInput while another process has the run, and OSError where its folder cannot be written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelscope_app.api import ExitCode, neutralised
from modelscope_app.runs.events import EventLog
from modelscope_app.runs.lock import RunLock
from modelscope_app.runs.queue_record import QueueRecord
from modelscope_app.runs.status import FINAL_STATES, Status, read_stored_status, write_status

Change = Callable[[Status], Status]


def wait(folder: Path, sentence: str) -> None:
    """A run that does not fit now is waiting."""
    _change(folder, lambda status: replace(status, state="waiting", waiting_for=sentence), waiting_for=sentence)


def queue_again(folder: Path, record: QueueRecord) -> None:
    """A run that was begun goes back to the queue."""
    _change(
        folder,
        lambda status: replace(status, state="queued", waiting_for=None, error=None, exit_code=None, finished=None),
        before=lambda: record.write(folder),
        even_if_final=True,
    )


def cancel(folder: Path, sentence: str) -> Status:
    """A run that no worker executes any more, or yet, is cancelled."""
    return _end(folder, "cancelled", sentence, ExitCode.CANCELLED)


def fail(folder: Path, sentence: str, exit_code: int) -> Status:
    """A run that cannot be executed has failed."""
    return _end(folder, "failed", sentence, exit_code)


def lose(folder: Path, sentence: str) -> Status:
    """The process that executed a run is gone."""
    return _end(folder, "lost", sentence, ExitCode.JOB_FAILED)


def _end(folder: Path, state: Any, sentence: str, exit_code: int) -> Status:
    error = neutralised(sentence)
    return _change(
        folder,
        lambda status: replace(status, state=state, error=error, waiting_for=None, exit_code=int(exit_code), finished=time.time()),
        error=error,
    )


def _change(folder: Path, change: Change, before: Callable[[], None] = lambda: None, even_if_final: bool = False, **said: Any) -> Status:
    """Write a new status and say so in the events; a run that has ended by itself meanwhile stays as it is."""
    lock = RunLock(folder, "queue")
    try:
        status = read_stored_status(folder)
        if status.state in FINAL_STATES and not even_if_final:
            return status
        before()
        changed = change(status)
        write_status(folder, changed)
        with closing(EventLog(folder)) as events:
            events.add("state", state=changed.state, **said)
        return changed
    finally:
        lock.release()
