"""The main thread of a worker: one assignment after the other."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from modelscope_app.api import ExitCode, JobFailed, MscopeError
from modelscope_app.jobs.device_memory import device_memory
from modelscope_app.jobs.execute import execute
from modelscope_app.jobs.ledger import Fits, Short, admission, within_limit
from modelscope_app.jobs.listener import Silent
from modelscope_app.jobs.out_of_memory import is_device_lost, release_cached_memory, release_unused_gpu_memory
from modelscope_app.jobs.protocol import DEVICE_LOST, Speaker
from modelscope_app.jobs.staleness import ImportedFiles
from modelscope_app.jobs.submission import Opened, reopen
from modelscope_app.jobs.worker.inbox import Assignment, Inbox
from modelscope_app.jobs.worker.resident import ResidentModels
from modelscope_app.jobs.worker.surroundings import Surroundings
from modelscope_app.plugin_host import PluginHost
from modelscope_app.runs.folder import RunFolder
from modelscope_app.settings import read_settings

if TYPE_CHECKING:
    from modelscope_app.runs.status import Status


class Worker:
    """Executes what comes into the inbox."""

    def __init__(self, speaker: Speaker, inbox: Inbox, models: ResidentModels) -> None:
        self._speaker = speaker
        self._inbox = inbox
        self._models = models
        self._files = ImportedFiles()
        self._host: PluginHost | None = None
        self._save_interval_seconds = 0.0
        self._is_spent = False
        """A plugin was broken when a run failed. Somebody will mend it, and here it would stay as it is."""
        with suppress(MscopeError):  # settings that cannot be read: said to each run
            self._plugins()
        _import_what_every_job_needs()
        self._surroundings = Surroundings()
        gc.collect()
        gc.freeze()  # a collection then looks at what jobs have made, not at all of torch: 0.2 s less

    def serve(self) -> int:
        """Until there is a reason to end; the exit code."""
        while (assignment := self._inbox.next()) is not None:
            changed = "a broken plugin" if self._is_spent else self._files.changed()
            if changed is not None:
                print(f"{changed} has changed since it was imported, or may have: another worker takes over", file=sys.stderr)
                self._speaker.say("stale")
                return ExitCode.DONE
            if self._is_device_lost_after(assignment):
                return DEVICE_LOST
        return ExitCode.DONE

    def _is_device_lost_after(self, assignment: Assignment) -> bool:
        """Execute an assignment; whether the device gave up over it, and the process with it."""
        announcing = _Announcing(self._speaker)
        status: Status | None = None
        try:
            with assignment.interruption:
                status = self._executed(assignment, announcing)
            if status is not None:
                self._speaker.say("ended", folder=str(assignment.folder))
        except MscopeError as error:
            self._refuse(assignment.folder, error, announcing)
        except (Exception, KeyboardInterrupt) as error:  # the latter from a plugin that raises it when it is imported
            traceback.print_exc()
            sentence = f"a worker could not execute it ({type(error).__name__}: {error}); the service's log says more"
            self._refuse(assignment.folder, JobFailed(sentence), announcing)
        self._inbox.done()
        if status is not None and status.state == "lost" and assignment.interruption.ends_as != "lost":
            return True
        return self._is_device_lost_cleaning_up(assignment.folder, announcing, status)

    def _refuse(self, folder: Path, error: MscopeError, announcing: _Announcing) -> None:
        if announcing.has_begun:  # what became of it is in the run folder, as far as that could be written
            self._speaker.say("ended", folder=str(folder))
        else:
            self._is_spent = self._has_met_a_broken_plugin
            self._speaker.say("refused", folder=str(folder), error=str(error), exit_code=int(error.exit_code))

    def _executed(self, assignment: Assignment, announcing: _Announcing) -> Status | None:
        """The final status; None for a run that was left alone, and that was said. Raises MscopeError for one that was refused."""
        from modelscope_app.models import resolve_device

        run = RunFolder.open(assignment.folder)
        host = self._plugins()
        bound, opened = reopen(run, host)
        device = str(resolve_device(run.read_status().device or assignment.device))
        self._models.begin({checkpoint.path: checkpoint.fingerprint for checkpoint in run.job.checkpoints if not checkpoint.series})
        interruption = assignment.interruption
        if interruption.is_requested and interruption.ends_as == "lost":
            return None  # the service is gone, and the next one finds the run on the queue
        if not interruption.is_requested and not self._has_room(assignment, run, opened, device):
            return None
        return execute(run, bound, opened, host, announcing, interruption, self._save_interval_seconds, device=device, models=self._models)

    def _has_room(self, assignment: Assignment, run: RunFolder, opened: Opened, device: str) -> bool:
        """Make room for a job; otherwise say that there is none."""
        named = opened.checkpoints if assignment.model_bytes else ()
        is_swept = False
        while True:
            holdings = self._models.holdings(device, named, run.job.dtype)
            own_bytes = sum(holding.memory_bytes for holding in holdings)
            there_bytes = sum(holding.memory_bytes for holding in holdings if holding.is_needed)
            room = within_limit(device_memory(device), assignment.limit_bytes, own_bytes, assignment.others_bytes)
            if room is None:
                return True
            need_bytes = assignment.analysis_bytes + max(0, assignment.model_bytes - there_bytes)
            decision = admission(need_bytes, holdings, room.free_bytes, room.capacity_bytes)
            if decision == Fits():
                return True
            if not is_swept:  # what earlier jobs left behind may be in the way
                release_cached_memory()
                is_swept = True
            elif isinstance(decision, Fits):
                self._models.evict(decision.evict)
            else:
                self._speaker.say(
                    "short" if isinstance(decision, Short) else "never",
                    folder=str(assignment.folder),
                    needs_bytes=decision.needs_bytes,
                    free_bytes=decision.free_bytes if isinstance(decision, Short) else max(0, room.free_bytes),
                    capacity_bytes=room.capacity_bytes,
                )
                return False

    def _is_device_lost_cleaning_up(self, folder: Path, announcing: _Announcing, status: Status | None) -> bool:
        """Put the process back into the state it was in; whether the device gave up over it."""
        sentences = self._surroundings.restore()
        try:
            if announcing.has_begun and (status is None or status.state != "done"):
                self._is_spent = self._has_met_a_broken_plugin
                release_cached_memory()
            sentences += self._models.end()
            release_unused_gpu_memory()
        except Exception as error:
            if not is_device_lost(error):
                raise
            traceback.print_exc()
            return True
        for sentence in sentences:
            print(f"{folder}: {sentence}", file=sys.stderr, flush=True)
            _add_to_log(folder, f"after the run: {sentence}")
        return False

    @property
    def _has_met_a_broken_plugin(self) -> bool:
        return self._host is not None and bool(self._host.broken())

    def _plugins(self) -> PluginHost:
        if self._host is None:
            self._save_interval_seconds = read_settings().runs.save_interval_seconds
            self._host = PluginHost()
        return self._host


class _Announcing(Silent):
    """Says that a run has begun, once its folder says so."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker
        self.has_begun = False

    def started(self, run_id: str, folder: str) -> None:
        """Its lock is held and its state is `running`."""
        self.has_begun = True
        self._speaker.say("begun", folder=folder)


def _add_to_log(folder: Path, line: str) -> None:
    with suppress(OSError):  # the run may be gone by now
        descriptor = os.open(folder / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)


def _import_what_every_job_needs() -> None:
    from modelscope_app.jobs import context, fold_pass, stages, stored  # noqa: F401
    from modelscope_app.models import build, devices  # noqa: F401
