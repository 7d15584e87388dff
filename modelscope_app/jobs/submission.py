"""From what a user typed to a run folder ready to execute, and back again when a run is resumed.

Params and checkpoints are looked at before torch is imported, so what is wrong with them is said at once.
"""

from __future__ import annotations

import secrets
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from modelscope_app.api import BadInput, UsageError
from modelscope_app.jobs.inputs import content_fingerprint, input_fingerprint, job_inputs, with_runs_resolved
from modelscope_app.locations import absolute_path
from modelscope_app.runs.folder import FolderInUse, RunFolder
from modelscope_app.runs.index import register, runs_dir
from modelscope_app.runs.job import Job, JobCheckpoint
from modelscope_app.runs.status import NOT_BEGUN_STATES, RESUMABLE_STATES

if TYPE_CHECKING:
    from pydantic import BaseModel

    from modelscope_app.checkpoints import OpenCheckpoint, OpenSeries
    from modelscope_app.plugin_host import BoundAnalysis, PluginHost
    from modelscope_app.runs.queue_record import QueueRecord

_TRIES = 20
_LIBRARIES = ("modelscope-app", "torch", "transformers", "safetensors", "polars", "numpy")


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What the host itself is asked, for any analysis."""

    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    out: Path | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The checkpoints and series of a job, opened. For an analysis of series, `checkpoints` are the members."""

    checkpoints: Sequence[OpenCheckpoint]
    series: Sequence[OpenSeries]

    @property
    def named(self) -> Sequence[OpenCheckpoint | OpenSeries]:
        """What the user named."""
        return self.series or self.checkpoints


def open_checkpoints(analysis: BoundAnalysis, paths: Sequence[str]) -> Opened:
    """Open what was named, as many and of the kind the analysis takes. Raises UsageError, BadInput."""
    from modelscope_app.checkpoints import open_checkpoint, open_series

    takes = analysis.analysis.checkpoints
    if len(paths) < takes.minimum or (takes.maximum is not None and len(paths) > takes.maximum):
        raise UsageError(f"{analysis.id} takes {takes}, and {len(paths) or 'none'} {'was' if len(paths) < 2 else 'were'} given")
    if takes.kind == "series":
        series = [open_series(path) for path in paths]
        return Opened([member for one in series for member in one.checkpoints], series)
    checkpoints = [open_checkpoint(path) for path in paths]
    if takes.kind in ("model", "language-model"):
        for checkpoint in checkpoints:
            if checkpoint.config is None:
                raise BadInput(f"{checkpoint.path}: {analysis.id} needs a model, and without config.json nothing says how to build one")
            if takes.kind == "language-model" and not checkpoint.tokenizer_files:
                raise BadInput(
                    f"{checkpoint.path}: {analysis.id} needs a language model with its tokenizer, and there is no tokenizer.json"
                )
    return Opened(checkpoints, [])


def new_run(
    analysis: BoundAnalysis,
    opened: Opened,
    params: BaseModel,
    options: HostOptions,
    warn: Callable[[str], None] = warnings.warn,
    queued: Callable[[Job], QueueRecord] | None = None,
) -> RunFolder:
    """Create the run folder of a job. Raises UsageError for a device or dtype nobody knows, BadInput for a folder in use.

    With `queued` the run is one for the service, and has the record that `queued` makes of the job. Imports no torch; whether the
    device is there, `execute` finds out.
    """
    from modelscope_app.models.names import check_device, check_dtype
    from modelscope_app.plugin_host import params_json

    device = check_device(options.device)
    check_dtype(options.dtype)

    named = opened.named
    created = datetime.now(UTC)
    out = absolute_path(options.out) if options.out is not None else None
    params = with_runs_resolved(params)
    stored_params = params_json(params)
    inputs = job_inputs(params)
    checkpoints = tuple(JobCheckpoint(str(one.path), content_fingerprint(one), bool(opened.series)) for one in named)

    job = Job(
        id="",
        analysis=analysis.id,
        analysis_version=analysis.analysis.version,
        plugin={"distribution": analysis.distribution, "version": analysis.version},
        params=stored_params,
        checkpoints=checkpoints,
        inputs=inputs,
        device=device,
        dtype=options.dtype,
        seed=options.seed,
        created=f"{created:%Y-%m-%dT%H:%M:%S.%fZ}",
        command=headless_command(analysis, [str(one.path) for one in named], params, options),
        interpreter=sys.executable,
        versions={"python": sys.version.split()[0], **dict(_library_versions())},
    )
    id_begins = f"{created:%Y%m%d-%H%M%S}-{analysis.id.replace('.', '-')}"
    run = _created(job, id_begins, out, queued(job) if queued is not None else None)
    if not register(run):
        warn(f"this run cannot be entered into the index of runs; find it by its folder, {run.folder}")
    return run


def _created(job: Job, id_begins: str, out: Path | None, record: QueueRecord | None) -> RunFolder:
    """The run folder of a job that has no id yet. In the data folder, another id is tried where one is taken."""
    for _ in range(_TRIES):
        job = replace(job, id=f"{id_begins}-{secrets.token_hex(2)}")
        try:
            return RunFolder.create(out if out is not None else runs_dir() / job.id, job, record)
        except FolderInUse:
            if out is not None:
                raise
    raise FolderInUse(f"{runs_dir()}: {_TRIES} names for a run that begin with {id_begins} are all taken; try again")


def reopen(run: RunFolder, host: PluginHost) -> tuple[BoundAnalysis, Opened]:
    """What a run needs to go on, checked to be what it began with. Raises BadInput where it is not."""
    state = run.status
    if state not in RESUMABLE_STATES | NOT_BEGUN_STATES:
        raise BadInput(f"run {run.id} is {state}; only a run that failed, was cancelled or was lost, or never began, can be resumed")
    job = run.job
    analysis = host.analysis(job.analysis)
    if analysis.analysis.version != job.analysis_version:
        raise BadInput(
            f"run {run.id} was begun with version {job.analysis_version} of {job.analysis}, and version {analysis.analysis.version} is "
            "installed; start a new run"
        )
    opened = open_checkpoints(analysis, [checkpoint.path for checkpoint in job.checkpoints])
    for stored, now in zip(job.checkpoints, opened.named, strict=True):
        if stored.fingerprint != content_fingerprint(now):
            raise BadInput(f"{stored.path}: its content is not what run {run.id} was begun with; start a new run")
    for given in job.inputs:
        if input_fingerprint(given.kind, given.path) != given.fingerprint:
            raise BadInput(f"{given.path}: its content is not what run {run.id} was begun with; start a new run")
    return analysis, opened


def headless_command(analysis: BoundAnalysis, paths: Sequence[str], params: BaseModel, options: HostOptions) -> str:
    """The command line that runs this again, with every option that is not its default."""
    from modelscope_app.plugin_host import param_fields, params_json, written

    words = ["mscope", "run", analysis.id, *paths]
    values = params_json(params)
    for field in param_fields(type(params)):
        value = values[field.name]
        if not field.required and getattr(params, field.name) == field.default:
            continue
        if field.is_flag:
            words.append(field.option if value else f"--no-{field.option.removeprefix('--')}")
        else:
            words += [field.option, written(value)]
    if options.device != "auto":
        words += ["--device", options.device]
    if options.dtype != "auto":
        words += ["--dtype", options.dtype]
    if options.seed:
        words += ["--seed", str(options.seed)]
    return shlex.join(words)


@cache
def _library_versions() -> tuple[tuple[str, str], ...]:
    """Name and version of those that are installed."""
    found = []
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found.append((name, metadata.version(name)))
    return tuple(found)
