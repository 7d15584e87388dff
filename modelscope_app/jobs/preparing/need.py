"""What a job will need of its device, told from headers, from what the analysis says, and from earlier runs. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import TYPE_CHECKING

from modelscope_app.api import Estimate, MscopeError
from modelscope_app.jobs.peaks import expected_bytes
from modelscope_app.models.names import DTYPE_BYTES, check_dtype
from modelscope_app.plugin_host import load_function, parse_params
from modelscope_app.plugin_host.isolation import described
from modelscope_app.runs.queue_record import Need

if TYPE_CHECKING:
    from modelscope_app.checkpoints import OpenCheckpoint
    from modelscope_app.jobs.submission import Opened
    from modelscope_app.plugin_host import BoundAnalysis
    from modelscope_app.runs.job import Job

_FLOATING: Mapping[str, str] = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Torch's name of each stored dtype that a model is cast from."""
_MOST = 2.0**63


def job_need(job: Job, analysis: BoundAnalysis, opened: Opened, warn: Callable[[str], None], device: str | None = None) -> Need:
    """What a job will need. `device` is where it was begun before. An estimate that fails is a warning, and counts as none."""
    declared = _declared(job, analysis, opened, warn)
    declared_bytes = None if declared is None else int(declared.memory_bytes)
    needs_model = analysis.analysis.checkpoints.kind in ("model", "language-model") or (declared is not None and declared.needs_model)
    expected, basis = expected_bytes(job, declared_bytes, device)
    return Need(
        analysis_bytes=expected,
        model_bytes=sum(model_bytes(checkpoint, job.dtype) for checkpoint in (*opened.checkpoints, *_named(job))) if needs_model else 0,
        seconds=None if declared is None or declared.seconds is None else float(declared.seconds),
        basis=basis,
        declared_bytes=declared_bytes,
    )


def _named(job: Job) -> list[OpenCheckpoint]:
    """Checkpoints that params name: an analysis that has use for a model has use for theirs."""
    from modelscope_app.checkpoints import open_checkpoint

    return [open_checkpoint(one.path) for one in job.inputs if one.kind == "checkpoint"]


def model_bytes(checkpoint: OpenCheckpoint, dtype: str) -> int:
    """Memory of the model that is built from a checkpoint: floating-point tensors in `dtype`, others as they are stored.

    It differs from what is built by buffers that no checkpoint stores (rotary frequencies), by stored tensors that the model
    has no use for (another task's head), and by those that are stored twice and tied.
    """
    width = DTYPE_BYTES[built_dtype(checkpoint, dtype)]
    headers = (header for shard in checkpoint.shards for header in shard.tensors)
    return sum(header.parameters * width if header.dtype in _FLOATING else header.bytes for header in headers)


def built_dtype(checkpoint: OpenCheckpoint, asked: str) -> str:
    """Torch's name of what a model is built in: the dtype asked for, or what `models.loading.model_dtype` chooses for `auto`."""
    if (name := check_dtype(asked)) is not None:
        return name
    parameters: dict[str, int] = {}
    for header in checkpoint.tensors.values():
        if header.dtype in _FLOATING:
            name = _FLOATING[header.dtype]
            parameters[name] = parameters.get(name, 0) + header.parameters
    if not parameters:
        return "float32"
    config = checkpoint.config or {}
    declared = str(config.get("dtype") or config.get("torch_dtype"))
    return declared if declared in parameters else max(parameters, key=lambda name: parameters[name])


def _declared(job: Job, analysis: BoundAnalysis, opened: Opened, warn: Callable[[str], None]) -> Estimate | None:
    """What the analysis itself says; None where it says nothing."""
    reference = analysis.analysis.estimate
    if reference is None:
        return None
    try:
        return _checked(load_function(reference)(opened.checkpoints, parse_params(analysis.analysis.params, job.params)))
    except BaseException as error:  # sys.exit and the panics of Rust libraries are no Exceptions
        why = str(error) if isinstance(error, MscopeError) else described(error)
        warn(str(MscopeError(f"the estimate of {analysis.id} failed ({why}); it runs without one")))
        return None


def _checked(estimate: object) -> Estimate:
    """An estimate that can be reckoned with. Raises MscopeError with what is wrong about it."""
    if not isinstance(estimate, Estimate):
        raise MscopeError(f"it returned {type(estimate).__name__}, not an Estimate")
    for name, value in (("memory_bytes", estimate.memory_bytes), ("seconds", 0 if estimate.seconds is None else estimate.seconds)):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise MscopeError(f"its {name} is of type {type(value).__name__}, not a number")
        if not math.isfinite(value) or not 0 <= value < _MOST:
            raise MscopeError(f"its {name} is {value}, not a finite number from 0 on")
    if not isinstance(estimate.needs_model, bool):
        raise MscopeError(f"its needs_model is of type {type(estimate.needs_model).__name__}, not true or false")
    return estimate
