"""What `influence.tracin` will need, told from headers and params. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from modelscope_app.api import Checkpoint, Estimate
from modelscope_influence.estimates import lines_of, scores_estimate
from modelscope_influence.params import ScoresParams
from modelscope_influence.tracin_params import TracinParams

_PARAMETER_BYTES, _SCORE_BYTES = 4, 8


def tracin_estimate(checkpoints: Sequence[Checkpoint], params: TracinParams) -> Estimate:
    """The model of one member, the tensors of another, queries' gradients, and the scores of every member."""
    asked = ScoresParams(train=params.train, queries=params.queries, modules=params.modules, curvature="identity")
    scoring = scores_estimate(checkpoints[:1], asked)
    one = max((checkpoint.parameters for checkpoint in checkpoints), default=0) * _PARAMETER_BYTES
    pairs = len(checkpoints) * lines_of(params.queries) * lines_of(params.train) * _SCORE_BYTES
    return Estimate(memory_bytes=scoring.memory_bytes + 2 * one + pairs, seconds=None, needs_model=False)
