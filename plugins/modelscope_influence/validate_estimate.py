"""What `influence.validate` will need beside the model, told from headers and params. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from modelscope_app.api import Checkpoint, Estimate
from modelscope_influence.estimates import scores_estimate
from modelscope_influence.params import ScoresParams
from modelscope_influence.validate_params import ValidateParams

MOST_DOUBLE = 20_000_000
"""Parameters up to which removals are solved for in float64."""
_VECTORS = 2 * 20 + 16
"""Vectors of all weights that L-BFGS and the objective hold at once, in float64."""
_KEPT_LOGITS_BYTES = 2**28


def validate_estimate(checkpoints: Sequence[Checkpoint], params: ValidateParams) -> Estimate:
    """What scores take, then the vectors of L-BFGS, a copy of the model in another dtype, and logits that are kept."""
    scoring = scores_estimate(
        checkpoints, ScoresParams(train=params.train, queries=params.queries, modules=params.modules, curvature=params.curvature)
    )
    parameters = sum(checkpoint.parameters for checkpoint in checkpoints)
    solving = parameters * 8 * (_VECTORS + 1) + _KEPT_LOGITS_BYTES
    return Estimate(memory_bytes=scoring.memory_bytes + solving, seconds=None, needs_model=True)
