"""Opening a checkpoint or a series for the screen: everything the first paint needs, read in one go, in a thread.

No torch, no polars, no numpy. Whatever is wrong is a BadInput with the sentence to show. The groups of the tensor tree are made
when first asked for, after the overview is on the screen.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from modelscope_app.api.errors import BadInput
from modelscope_app.api.tensor_header import TensorHeader
from modelscope_app.tui.checkpoint.tensor_groups import Group, top_groups

if TYPE_CHECKING:
    from modelscope_app.checkpoints import OpenCheckpoint, OpenSeries
    from modelscope_app.checkpoints.overview import Overview


@dataclass(frozen=True, slots=True)
class OpenedMember:
    """One checkpoint of a series."""

    step: int
    path: Path
    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    error: str | None = None
    """The sentence, where it cannot be opened; the numbers are then 0."""


@dataclass(frozen=True)
class Opened:
    """A checkpoint or series whose headers were read."""

    path: str
    """Absolute."""
    name: str
    """For people; untrusted."""
    checkpoint: OpenCheckpoint | None
    """None for a series."""
    series: OpenSeries | None
    """None for a checkpoint."""
    overview: Overview | None
    """None for a series."""
    headers: Sequence[TensorHeader]
    """Every tensor, in the order of the files; for a series, of its first member that can be opened."""
    tensors_in: str
    """Absolute path of the checkpoint that these tensors are in."""
    members: tuple[OpenedMember, ...] = ()
    """Of a series, by step."""
    differences: tuple[str, ...] = ()
    """How members of a series differ from the first in tensors and shapes, one sentence each; neutralised."""

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """First level of the tensor tree. For 18,000 tensors it takes 40 ms, the first time."""
        return tuple(top_groups(self.headers))


def opened(path: str | Path) -> Opened:
    """Open what somebody named: a folder, a file, `hf:org/name` or a series. Raises BadInput."""
    with _without_collections():
        return _opened(path)


def _opened(path: str | Path) -> Opened:
    from modelscope_app.checkpoints import is_series_only, open_checkpoint
    from modelscope_app.checkpoints.overview import overview

    if is_series_only(path):
        return _opened_series(path)
    checkpoint = open_checkpoint(path)
    facts = overview(checkpoint)
    return Opened(str(checkpoint.path), checkpoint.name, checkpoint, None, facts, _headers(checkpoint), str(checkpoint.path))


def _opened_series(path: str | Path) -> Opened:
    from modelscope_app.checkpoints import open_checkpoint, open_series

    series = open_series(path)
    members: list[OpenedMember] = []
    first: OpenCheckpoint | None = None
    for member in series.members:
        try:
            checkpoint = open_checkpoint(member.path)
        except BadInput as error:
            members.append(OpenedMember(member.step, member.path, error=str(error)))
            continue
        first = first or checkpoint
        tensors = sum(len(shard.tensors) for shard in checkpoint.shards)
        members.append(OpenedMember(member.step, member.path, tensors, checkpoint.parameters, checkpoint.bytes))
    all_open = all(member.error is None for member in members)
    return Opened(
        str(series.path),
        series.name,
        None,
        series,
        None,
        _headers(first) if first is not None else (),
        str(first.path) if first is not None else str(series.path),
        tuple(members),
        tuple(series.shape_differences()) if all_open else (),
    )


def _headers(checkpoint: OpenCheckpoint) -> list[TensorHeader]:
    return [header for shard in checkpoint.shards for header in shard.tensors]


@contextmanager
def _without_collections() -> Iterator[None]:
    """Nothing made while opening is garbage, and looking for some would take a fifth of the time to the first paint."""
    were_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if were_on:
            gc.enable()
