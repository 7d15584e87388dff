"""What the probe analyses will need beside the model, told from headers and params. Imports no torch."""

from __future__ import annotations

import json
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
_FIT_COPIES, _CODE_COPIES, _FIT_MATRICES = 10, 20, 8
"""What `probes.linear` holds of one layer, as measured: its rows while a probe is fitted, those of pairs twice; its rows while the online
code fits all strengths at once; and square matrices of the span of the rows."""


def defection_estimate(checkpoints: Sequence[Checkpoint], params: DefectionParams) -> Estimate:
    """Activations once in float32 and once in float64, random directions and draws by layer, one batch in flight."""
    layers, hidden = _shape(checkpoints)
    kept = _rows(params.eval) * layers * hidden * (_FLOAT + _DOUBLE) * (2 if params.compare else 1)
    drawn = (params.random_directions + params.draws) * layers * _DOUBLE
    return Estimate(memory_bytes=_FIXED_BYTES + kept + drawn + _batch(params.tokens_per_batch, hidden), seconds=None, needs_model=True)


def linear_estimate(checkpoints: Sequence[Checkpoint], params: LinearParams) -> Estimate:
    """The rows once as they are, and one layer in float64 as often as fits hold it: layers are taken one after the other."""
    if not params.activations:
        layers, width = _shape(checkpoints)
        count, sides = _rows(params.eval), 1
        kept = count * layers * width * _FLOAT + _batch(params.tokens_per_batch, width)
    else:
        tensors = _tensors(params.activations)
        kept = sum(size for _, size in tensors.values()) if tensors else _size(params.activations)
        is_pairs = {"x_yes", "x_no", "truth"} <= set(tensors)
        shape = tensors.get("x_yes" if is_pairs else "x", ([], 0))[0]
        count, layers, width = (shape[0], shape[1] if len(shape) == 3 else 1, shape[-1]) if len(shape) in (2, 3) else (0, 0, 0)
        sides = 2 if is_pairs else 1
    copies = max(_FIT_COPIES * sides, _CODE_COPIES if params.online_code else 0)
    one = (copies * count * width + _FIT_MATRICES * min(count, width) ** 2) * _DOUBLE
    projections = min(2**30, layers * width * width * _DOUBLE) if params.erase == "leace" else 0
    return Estimate(memory_bytes=_FIXED_BYTES + kept + one + 2 * projections, seconds=None, needs_model=not params.activations)


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


def _tensors(path: str) -> dict[str, tuple[list[int], int]]:
    """Shape and bytes of the tensors of a safetensors file that `probes.linear` reads, from its header; nothing where it has none."""
    try:
        with Path(path).open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length <= _size(path) else {}
        read = {name: header[name] for name in ("x", "x_yes", "x_no", "score", "y", "truth", "group", "test") if name in header}
        return {name: (entry["shape"], entry["data_offsets"][1] - entry["data_offsets"][0]) for name, entry in read.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {}
