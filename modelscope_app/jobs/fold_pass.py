"""One fold under way: its plan, its place in it, its chunks and its saved states. `stages` says what happens when things fail."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_app.api import JobFailed
from modelscope_app.jobs import stored
from modelscope_app.jobs.randomness import restore_running_generators, running_generators
from modelscope_app.jobs.saved_state import Chunk, SavedState, describe_chunk, drop_states, newest_state, save_state
from modelscope_app.runs.atomic import replacing, write_json

if TYPE_CHECKING:
    import torch

SAVING_SHARE = 0.05
"""Largest share of the time that saving states may take."""


class FoldPass:
    """A pass over data, from its plan to its stored result."""

    def __init__(self, name: str, folder: Path, merges: bool) -> None:
        self.name = name
        self.folder = folder
        self.merges = merges
        self.plan: list[list[int]] = []
        self.step = 0
        self.items = 0
        """Items in the whole plan."""
        self.items_done = 0
        """Items in the steps already taken."""
        self.chunks: list[Chunk] = []
        self._names: frozenset[str] = frozenset()
        self._amendments: list[dict[str, Any]] = []
        self._saved_step = -1
        self._saved_at = time.monotonic()
        self._save_seconds = 0.0

    def advance(self) -> None:
        """One more step of the plan is taken."""
        self.items_done += len(self.plan[self.step])
        self.step += 1

    def fix_plan(self, plan: Sequence[Sequence[int]]) -> None:
        """Use the stored plan, or store this one. Raises JobFailed when the stored one is over other items."""
        path = self.folder / "plan.json"
        given = [[int(item) for item in batch] for batch in plan]
        if path.is_file():
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
                self.plan, self._amendments = value["batches"], value["amendments"]
            except (ValueError, KeyError, TypeError):
                raise JobFailed(f"{path}: the stored plan is damaged; delete the folder {self.folder} and resume the run") from None
            if sorted(item for batch in self.plan for item in batch) != sorted(item for batch in given for item in batch):
                raise JobFailed(f"stage {self.name}: its data are not those it was begun with; start a new run")
        else:
            self.plan = given
            self._store_plan()
        self.items = sum(len(batch) for batch in given)

    def resume(self, start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The newest saved state, each tensor on the device it starts on; or `start`. Stray chunks are deleted."""
        saved = newest_state(self.folder)
        if saved is None:
            self.step, self.chunks = 0, []
        else:
            if set(saved.state) != set(start):
                raise JobFailed(f"stage {self.name}: its saved state holds other tensors than the fold starts with; start a new run")
            self.step, self.chunks = saved.step, list(saved.chunks)
            if saved.generators is not None:
                restore_running_generators(saved.generators)
            start = {name: saved.state[name].to(tensor.device) for name, tensor in start.items()}
        self.items_done = sum(len(batch) for batch in self.plan[: self.step])
        listed = {chunk.file for chunk in self.chunks}
        for path in (self.folder / "chunks").glob("*.safetensors"):
            if f"chunks/{path.name}" not in listed:
                path.unlink()
        self._saved_step = self.step if saved else -1
        self._saved_at = time.monotonic()
        return start

    def checked(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`state` as a saved one would be. Raises TypeError for one that would not come back as it was."""
        import torch

        where = f"stage {self.name}: the fold's state"
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise TypeError(f"{where} has to be a flat dict of tensors")
        self._names = self._names or frozenset(state)
        if self._names != frozenset(state):
            changed = ", ".join(sorted(self._names ^ frozenset(state)))
            raise TypeError(f"{where} has to keep the names it starts with; changed: {changed}")
        memories: dict[int, str] = {}
        for name, tensor in state.items():
            if tensor.requires_grad:
                raise TypeError(f"{where}: {name!r} asks for a gradient; keep plain tensors in it and ask inside the step")
            if not is_savable(tensor.dtype):
                raise TypeError(f"{where}: {name!r} is {tensor.dtype}, which safetensors cannot save")
            other = memories.setdefault(tensor.untyped_storage().data_ptr(), name)
            if other != name and tensor.numel():
                raise TypeError(f"{where}: {name!r} shares its memory with {other!r}; after resuming it would not")
        return {name: tensor.contiguous() for name, tensor in state.items()}

    def append(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a chunk; it counts once a saved state lists it."""
        from safetensors.torch import save_file

        file = f"chunks/{name}-{len(self.chunks):06d}.safetensors"
        (self.folder / "chunks").mkdir(exist_ok=True)
        with replacing(self.folder / file) as part:
            save_file({key: stored.on_disk(tensor) for key, tensor in tensors.items()}, part)
        self.chunks.append(describe_chunk(self.folder, name, file))

    def is_save_due(self, interval_seconds: float) -> bool:
        """Whether enough time has passed since the last save; with an interval of 0, after every step."""
        return interval_seconds == 0 or time.monotonic() - self._saved_at >= max(interval_seconds, self._save_seconds / SAVING_SHARE)

    def save(self, state: dict[str, torch.Tensor]) -> None:
        """Save a generation, unless this very step is saved already."""
        if self.step == self._saved_step:
            return
        began = time.monotonic()
        generators = None if self.merges else running_generators()
        save_state(self.folder, SavedState(self.step, state, tuple(self.chunks), generators))
        self._saved_step = self.step
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began

    def halve_batches(self, error: Exception) -> int:
        """Amend the plan from the newest saved state on; the size that was too big. Raises JobFailed when that cannot help."""
        failed = len(self.plan[self.step])
        if not self.merges:
            raise JobFailed(
                f"stage {self.name}: out of memory at a batch of {failed}, and its result depends on its batches; run it with smaller ones"
            ) from error
        if failed == 1:
            raise JobFailed(
                f"stage {self.name}: out of memory with a single item; use a device with more memory or a smaller dtype"
            ) from error
        saved = newest_state(self.folder)
        first = saved.step if saved else 0
        amended = self.plan[:first]
        for batch in self.plan[first:]:
            middle = (len(batch) + 1) // 2
            amended += [batch[:middle], batch[middle:]] if len(batch) >= failed else [batch]
        self.plan = amended
        self._amendments.append({"step": first, "halved": failed})
        self._store_plan()
        return failed

    def store_result(self, result: Any) -> None:
        """Store the result, then drop what was only needed to get there."""
        if self.chunks:
            listing = [[chunk.list, chunk.file, chunk.length, chunk.sha256] for chunk in self.chunks]
            write_json(self.folder / "chunks.json", listing)
        stored.store(self.folder, result)
        drop_states(self.folder)

    def _store_plan(self) -> None:
        with replacing(self.folder / "plan.json") as part:
            part.write_text(json.dumps({"batches": self.plan, "merges": self.merges, "amendments": self._amendments}), encoding="utf-8")


@cache
def is_savable(dtype: torch.dtype) -> bool:
    """Whether safetensors has a name for this dtype."""
    import torch
    from safetensors.torch import save

    try:
        save({"probe": torch.zeros(1, dtype=dtype)})
    except (KeyError, ValueError, TypeError, RuntimeError):
        return False
    return True
