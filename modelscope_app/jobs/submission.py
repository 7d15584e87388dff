"""From what a user typed to a run folder ready to execute, and back again when a run is resumed.

Params and checkpoints are looked at before torch is imported, so what is wrong with them is said at once.
"""

from __future__ import annotations

import secrets
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from modelscope_app.api import BadInput, UsageError
from modelscope_app.jobs.inputs import content_fingerprint, input_fingerprint, job_inputs, with_runs_resolved
from modelscope_app.locations import absolute_path
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import register, runs_dir
from modelscope_app.runs.job import Job, JobCheckpoint
from modelscope_app.runs.status import RESUMABLE_STATES

if TYPE_CHECKING:
    from pydantic import BaseModel

    from modelscope_app.checkpoints import OpenCheckpoint, OpenSeries
    from modelscope_app.plugin_host import BoundAnalysis, PluginHost

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
    analysis: BoundAnalysis, opened: Opened, params: BaseModel, options: HostOptions, warn: Callable[[str], None] = warnings.warn
) -> RunFolder:
    """Create the run folder of a job. Raises UsageError for a device that is not there, BadInput for a folder in use."""
    from modelscope_app.plugin_host import params_json

    named = opened.named
    created = datetime.now(UTC)
    run_id = f"{created:%Y%m%d-%H%M%S}-{analysis.id.replace('.', '-')}-{secrets.token_hex(2)}"
    folder = absolute_path(options.out) if options.out is not None else runs_dir() / run_id
    params = with_runs_resolved(params)
    stored_params = params_json(params)
    inputs = job_inputs(params)
    checkpoints = tuple(JobCheckpoint(str(one.path), content_fingerprint(one), bool(opened.series)) for one in named)

    import torch

    from modelscope_app.models import resolve_device, resolve_dtype

    resolve_dtype(options.dtype)
    job = Job(
        id=run_id,
        analysis=analysis.id,
        analysis_version=analysis.analysis.version,
        plugin={"distribution": analysis.distribution, "version": analysis.version},
        params=stored_params,
        checkpoints=checkpoints,
        inputs=inputs,
        device=str(resolve_device(options.device)),
        dtype=options.dtype,
        seed=options.seed,
        threads=torch.get_num_threads(),
        created=f"{created:%Y-%m-%dT%H:%M:%S.%fZ}",
        command=headless_command(analysis, [str(one.path) for one in named], params, options),
        interpreter=sys.executable,
        versions={"python": sys.version.split()[0], **_library_versions()},
    )
    run = RunFolder.create(folder, job)
    if not register(run):
        warn(f"this run cannot be entered into the index of runs; find it by its folder, {run.folder}")
    return run


def reopen(run: RunFolder, host: PluginHost) -> tuple[BoundAnalysis, Opened]:
    """What a run needs to go on, checked to be what it began with. Raises BadInput where it is not."""
    state = run.status
    if state not in RESUMABLE_STATES:
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


def _library_versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
