"""What `influence.distance` will need beside the two models, told from headers and params. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from modelscope_app.api import Checkpoint, Estimate
from modelscope_influence.distance_params import DistanceParams
from modelscope_influence.estimates import lines_of

_FLOAT, _DOUBLE = 4, 8
_IN_FLIGHT = 24
"""Numbers a position and hidden unit that a layer's forward pass holds at once, roughly: MLP, attention, norms."""
_FIXED_BYTES = 64 * 2**20
_MOST_AT_ONCE = 2048
"""Padded tokens or rows in a batch, where none are asked for, on a GPU; fewer on a CPU."""
_BLOCK_NUMBERS, _BLOCK_COPIES = 2**22, 8
"""Logits in float64 at once, as `distance_passes` takes them, and how many copies of them a distance holds."""
_ROW_BYTES = 4 * _DOUBLE
_RECURSION_COPIES = 4
"""Square matrices over twice the widest layer that the moments hold at once."""
_DRAWS_AT_ONCE = 512
_HIDDEN, _VOCABULARY = ("hidden_size", "n_embd", "d_model"), ("vocab_size",)


def distance_estimate(checkpoints: Sequence[Checkpoint], params: DistanceParams) -> Estimate:
    """Numbers of each row, one batch in flight with the logits of both models, and for `mlp` the moments of its widest layer."""
    config = _text_config(checkpoints)
    kept = lines_of(params.data) * _ROW_BYTES + 2 * params.draws * _DOUBLE
    at_once = params.batch_size or _MOST_AT_ONCE
    sizes = config.get("layer_sizes")
    if config.get("model_type") == "mlp" and isinstance(sizes, list) and all(isinstance(size, int) for size in sizes) and sizes:
        widest = max(sizes)
        features = lines_of(params.data) * sizes[0] * _FLOAT
        moments = (_RECURSION_COPIES * (2 * widest) ** 2 + 6 * _DRAWS_AT_ONCE * widest) * _DOUBLE
        # The weights of both once more in float64, and the rows of a batch at every layer.
        weights = 2 * sum(a * b for a, b in pairwise(sizes)) * _DOUBLE
        passing = min(at_once, lines_of(params.data)) * sum(sizes) * 4 * _DOUBLE
        return Estimate(memory_bytes=_FIXED_BYTES + kept + features + moments + weights + passing, seconds=None, needs_model=True)
    hidden, vocabulary = (next((config[key] for key in keys if isinstance(config.get(key), int)), 0) for keys in (_HIDDEN, _VOCABULARY))
    logits = 2 * at_once * vocabulary * _FLOAT
    block = min(_BLOCK_NUMBERS, at_once * vocabulary) * _BLOCK_COPIES * _DOUBLE
    passing = at_once * hidden * _IN_FLIGHT * _FLOAT
    return Estimate(memory_bytes=_FIXED_BYTES + kept + passing + logits + block, seconds=None, needs_model=True)


def _text_config(checkpoints: Sequence[Checkpoint]) -> Mapping[str, Any]:
    """config.json of the first, or the part of it that is about text; empty where there is none, and then the analysis says why."""
    config: Mapping[str, Any] = (checkpoints[0].config if checkpoints else None) or {}
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config
