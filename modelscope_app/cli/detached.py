"""Giving a job to the service: `mscope run --detach` and `mscope runs resume --detach`.

Params and checkpoints are looked at here first, so what is wrong with them is said at once and starts no service.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelscope_app.api import ExitCode, UsageError, neutralised

if TYPE_CHECKING:
    from pydantic import BaseModel

    from modelscope_app.jobs.answers import JobInfo
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
    return _report(job, as_json=as_json, quiet=quiet)


def resume(run: RunFolder, *, as_json: bool, quiet: bool) -> int:
    """Queue an earlier run again and print it."""
    from modelscope_app.jobs.client import Client

    with Client() as client:
        job = client.resume(run.folder)
    return _report(job, as_json=as_json, quiet=quiet)


def _report(job: JobInfo, *, as_json: bool, quiet: bool) -> int:
    if as_json:
        print(json.dumps({"run": job.run, "status": job.state, "folder": job.folder, "facts": {}, "tables": {}, "artifacts": {}}))
    else:
        print(neutralised(job.run))
    if not quiet:
        for warning in job.warnings:
            print(f"mscope: warning: {neutralised(warning)}", file=sys.stderr)
        print(f"mscope: to follow it: mscope runs watch {neutralised(job.run)}", file=sys.stderr)
    return ExitCode.DONE
