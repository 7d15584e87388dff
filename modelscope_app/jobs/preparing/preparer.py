"""Answering one request after the other, each whole: a queued run, or a sentence that says why there is none."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_app.api import JobFailed, MscopeError, UsageError
from modelscope_app.jobs.preparing.estimating import estimated
from modelscope_app.jobs.preparing.need import job_need
from modelscope_app.jobs.preparing.readmission import readmitted
from modelscope_app.jobs.preparing.requests import Estimate, Prepare, Readmit, read_message, read_request
from modelscope_app.jobs.protocol import Speaker
from modelscope_app.jobs.staleness import ImportedFiles
from modelscope_app.jobs.submission import HostOptions, Opened, new_run, open_checkpoints
from modelscope_app.plugin_host import PluginHost, parse_params
from modelscope_app.plugin_host.isolation import described
from modelscope_app.runs.queue_record import QueueRecord

if TYPE_CHECKING:
    from modelscope_app.plugin_host import BoundAnalysis
    from modelscope_app.runs.folder import RunFolder
    from modelscope_app.runs.job import Job


class Preparer:
    """Keeps the plugins it has imported from one request to the next."""

    def __init__(self, speaker: Speaker, imported: ImportedFiles) -> None:
        self._speaker = speaker
        self._imported = imported
        self._host: PluginHost | None = None

    def answers(self, line: bytes) -> bool:
        """Answer a request. False where it could not, because something imported has changed, and another process has to."""
        id = None
        try:
            message = read_message(line)
            id = message.get("id")
            request = read_request(message)
            if (changed := self._imported.changed()) is not None:
                raise _Stale(f"{changed} has changed")
            warnings: list[str] = []
            with _working_in(None if isinstance(request, Readmit) else request.cwd):
                if isinstance(request, Estimate):
                    found = estimated(request, self._host_for(request.analysis), warnings.append)
                    self._speaker.say("estimated", id=id, **asdict(found), warnings=warnings)
                    return True
                run = self._run_of(request, warnings.append)
            self._speaker.say("prepared", id=id, run=run.id, folder=str(run.folder), warnings=warnings)
        except _Stale as stale:
            with suppress(Exception):  # a plugin may have put anything there
                print(f"preparer {os.getpid()} ends: {stale}", file=sys.stderr)
            self._speaker.say("stale", id=id)
            return False
        except BaseException as error:  # sys.exit and the panics of Rust libraries are no Exceptions
            said = _as_sentence(error)
            self._speaker.say("refused", id=_plain(id), error=str(said), exit_code=int(said.exit_code))
        return True

    def _run_of(self, request: Prepare | Readmit, warn: Callable[[str], None]) -> RunFolder:
        if isinstance(request, Readmit):
            return readmitted(
                Path(request.folder), self._host_for, lambda job, analysis, opened, device: _record(job, analysis, opened, warn, device)
            )
        analysis = self._host_for(request.analysis).analysis(request.analysis)
        params = parse_params(analysis.analysis.params, request.params)
        opened = open_checkpoints(analysis, request.checkpoints)
        options = HostOptions(request.device, request.dtype, request.seed, Path(request.out) if request.out is not None else None)
        return new_run(analysis, opened, params, options, warn, lambda job: _record(job, analysis, opened, warn))

    def _host_for(self, analysis_id: str) -> PluginHost:
        """The plugins, that of `analysis_id` imported."""
        is_new = self._host is None
        if self._host is None:
            self._host = PluginHost()
        plugin = analysis_id.partition(".")[0]
        if not is_new and plugin in self._host.names() and self._host.load(plugin).is_broken:
            # A failed import leaves no file to watch, so only a new process can tell whether it has been mended.
            raise _Stale(f"the plugin {plugin!r} was broken when it was imported")
        return self._host


class _Stale(Exception):
    """This process may no longer be what is on disk."""


def _record(job: Job, analysis: BoundAnalysis, opened: Opened, warn: Callable[[str], None], device: str | None = None) -> QueueRecord:
    return QueueRecord(
        submitted=time.time(),
        host=socket.gethostname(),
        interpreter=sys.executable,
        python_path=os.environ.get("PYTHONPATH"),
        need=job_need(job, analysis, opened, warn, device),
    )


@contextmanager
def _working_in(folder: str | None) -> Iterator[None]:
    """Relative paths begin in `folder` for the block, and in `/` after it."""
    try:
        os.chdir(folder or "/")
    except OSError as error:
        raise UsageError(f"cwd {folder}: relative paths cannot begin there ({error.strerror}); name a folder that exists") from None
    try:
        yield
    finally:
        os.chdir("/")


def _as_sentence(error: BaseException) -> MscopeError:
    """What to tell whoever submitted; a traceback goes to the log alone."""
    if isinstance(error, MscopeError):
        return error
    with suppress(Exception):
        traceback.print_exc(file=sys.stderr)
    return JobFailed(f"the plugin, or checking what was submitted, failed ({described(error)}); the service's log says more")


def _plain(id: Any) -> Any:
    """An id that can be sent back, whatever came as one."""
    return id if isinstance(id, str | int) else None
