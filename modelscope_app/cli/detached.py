"""Giving a job to the service, `mscope run --detach` and `mscope runs resume --detach`; and taking one back, `mscope runs resume`.

Params and checkpoints are looked at here first, so what is wrong with them is said at once and starts no service.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from modelscope_app.api import BadInput, ExitCode, UsageError, neutralised
from modelscope_app.runs.queue_record import drop_queue_record

if TYPE_CHECKING:
    from pydantic import BaseModel

    from modelscope_app.jobs.answers import JobInfo
    from modelscope_app.jobs.listener import Listener
    from modelscope_app.jobs.submission import HostOptions
    from modelscope_app.plugin_host import BoundAnalysis
    from modelscope_app.runs.folder import RunFolder


def check_detachable(foreground: bool, assertions: Sequence[str]) -> None:
    """Raise UsageError for options that do not go with --detach."""
    if foreground:
        raise UsageError("--detach and --foreground contradict each other; give one of them")
    if assertions:
        raise UsageError("--assert reads results, and with --detach there are none yet; leave one of them out")


def submit(bound: BoundAnalysis, checkpoints: Sequence[str], params: BaseModel, options: HostOptions, *, as_json: bool, quiet: bool) -> int:
    """Queue a job and print its run."""
    from modelscope_app.jobs.inputs import with_runs_resolved
    from modelscope_app.jobs.submission import open_checkpoints
    from modelscope_app.models.names import check_device, check_dtype
    from modelscope_app.plugin_host import params_json

    check_device(options.device)
    check_dtype(options.dtype)
    open_checkpoints(bound, checkpoints)
    stored = params_json(with_runs_resolved(params))

    from modelscope_app.jobs.client import Client

    with Client() as client:
        job = client.submit(bound.id, checkpoints, stored, device=options.device, dtype=options.dtype, seed=options.seed, out=options.out)
    if options.out is not None:
        return _report(job, job.run, as_json=as_json, quiet=quiet)
    if not quiet:
        _warn_of_another_data_folder(Path(job.folder).parent)
    reference = _reference(job)
    return _report(job, reference, as_json=as_json, quiet=quiet)


def resume(run: RunFolder, *, as_json: bool, quiet: bool) -> int:
    """Queue an earlier run again and print it."""
    from modelscope_app.jobs.client import Client

    with Client() as client:
        job = client.resume(run.folder)
    return _report(job, job.run, as_json=as_json, quiet=quiet)


def _warn_of_another_data_folder(folder: Path) -> None:
    """Say where the service writes to, where `mscope run` would not."""
    from modelscope_app.runs.index import runs_dir

    with suppress(OSError):
        if folder.samefile(runs_dir()):
            return
    sentence = f"the service writes to {folder} and not to {runs_dir()}: it was started with another data folder"
    print(f"mscope: warning: {neutralised(sentence)}", file=sys.stderr)


def _report(job: JobInfo, reference: str, *, as_json: bool, quiet: bool) -> int:
    if as_json:
        print(json.dumps({"run": job.run, "status": job.state, "folder": job.folder, "facts": {}, "tables": {}, "artifacts": {}}))
    else:
        print(neutralised(job.run))
    if not quiet:
        for warning in job.warnings:
            print(f"mscope: warning: {neutralised(warning)}", file=sys.stderr)
        print(f"mscope: to follow it: mscope runs watch {neutralised(reference)}", file=sys.stderr)
    return ExitCode.DONE


def _reference(job: JobInfo) -> str:
    """What names a run here that the service found a folder for: its id, or where that leads nowhere its folder."""
    from modelscope_app.runs.index import find_run

    try:
        if find_run(job.run).folder.samefile(job.folder):
            return job.run
    except (BadInput, OSError):
        pass
    return shlex.quote(job.folder)


class TakenBack:
    """Passes on what it hears, and takes a run that begins in this process off the queue of the service that had it.

    It is told under the run's lock, after the run became `running`: a run that could not be begun stays with its service, and no
    service can take this one up between the two, nor after this process was killed.
    """

    def __init__(self, told: Listener) -> None:
        self._told = told

    def started(self, run_id: str, folder: str) -> None:
        with suppress(OSError):  # the run goes on; whoever cancels it asks the holder of the lock
            drop_queue_record(Path(folder))
        self._told.started(run_id, folder)

    def stage(self, name: str, resumed: bool) -> None:
        self._told.stage(name, resumed)

    def progress(self, stage: str, done: float, total: float | None, unit: str) -> None:
        self._told.progress(stage, done, total, unit)

    def warning(self, message: str) -> None:
        self._told.warning(message)

    def ended(self) -> None:
        self._told.ended()
