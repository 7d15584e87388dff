"""What influence will need beside the model, told from headers and params. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from modelscope_app.api import Checkpoint, Estimate
from modelscope_influence.cost import Sizes, fitting_seconds, scoring_seconds, speed
from modelscope_influence.params import FactorsParams, ScoresParams, SelfParams

_FIXED_BYTES = 64 * 2**20
QUERY_BYTES = 2 * 2**30
"""Of queries' gradients that are held at once, where nobody says how many queries that are."""
PAIR_BYTES = 16 * 2**20
"""Of scores of pairs that are held at once, where --top-k allows for fewer."""
SOLVING_BYTES = 80
"""Of each parameter in question, for each query that is divided by the whole Gauss-Newton matrix: ten vectors in float64."""
_PAIR_TABLE_BYTES = 160
"""Of a pair that is written, on its way to the table."""
_ROW_BYTES = 250
"""Of a training row: where it stands in file and plan, its loss and self-influence."""
_FILES_OF_LINES = (".jsonl", ".ndjson", ".txt", ".csv")
_BYTES_PER_TOKEN = 4
"""Of a training file, roughly."""
_SMALL_MODEL = 10_000_000
_GPU = Path("/dev/nvidiactl")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_LAYER = re.compile(r"\.\d+\.")


def factors_estimate(checkpoints: Sequence[Checkpoint], params: FactorsParams) -> Estimate:
    """Covariances, then bases and eigenvalues, and one batch."""
    return Estimate(_curvature_bytes(checkpoints, params) + _FIXED_BYTES, _seconds(checkpoints, params, None), needs_model=True)


def self_estimate(checkpoints: Sequence[Checkpoint], params: SelfParams) -> Estimate:
    """Curvature and a batch's row gradients of one module."""
    return Estimate(_curvature_bytes(checkpoints, params) + _FIXED_BYTES, _seconds(checkpoints, params, 0), needs_model=True)


def scores_estimate(checkpoints: Sequence[Checkpoint], params: ScoresParams) -> Estimate:
    """Curvature, gradients of the queries that are held at once, as they are and divided by it, and two scores of every pair."""
    queries = 1 if params.completion else lines_of(params.queries)
    rows = lines_of(params.train)
    each = 4 * sum(outputs * inputs for outputs, inputs in _shapes(checkpoints[0], params.modules)) if checkpoints else 0
    copies = 2 if params.baselines else 1
    gradients = copies * each * min(queries, params.queries_at_once or queries)
    held = gradients if params.queries_at_once else min(gradients, max(QUERY_BYTES, copies * each))
    if params.curvature == "ggn":
        held += min(queries * each // 4 * SOLVING_BYTES, max(QUERY_BYTES, each // 4 * SOLVING_BYTES))
    pairs = queries * rows * (16 + _PAIR_TABLE_BYTES)
    if params.top_k is not None:
        looked_at = queries * min(rows, 2 * max(params.top_k, params.rerank))
        pairs = min(queries * rows * 16, max(PAIR_BYTES, 64 * looked_at)) + queries * min(rows, 2 * params.top_k) * _PAIR_TABLE_BYTES
    memory = _curvature_bytes(checkpoints, params) + held + pairs + rows * _ROW_BYTES + _FIXED_BYTES
    is_whole_pass = params.prefilter is None and params.curvature != "ggn"
    seconds = _seconds(checkpoints, params, queries, max(1, copies * each * queries // QUERY_BYTES)) if is_whole_pass else None
    return Estimate(memory, seconds, needs_model=True)


def lines_of(path: str) -> int:
    """Lines of a file, and one more: at most as many rows as it has, where rows are lines."""
    try:
        with Path(path).open("rb") as stream:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b"")) + 1
    except OSError:
        return 0


def _seconds(
    checkpoints: Sequence[Checkpoint], params: FactorsParams | ScoresParams | SelfParams, queries: int | None, passes: int = 1
) -> float | None:
    """As if no curvature were cached; None for files that are not lines. Without queries, of fitting alone; with 0, of self-influence."""
    path = Path(params.train)
    if not checkpoints or path.suffix.lower() not in _FILES_OF_LINES or not path.is_file():
        return None
    checkpoint, rows = checkpoints[0], lines_of(params.train)
    is_mlp, device = (checkpoint.config or {}).get("model_type") == "mlp", "cuda" if _GPU.exists() else "cpu"
    positions = rows if is_mlp else max(rows, path.stat().st_size // _BYTES_PER_TOKEN)
    usual = 1024 if is_mlp else 4096 if device == "cuda" else 1024 if checkpoint.parameters < _SMALL_MODEL else 256
    sizes = Sizes(list(_shapes(checkpoint, params.modules)), checkpoint.parameters, rows, positions, params.batch_size or usual)
    method, draws = ("ekfac" if params.curvature == "ggn" else params.curvature), params.label_draws if params.fisher == "true" else 1
    at = speed(device)
    fitting = 0.0 if isinstance(params, ScoresParams | SelfParams) and params.factors else fitting_seconds(sizes, method, draws, at)
    return fitting if queries is None else fitting + scoring_seconds(sizes, queries, method, at, passes)


def _curvature_bytes(checkpoints: Sequence[Checkpoint], params: FactorsParams | ScoresParams | SelfParams) -> int:
    """Twice what bases and eigenvalues take in float32: covariances stand beside the bases that are made of them."""
    if params.curvature == "identity" or not checkpoints:
        return 0
    total = 0
    for outputs, inputs in _shapes(checkpoints[0], params.modules):
        squares = outputs**2 + inputs**2 if params.curvature in ("ekfac", "kfac") else 0
        total += (2 * squares + outputs * inputs) * 4
    return total


def _shapes(checkpoint: Checkpoint, modules: str) -> Iterator[tuple[int, int]]:
    """(out, in) of the weights that `modules` means, as far as names of tensors tell."""
    is_mlp = (checkpoint.config or {}).get("model_type") == "mlp"
    parts = [part.strip() for part in modules.split(",")]
    for name, header in checkpoint.tensors.items():
        module = name.removesuffix(".weight")
        if module == name or len(header.shape) != 2:
            continue
        is_attention = bool(_ATTENTION.search(module))
        is_inside = is_mlp or bool(_LAYER.search(name))
        words = {"all": is_inside, "mlp": is_inside and not is_attention, "attention": is_inside and is_attention}
        if any(words.get(part, part == module or (is_inside and fnmatchcase(module, part))) for part in parts):
            yield header.shape[0], header.shape[1]
