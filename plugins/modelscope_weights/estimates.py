"""What the weights analyses cost, from headers alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from modelscope_app.api import Checkpoint, Estimate
from modelscope_weights.params import DiffParams, SeriesParams, StatsParams

_CHUNK_BYTES = 2 << 20
"""2^18 values in float64, see `row_chunks`."""
_HISTOGRAM_BYTES = 48
"""Per bin of each tensor: its count, its row of the table with both edges, and the table on its way to the file."""
_KEPT_BYTES = 64 << 20
"""A difference kept for its spectrum, see `passes`."""
_SPECTRUM_BYTES = 8 * (3 * 384 + 3 * 32)
"""Per row or column of a matrix: a Krylov basis, its images and a copy of one as it grows, 384 columns each, and blocks on their
way; see `spectrum`."""
_NANOSECONDS = {"stats_narrow": 4.0, "stats_wide": 25.0, "diff": 25.0, "spectrum": 60.0, "series": 15.0}
"""Time per parameter, order of magnitude, on one core of 2020s hardware with files in the page cache."""


def stats_estimate(checkpoints: Sequence[Checkpoint], params: StatsParams) -> Estimate:
    """Chunks, the table of histograms, and a row where one row is longer than a chunk."""
    headers = checkpoints[0].tensors.values()
    narrow = sum(header.parameters for header in headers if header.bytes <= 2 * header.parameters)
    nanoseconds = narrow * _NANOSECONDS["stats_narrow"] + (checkpoints[0].parameters - narrow) * _NANOSECONDS["stats_wide"]
    return Estimate(
        memory_bytes=16 * _CHUNK_BYTES + len(headers) * params.bins * _HISTOGRAM_BYTES + _longest_row_bytes(checkpoints[0]),
        seconds=nanoseconds / 1e9,
    )


def diff_estimate(checkpoints: Sequence[Checkpoint], params: DiffParams) -> Estimate:
    """Chunks of both, a kept difference of up to 2^23 elements, and the Krylov space of the largest matrix."""
    headers = checkpoints[0].tensors.values()
    nanoseconds = checkpoints[0].parameters * _NANOSECONDS["diff"]
    memory = 16 * _CHUNK_BYTES + 2 * _longest_row_bytes(checkpoints[0])
    if params.spectrum:
        matrices = [header for header in headers if len(header.shape) >= 2 and header.parameters]
        sides = [min(header.shape[0], header.parameters // header.shape[0]) for header in matrices]
        memory += _KEPT_BYTES + max(sides, default=0) * _SPECTRUM_BYTES
        nanoseconds += sum(header.parameters for header in matrices) * _NANOSECONDS["spectrum"]
    return Estimate(memory_bytes=memory, seconds=nanoseconds / 1e9)


def series_estimate(checkpoints: Sequence[Checkpoint], params: SeriesParams) -> Estimate:
    """Chunks, the longest row of four checkpoints as it is stored, and a few sums per tensor and step."""
    rows = 5 * max(_longest_row_bytes(checkpoint) for checkpoint in checkpoints)  # the fifth is on its way in
    memory = 30 * _CHUNK_BYTES + rows + 64 * len(checkpoints[0].tensors) * len(checkpoints)
    seconds = sum(checkpoint.parameters for checkpoint in checkpoints) * _NANOSECONDS["series"] / 1e9
    return Estimate(memory_bytes=memory, seconds=seconds)


def _longest_row_bytes(checkpoint: Checkpoint) -> int:
    """Stored size of the longest single row, where it is longer than a chunk."""
    rows = (header.bytes // header.shape[0] for header in checkpoint.tensors.values() if header.shape and header.shape[0])
    return max((size for size in rows if size > _CHUNK_BYTES), default=0)
