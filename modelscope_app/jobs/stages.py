"""Stages and folds: how a long computation survives its process.

A finished stage's result is stored and handed back when the analysis is run again from the top. An unfinished fold goes on from
its newest saved state. The plan (item ids per batch) is stored before step 0, so a resumed pass takes the very same steps.

When things fail:
- cancelled between steps: the state is saved, then JobCancelled is raised;
- killed: at most `save_interval_seconds` of work (or twenty times what a save takes, so that saving stays under 5 % of the
  time) is done again;
- out of memory in a fold that merges: the pass goes back to the newest saved state, the batches from there on that are as big
  as the one that failed are halved, and the plan is stored again. A sequential fold, whose result depends on its batches, fails;
- chunks appended after the newest saved state are deleted on resuming, and appended again by the repeated steps.

Results come back from the disk, on the CPU, in a first run and in a resumed one alike. A state is held to what a saved one can
be: the same names throughout, plain tensors that share no memory and ask for no gradient, laid out contiguously. The running
generators are seeded anew at the start and after the end of every stage, so draws between stages do not depend on what was
read back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modelscope_app.api import Fold, Source
from modelscope_app.jobs import stored
from modelscope_app.jobs.fold_pass import FoldPass
from modelscope_app.jobs.out_of_memory import is_out_of_memory, release_cached_memory
from modelscope_app.jobs.randomness import seed_running_generators

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
Batch = TypeVar("Batch")

_STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


class Stages:
    """The stages of one run, in the folder `stages/`."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        save_interval_seconds: float,
        check_cancelled: Callable[[], None],
        on_stage: Callable[[str, bool], None],
        on_progress: Callable[[str, float, float | None, str], None],
        on_warning: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._seed = seed
        self._save_interval_seconds = save_interval_seconds
        self._check_cancelled = check_cancelled
        self._on_stage = on_stage
        self._on_progress = on_progress
        self._on_warning = on_warning
        self._entered: list[str] = []
        self._active: str | None = None
        self._pass: FoldPass | None = None
        seed_running_generators(seed)

    def once(self, name: str, compute: Callable[[], Result]) -> Result:
        """The stage's stored result, or `compute()`, stored."""
        with self._stage(name) as folder:
            if not stored.is_stored(folder):
                self._check_cancelled()
                seed_running_generators(self._seed, name)
                stored.store(folder, compute())
            result: Result = stored.load(folder)
        return result

    def fold(self, name: str, fold: Fold[Batch, Result], source: Source[Batch]) -> Result:
        """The stage's stored result, or that of the pass, from its newest saved state on."""
        with self._stage(name) as folder:
            if not stored.is_stored(folder):
                self._pass = FoldPass(name, folder, merges=hasattr(fold, "merge"))
                try:
                    self._run(self._pass, fold, source)
                finally:
                    self._pass = None
            result: Result = stored.load(folder)
        return result

    def append(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add a chunk to the list `name` of the running fold."""
        if self._pass is None:
            raise RuntimeError("context.append belongs inside a fold's step")
        self._pass.append(_checked(name), tensors)

    def appended(self, name: str) -> Iterator[dict[str, torch.Tensor]]:
        """The chunks of a list, in order: of a finished stage, or of the fold that is finishing."""
        from safetensors.torch import load_file

        if self._pass is not None and any(chunk.list == name for chunk in self._pass.chunks):
            files = [self._pass.folder / chunk.file for chunk in self._pass.chunks if chunk.list == name]
        else:
            files = [
                listing.parent / file
                for stage in self._entered
                if (listing := self._folder / stage / "chunks.json").is_file()
                for list_name, file, *_ in json.loads(listing.read_text(encoding="utf-8"))
                if list_name == name
            ]
        for file in files:
            yield load_file(file)

    @contextmanager
    def _stage(self, name: str) -> Iterator[Path]:
        """The folder of a stage that begins; stages have names of their own and do not lie in one another."""
        if _checked(name) in self._entered:
            raise RuntimeError(f"stage {name!r} is there twice; every stage of a run has a name of its own")
        if self._active is not None:
            raise RuntimeError(f"stage {name!r} begins inside stage {self._active!r}; stages follow one another")
        self._entered.append(name)
        self._active = name
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        self._on_stage(name, stored.is_stored(folder))
        try:
            yield folder
        finally:
            self._active = None
        seed_running_generators(self._seed, name, "after")

    def _run(self, running: FoldPass, fold: Fold[Batch, Result], source: Source[Batch]) -> None:
        running.fix_plan(source.plan)
        state = self._begun(running, fold)
        unit = source.unit
        self._on_progress(running.name, running.items_done, running.items, unit)
        while running.step < len(running.plan):
            try:
                self._check_cancelled()
            except BaseException:
                running.save(state)
                raise
            try:
                state = fold.step(state, source.load(running.plan[running.step]))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # What the failed step left in `state` is unknown, so the pass goes back to what it saved.
                del state
                release_cached_memory()
                size = running.halve_batches(error)
                self._on_warning(f"stage {running.name}: out of memory; batches of {size} are halved from here on")
                state = self._begun(running, fold)
                continue
            state = running.checked(state)
            running.advance()
            self._on_progress(running.name, running.items_done, running.items, unit)
            if running.is_save_due(self._save_interval_seconds):
                running.save(state)
        result = fold.finish(state)
        running.store_result(result)

    def _begun(self, running: FoldPass, fold: Fold[Any, Any]) -> dict[str, torch.Tensor]:
        """The state a pass begins or goes on with."""
        seed_running_generators(self._seed, running.name)
        return running.resume(running.checked(fold.start()))


def _checked(name: str) -> str:
    if not _STAGE_NAME.fullmatch(name):
        raise ValueError(f"{name!r}: stages and lists are named with lower-case letters, digits, dots, dashes and underscores")
    return name
