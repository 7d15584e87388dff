"""What a service finds that was killed before it: its queue, in the run folders.

| queue.json beside            | what becomes of the run                                                                  |
|------------------------------|------------------------------------------------------------------------------------------|
| queued, waiting              | back on the queue, at its old place                                                      |
| running, its lock held       | its worker is still saving; looked at again until it has let go                          |
| running or lost, lock free   | lost; back on the queue, once, where a stage or state was saved                          |
| cancelling, lock free        | cancelled                                                                                |
| done, failed, cancelled      | has ended; queue.json is dropped                                                         |

Runs given to the service of another machine that shares the folders are left alone.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import replace
from pathlib import Path

from modelscope_app.api import MscopeError
from modelscope_app.jobs.saved_state import has_saved_work
from modelscope_app.jobs.service import transitions
from modelscope_app.jobs.service.scheduler import Scheduler
from modelscope_app.runs.index import folders_with
from modelscope_app.runs.lock import is_locked
from modelscope_app.runs.queue_record import FILE_NAME, drop_queue_record, read_queue_record
from modelscope_app.runs.status import FINAL_STATES, NOT_BEGUN_STATES, read_stored_status

LOST = "the service was lost while it ran"
_LOOK_AGAIN_SECONDS = 0.25
_REQUEUES = 1

log = logging.getLogger(__name__)


async def recover(scheduler: Scheduler) -> None:
    """Take up what an earlier service left. Never raises; what cannot be read is said in the log."""
    try:
        folders = await asyncio.to_thread(folders_with, FILE_NAME)
    except (MscopeError, OSError) as error:
        log.warning("earlier runs could not be looked for (%s)", error)
        return
    await asyncio.gather(*(_recover_one(scheduler, folder) for folder in folders))


async def _recover_one(scheduler: Scheduler, folder: Path) -> None:
    try:
        while folder not in scheduler.jobs:
            match await asyncio.to_thread(take_up, folder):
                case "queued":
                    await scheduler.add(folder)
                case "held":
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)
                    continue
            return
    except (MscopeError, OSError) as error:
        log.warning("%s: cannot be taken up (%s)", folder, error)


def take_up(folder: Path) -> str:
    """Bring one run into order: `queued` where it is to be executed, `held` where a process is still at it, `over` otherwise."""
    record = read_queue_record(folder)
    if record is None or record.host != socket.gethostname():
        return "over"
    if is_locked(folder):
        return "held"
    state = read_stored_status(folder).state
    if state in NOT_BEGUN_STATES:
        return "queued"
    if state in FINAL_STATES - {"lost"}:
        drop_queue_record(folder)
        return "over"
    if state == "cancelling":
        transitions.cancel(folder, "cancelled")
        drop_queue_record(folder)
        return "over"
    transitions.lose(folder, LOST)
    if record.requeues < _REQUEUES and has_saved_work(folder / "stages"):
        transitions.queue_again(folder, replace(record, requeues=record.requeues + 1))
        return "queued"
    drop_queue_record(folder)
    return "over"
