"""Real checkpoint files, and the smallest job context there can be: it runs folds as they come, or in parts that it merges."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from modelscope_app.api import BadInput, Checkpoint, View
from modelscope_app.checkpoints import open_checkpoint


class Items(NamedTuple):
    """A source of any sequence, `per_batch` items a step."""

    items: Sequence[Any]
    per_batch: int
    unit: str

    @property
    def plan(self) -> list[list[int]]:
        ids = list(range(len(self.items)))
        return [ids[start : start + self.per_batch] for start in range(0, len(ids), self.per_batch)]

    def load(self, ids: Sequence[int]) -> list[Any]:
        return [self.items[id] for id in ids]


class Steps(NamedTuple):
    """A series, opened."""

    path: Path
    steps: Sequence[int]
    checkpoints: Sequence[Checkpoint]


class Words:
    """A tokenizer whose tokens are named after their ids."""

    def token(self, id: int) -> str:
        return f"w{id}"


class MemoryContext:
    """As much of `JobContext` as these analyses use. `parts` says into how many passes a fold is cut and merged again."""

    def __init__(self, checkpoints: Sequence[Checkpoint] = (), series: Sequence[Steps] = (), parts: int = 1, tokenizer: Any = None) -> None:
        self.checkpoints = checkpoints
        self.series = series
        self.parts = parts
        self.tables: dict[str, pl.DataFrame] = {}
        self.views: dict[str, View] = {}
        self.found: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.values: dict[str, Any] = {}
        self._tokenizer = tokenizer

    def items(self, items: Sequence[Any], per_batch: int = 1, unit: str = "items") -> Items:
        return Items(items, per_batch, unit)

    def fold(self, name: str, fold: Any, source: Items) -> Any:
        states = [fold.start() for _ in range(self.parts)]
        for number, ids in enumerate(source.plan):
            part = number % self.parts
            states[part] = fold.step(states[part], source.load(ids))
        state = states[0]
        for other in states[1:]:
            state = fold.merge(other, state)
        self.found[name] = fold.finish(state)
        return self.found[name]

    def generator(self, stage: str, key: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(sum(f"{stage} {key}".encode()))

    def tokenizer(self, checkpoint: int = 0) -> Any:
        if self._tokenizer is None:
            raise BadInput("no tokenizer")
        return self._tokenizer

    def table(self, name: str, frame: pl.DataFrame) -> None:
        self.tables[name] = frame

    def view(self, view: View) -> None:
        self.views[view.name] = view

    def facts(self, facts: Mapping[str, Any]) -> None:
        self.values.update(facts)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def log(self, message: str) -> None:
        pass

    def check_cancelled(self) -> None:
        pass

    def row(self, table: str, **where: Any) -> dict[str, Any]:
        """The one row of a table where these columns have these values."""
        frame = self.tables[table].filter(*[pl.col(name) == value for name, value in where.items()])
        assert frame.height == 1, frame
        return frame.row(0, named=True)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Checkpoint]:
    """Writes tensors (and config.json) into a folder and opens it."""

    def write(tensors: Mapping[str, torch.Tensor], name: str = "model", config: Mapping[str, Any] | None = None) -> Checkpoint:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, folder / "model.safetensors")
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        return open_checkpoint(folder)

    return write


@pytest.fixture
def written_raw(tmp_path: Path) -> Callable[..., Checkpoint]:
    """Writes a safetensors file with any dtype name: {tensor: (dtype, shape, bytes)}."""

    def write(tensors: Mapping[str, tuple[str, Sequence[int], bytes]], name: str = "raw") -> Checkpoint:
        header, data = {}, b""
        for key, (dtype, shape, stored) in tensors.items():
            header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(stored)]}
            data += stored
        text = json.dumps(header).encode()
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        return open_checkpoint(folder)

    return write


@pytest.fixture
def ran() -> Callable[..., MemoryContext]:
    """Runs an analysis of checkpoints, or of one series, and returns the context with what it stored."""

    def run(
        analysis: Callable[[Any, Any], None],
        params: BaseModel,
        *checkpoints: Checkpoint,
        steps: Sequence[int] | None = None,
        parts: int = 1,
        tokenizer: Any = None,
    ) -> MemoryContext:
        series = [] if steps is None else [Steps(checkpoints[0].path.parent, steps, checkpoints)]
        context = MemoryContext(checkpoints, series, parts, tokenizer)
        analysis(context, params)
        return context

    return run


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many elements a chunk holds, so that small tensors are read in many."""

    def set_elements(elements: int) -> None:
        from modelscope_weights import row_chunks

        monkeypatch.setattr(row_chunks.row_ranges, "__defaults__", (elements,))

    return set_elements
