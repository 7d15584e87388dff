"""Statistics and histogram of one tensor, from the newest finished run of `weights.stats` on its checkpoint.

Called in a thread: it reads run folders and, with polars, two tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from modelscope_app.api import BadInput, MscopeError

if TYPE_CHECKING:
    from modelscope_app.checkpoints import OpenCheckpoint
    from modelscope_app.runs.folder import RunFolder

ANALYSIS = "weights.stats"
CHEAP_BYTES = 256 * 1000**2
"""Up to this size a fingerprint takes well under a second, and is computed to tell whether the checkpoint changed."""


class Bin(NamedTuple):
    """One bar of a histogram."""

    left: float
    right: float
    values: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a run says of a tensor."""

    run: Path
    run_id: str
    """Neutralised."""
    created: datetime
    values: Mapping[str, Any]
    """Columns of the run's table `tensors`; empty where the tensor is not in it."""
    bins: tuple[Bin, ...]
    """Empty where the run made no histogram of it."""
    doubt: str | None
    """The sentence that says that the checkpoint is no longer the one the run read, or that nobody checked; None where it is the same."""


def stored_statistics(checkpoint: OpenCheckpoint | None, path: str, tensor: str) -> Statistics | None:
    """What the newest run on the checkpoint at `path` says of a tensor; None without a run. Raises MscopeError for a damaged one."""
    run = _newest_run(path)
    if run is None:
        return None
    return Statistics(
        run.folder,
        run.id,
        run.job.created_at,
        _row(run, tensor),
        _bins(run, tensor),
        _doubt(run, checkpoint, path),
    )


def _newest_run(path: str) -> RunFolder | None:
    from modelscope_app.runs.index import found_runs

    for run in found_runs().runs:
        if run.analysis == ANALYSIS and any(given.path == path and not given.series for given in run.job.checkpoints):
            try:
                if run.status == "done":
                    return run
            except MscopeError:
                continue
    return None


def _row(run: RunFolder, tensor: str) -> Mapping[str, Any]:
    rows = _of_tensor(run, "tensors", tensor)
    return rows[0] if rows else {}


def _bins(run: RunFolder, tensor: str) -> tuple[Bin, ...]:
    if "histograms" not in run.tables:
        return ()
    bins = []
    for row in _of_tensor(run, "histograms", tensor):
        left, right, count = (_finite(row.get(column)) for column in ("left", "right", "count"))
        if left is None or right is None or count is None or count < 0:
            return ()
        bins.append(Bin(left, right, int(count)))
    return tuple(bins)


def _of_tensor(run: RunFolder, table: str, tensor: str) -> list[dict[str, Any]]:
    """Rows of a table that are about a tensor."""
    import polars
    from polars.exceptions import PanicException, PolarsError

    path = run.tables.get(table)
    if path is None:
        return []
    try:
        frame = polars.scan_parquet(path).filter(polars.col("tensor").cast(polars.String) == tensor).head(2000).collect()
        return frame.to_dicts()
    except (PolarsError, PanicException, OSError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadInput(f"{path}: damaged, or not what its name says ({why})") from None


def _doubt(run: RunFolder, checkpoint: OpenCheckpoint | None, path: str) -> str | None:
    from modelscope_app.checkpoints import open_checkpoint

    checkpoint = checkpoint or open_checkpoint(path)
    if checkpoint.bytes <= CHEAP_BYTES:
        recorded = next(given.fingerprint for given in run.job.checkpoints if given.path == path)
        same = checkpoint.fingerprint == recorded
        return None if same else "The checkpoint has changed since: these are statistics of earlier content."
    written = max((shard.state.modified_ns for shard in checkpoint.shards), default=0) / 1e9
    if datetime.fromtimestamp(written, UTC) > run.job.created_at:
        return "Files of the checkpoint were written after this run: these may be statistics of earlier content."
    return None


def _finite(value: object) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
