"""A series: a folder of checkpoints of one training run, ordered by the step in their names.

Members are folders (`checkpoint-100/`, `step_100/`, `epoch-3/` ...) or files (`step_100.safetensors`). Their steps order them as
numbers. One folder holds one series: members that count different things (`step_100` beside `epoch-3`) or claim the same
step are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from modelscope_app.api.errors import BadInput
from modelscope_app.checkpoints.checkpoint import OpenCheckpoint, open_checkpoint
from modelscope_app.checkpoints.finding import SINGLE_FILE, absolute, is_folder, names_in, require_existing
from modelscope_app.checkpoints.header import shown
from modelscope_app.checkpoints.shard_index import INDEX_SUFFIX, SUFFIX
from modelscope_app.checkpoints.step_names import step_of


class Member(NamedTuple):
    """One checkpoint of a series, found by its name and not opened yet."""

    step: int
    path: Path
    word: str
    """What the step counts: `checkpoint`, `step`, `epoch` ..."""


def is_series(path: str | Path) -> bool:
    """Whether this is a folder with members of a series in it. Nothing is opened; False for a path that does not exist."""
    try:
        folder = absolute(path)
        return is_folder(folder) and bool(_members(folder))
    except BadInput:
        return False


def is_series_only(path: str | Path) -> bool:
    """Whether this is a series and not itself a checkpoint as well, as a trainer's output folder with the final model is."""
    if not is_series(path):
        return False
    names = names_in(absolute(path))
    return SINGLE_FILE not in names and not any(name.endswith(INDEX_SUFFIX) for name in names)


def open_series(path: str | Path) -> OpenSeries:
    """Find the members of a series. Raises BadInput where there are none, or they do not make one series."""
    folder = absolute(path)
    require_existing(folder, "name a folder of checkpoints")
    if not is_folder(folder):
        raise BadInput(f"{folder} is a file; a series is a folder of checkpoints, as checkpoint-100/ and checkpoint-200/")
    members = _members(folder)
    if not members:
        raise BadInput(
            f"{folder} is not a series: it has no folder as checkpoint-100/, step_100/ or epoch-3/ and no file as step_100.safetensors"
        )
    _refuse_mixture(folder, members)
    return OpenSeries(folder, members)


class OpenSeries:
    """Implements `modelscope_app.api.Series`. The members are opened when first asked for."""

    def __init__(self, path: Path, members: Sequence[Member]) -> None:
        self.path = path
        """Absolute path of the folder."""
        self.members: tuple[Member, ...] = tuple(members)
        """By step, ascending."""

    @property
    def name(self) -> str:
        """Last component of the path."""
        return self.path.name

    @property
    def steps(self) -> Sequence[int]:
        """Training step of each member, ascending."""
        return tuple(member.step for member in self.members)

    @cached_property
    def checkpoints(self) -> Sequence[OpenCheckpoint]:
        """The members, opened, in the same order. Raises BadInput naming the first one that cannot be opened."""
        return tuple(open_checkpoint(member.path) for member in self.members)

    def shape_differences(self) -> list[str]:
        """One sentence for each member and tensor that the first member has otherwise; empty where all agree."""
        first, *others = self.checkpoints
        expected = first.tensors
        differences = []
        for checkpoint in others:
            found = checkpoint.tensors
            differences += [f"{checkpoint.name} lacks the tensor {shown(name)} of {first.name}" for name in expected if name not in found]
            differences += [
                f"{checkpoint.name} has the tensor {shown(name)}, and {first.name} lacks it" for name in found if name not in expected
            ]
            differences += [
                f"{checkpoint.name} has {shown(name)} of shape {list(found[name].shape)}, and in {first.name} it is {list(header.shape)}"
                for name, header in expected.items()
                if name in found and found[name].shape != header.shape
            ]
        return differences

    def check_same_shapes(self) -> None:
        """Raise BadInput, naming member and tensor, unless all members have the same tensors of the same shapes."""
        differences = self.shape_differences()
        if differences:
            more = f" (and {len(differences) - 1} more such differences)" if len(differences) > 1 else ""
            raise BadInput(f"{self.path}: the members differ: {differences[0]}{more}")


def _members(folder: Path) -> list[Member]:
    found = []
    for name in names_in(folder):
        path = folder / name
        if name.endswith(SUFFIX):
            step = step_of(name.removesuffix(SUFFIX))
        else:
            step = step_of(name) if is_folder(path) else None
        if step:
            found.append(Member(step.step, path, step.word))
    return sorted(found, key=lambda member: (member.step, member.path.name))


def _refuse_mixture(folder: Path, members: Sequence[Member]) -> None:
    first = members[0]
    for member in members:
        if member.word != first.word:
            raise BadInput(
                f"{folder} mixes {shown(first.path.name)} and {shown(member.path.name)}, whose numbers count different things; "
                "move one kind into a folder of its own"
            )
    for before, after in pairwise(members):
        if before.step == after.step:
            raise BadInput(f"{folder} has step {after.step} twice: {shown(before.path.name)} and {shown(after.path.name)}; remove one")
