"""What the probe analyses will need beside the model, told from headers and params. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelscope_app.api import Checkpoint, Estimate
from modelscope_probes.params import CausalParams, DefectionParams, LinearParams, ScoreParams, TransferParams

_FLOAT, _DOUBLE = 4, 8
_IN_FLIGHT = 24
"""Numbers a position and hidden unit that a layer's forward pass holds at once, roughly: MLP, attention, norms."""
_FIXED_BYTES = 64 * 2**20
_MOST_TOKENS = 4096
"""In a batch, where none are asked for, on a GPU; fewer on a CPU."""


def defection_estimate(checkpoints: Sequence[Checkpoint], params: DefectionParams) -> Estimate:
    """Activations once in float32 and once in float64, random directions and draws by layer, one batch in flight."""
    layers, hidden = _shape(checkpoints)
    kept = _rows(params.eval) * layers * hidden * (_FLOAT + _DOUBLE) * (2 if params.compare else 1)
    drawn = (params.random_directions + params.draws) * layers * _DOUBLE
    return Estimate(memory_bytes=_FIXED_BYTES + kept + drawn + _batch(params.tokens_per_batch, hidden), seconds=None, needs_model=True)


def linear_estimate(checkpoints: Sequence[Checkpoint], params: LinearParams) -> Estimate:
    """Activations in float32 and float64, and what a fit holds of them."""
    if params.activations:
        return Estimate(memory_bytes=_FIXED_BYTES + 5 * _size(params.activations), seconds=None)
    layers, hidden = _shape(checkpoints)
    kept = _rows(params.eval) * layers * hidden * (_FLOAT + 3 * _DOUBLE)
    return Estimate(memory_bytes=_FIXED_BYTES + kept + _batch(params.tokens_per_batch, hidden), seconds=None, needs_model=True)


def causal_estimate(checkpoints: Sequence[Checkpoint], params: CausalParams) -> Estimate:
    """Activations at one layer or all, and one batch in flight."""
    layers, hidden = _shape(checkpoints)
    kept = _rows(params.eval) * layers * hidden * (_FLOAT + _DOUBLE)
    return Estimate(memory_bytes=_FIXED_BYTES + kept + 2 * _batch(params.tokens_per_batch, hidden), seconds=None, needs_model=True)


def score_estimate(checkpoints: Sequence[Checkpoint], params: ScoreParams) -> Estimate:
    """One score a token and layer, and one batch in flight."""
    layers, hidden = _shape(checkpoints)
    scores = (_size(params.prompts) if params.prompts else len(params.text)) * layers * _DOUBLE
    return Estimate(memory_bytes=_FIXED_BYTES + scores + _batch(params.tokens_per_batch, hidden), seconds=None, needs_model=True)


def transfer_estimate(checkpoints: Sequence[Checkpoint], params: TransferParams) -> Estimate:
    """Activations of every member in float32."""
    layers, hidden = _shape(checkpoints)
    kept = _rows(params.eval) * layers * hidden * (_FLOAT * len(checkpoints) + _DOUBLE)
    return Estimate(memory_bytes=_FIXED_BYTES + kept + _batch(params.tokens_per_batch, hidden), seconds=None, needs_model=True)


def _batch(tokens: int | None, hidden: int) -> int:
    return (tokens or _MOST_TOKENS) * hidden * _FLOAT * _IN_FLIGHT


def _shape(checkpoints: Sequence[Checkpoint]) -> tuple[int, int]:
    """Layers and width as config.json says; 0 where it does not, and then the analysis says why it cannot run."""
    config = (checkpoints[0].config if checkpoints else None) or {}
    layers = next((config[key] for key in ("num_hidden_layers", "n_layer") if isinstance(config.get(key), int)), 0)
    hidden = next((config[key] for key in ("hidden_size", "n_embd") if isinstance(config.get(key), int)), 0)
    return layers, hidden


def _rows(path: str) -> int:
    """At most as many rows as the file has lines."""
    try:
        with Path(path).open("rb") as stream:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b"")) + 1
    except OSError:
        return 0


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
