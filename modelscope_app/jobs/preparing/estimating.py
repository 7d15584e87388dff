"""What a job would need, told without making a run folder of it: the same checks and the same reckoning as for a submission.

Fingerprints are taken, since what earlier runs took is remembered by them; a checkpoint that was read once is not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelscope_app.jobs.inputs import content_fingerprint, job_inputs, with_runs_resolved
from modelscope_app.jobs.preparing.need import built_dtype, job_need
from modelscope_app.jobs.submission import open_checkpoints
from modelscope_app.models.names import check_device, check_dtype
from modelscope_app.plugin_host import params_json, parse_params
from modelscope_app.runs.job import Job, JobCheckpoint

if TYPE_CHECKING:
    from modelscope_app.jobs.preparing.requests import Estimate
    from modelscope_app.plugin_host import PluginHost


@dataclass(frozen=True, slots=True)
class Estimated:
    """The fields of an `estimated` message."""

    need: Mapping[str, Any]
    """A `Need`, as JSON."""
    fingerprints: list[str]
    """Of the checkpoints and series that were named, by which a worker is chosen."""
    models: list[dict[str, str]]
    """Each model that would be built: `fingerprint`, `path`, and the `dtype` it is built in."""


def estimated(request: Estimate, host: PluginHost, warn: Callable[[str], None]) -> Estimated:
    """Raises what a submission would be refused with. A plugin's own estimate that fails is a warning."""
    analysis = host.analysis(request.analysis)
    params = with_runs_resolved(parse_params(analysis.analysis.params, request.params))
    device = check_device(request.device)
    check_dtype(request.dtype)
    opened = open_checkpoints(analysis, request.checkpoints)
    job = Job(
        id="",
        analysis=analysis.id,
        analysis_version=analysis.analysis.version,
        plugin={"distribution": analysis.distribution, "version": analysis.version},
        params=params_json(params),
        checkpoints=tuple(JobCheckpoint(str(one.path), content_fingerprint(one), bool(opened.series)) for one in opened.named),
        inputs=job_inputs(params),
        device=device,
        dtype=request.dtype,
        seed=0,
        created="",
        command="",
        interpreter="",
    )
    need = job_need(job, analysis, opened, warn)
    built = opened.checkpoints if need.model_bytes else ()
    models = [{"fingerprint": one.fingerprint, "path": str(one.path), "dtype": built_dtype(one, request.dtype)} for one in built]
    return Estimated(asdict(need), [one.fingerprint for one in job.checkpoints], models)
