"""What this plugin contributes: three analyses of weights, none of which needs the model to be built."""

from __future__ import annotations

from collections.abc import Iterable

from modelscope_app.api import Analysis, Checkpoints, hookimpl
from modelscope_weights.params import DiffParams, SeriesParams, StatsParams

MODELSCOPE_API = (1, 1)


@hookimpl
def modelscope_analyses() -> Iterable[Analysis]:
    """`weights.stats`, `weights.diff` and `weights.series`."""
    return [
        Analysis(
            name="stats",
            title="Weight statistics",
            summary="What values does each tensor hold: range, moments, zeros, NaN, infinities, histogram, and norms by layer?",
            params=StatsParams,
            run="modelscope_weights.analyses:stats",
            estimate="modelscope_weights.estimates:stats_estimate",
        ),
        Analysis(
            name="diff",
            title="Weight difference",
            summary="How far did each tensor move from the first checkpoint to the second, was it low-rank, and which tokens moved most?",
            params=DiffParams,
            run="modelscope_weights.analyses:diff",
            estimate="modelscope_weights.estimates:diff_estimate",
            checkpoints=Checkpoints(minimum=2, maximum=2),
        ),
        Analysis(
            name="series",
            title="Weights along training",
            summary="How do norms grow and how large are the updates, module by module, along a series of checkpoints?",
            params=SeriesParams,
            run="modelscope_weights.analyses:series",
            estimate="modelscope_weights.estimates:series_estimate",
            checkpoints=Checkpoints(kind="series"),
        ),
    ]
