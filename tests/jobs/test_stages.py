"""Stages and folds in one process: plans, saves, resuming, running out of memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modelscope_app.api import JobCancelled, JobFailed
from modelscope_app.data import items_source
from modelscope_app.jobs.stages import Stages


class Hears:
    """Collects what stages say, and cancels after a number of steps."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.stages: list[tuple[str, bool]] = []
        self.progress: list[tuple[str, float, float | None, str]] = []
        self.warnings: list[str] = []
        self.cancel_after = cancel_after

    def check(self) -> None:
        if self.cancel_after is not None and len(self.progress) > self.cancel_after:
            raise JobCancelled("cancelled")


def stages(folder: Path, hears: Hears | None = None, save_interval_seconds: float = 1000.0) -> Stages:
    hears = hears or Hears()
    return Stages(
        folder,
        0,
        save_interval_seconds,
        hears.check,
        lambda name, resumed: hears.stages.append((name, resumed)),
        lambda *values: hears.progress.append(values),
        hears.warnings.append,
    )


class Sum:
    """Adds items up; `before` is called with each batch first."""

    def __init__(self, before: Callable[[list[int]], None] = lambda batch: None) -> None:
        self.before = before

    def start(self) -> dict[str, torch.Tensor]:
        return {"sum": torch.zeros((), dtype=torch.int64), "batches": torch.zeros((), dtype=torch.int64)}

    def step(self, state: dict[str, torch.Tensor], batch: list[int]) -> dict[str, torch.Tensor]:
        state["sum"] += sum(batch)
        self.before(batch)
        state["batches"] += 1
        return state

    def finish(self, state: dict[str, torch.Tensor]) -> dict[str, int]:
        return {name: int(value) for name, value in state.items()}

    def merge(self, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: a[name] + b[name] for name in a}


class SequentialSum(Sum):
    merge = None  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        if name == "merge":
            raise AttributeError(name)
        return super().__getattribute__(name)


ITEMS = list(range(20))


def test_a_finished_stage_hands_back_what_it_stored(tmp_path: Path) -> None:
    first = stages(tmp_path).fold("sum", Sum(), items_source(ITEMS, 4))

    def never(batch: list[int]) -> None:
        raise AssertionError("a finished stage ran again")

    hears = Hears()
    again = stages(tmp_path, hears)
    assert again.fold("sum", Sum(never), items_source(ITEMS, 4)) == first == {"sum": 190, "batches": 5}
    assert again.once("after", lambda: 7) == 7
    assert hears.stages == [("sum", True), ("after", False)]
    assert not list((tmp_path / "sum").glob("state-*"))


def test_progress_counts_items_up_to_all_of_them(tmp_path: Path) -> None:
    hears = Hears()
    stages(tmp_path, hears).fold("sum", Sum(), items_source(ITEMS, 8))
    assert [values[1:3] for values in hears.progress] == [(0, 20), (8, 20), (16, 20), (20, 20)]


def test_a_cancelled_fold_is_saved_and_takes_up_where_it_stopped(tmp_path: Path) -> None:
    seen: list[list[int]] = []
    with pytest.raises(JobCancelled):
        stages(tmp_path, Hears(cancel_after=2)).fold("sum", Sum(seen.append), items_source(ITEMS, 4))
    assert len(seen) == 2
    assert stages(tmp_path).fold("sum", Sum(seen.append), items_source(ITEMS, 4)) == {"sum": 190, "batches": 5}
    assert seen == [ITEMS[begin : begin + 4] for begin in range(0, 20, 4)]


def test_two_generations_are_kept_and_an_unreadable_newest_falls_back(tmp_path: Path) -> None:
    with pytest.raises(JobCancelled):
        stages(tmp_path, Hears(cancel_after=4), save_interval_seconds=0.0).fold("sum", Sum(), items_source(ITEMS, 4))
    generations = sorted((tmp_path / "sum").glob("state-*"))
    assert [path.name for path in generations] == ["state-000000000003.safetensors", "state-000000000004.safetensors"]
    generations[1].write_bytes(generations[1].read_bytes()[:-3])
    seen: list[list[int]] = []
    assert stages(tmp_path).fold("sum", Sum(seen.append), items_source(ITEMS, 4)) == {"sum": 190, "batches": 5}
    assert len(seen) == 2


def out_of_memory_over(size: int) -> Callable[[list[int]], None]:
    def check(batch: list[int]) -> None:
        if len(batch) > size:
            raise torch.OutOfMemoryError("no room")

    return check


@pytest.mark.parametrize("save_interval_seconds", [0.0, 1000.0])
def test_out_of_memory_halves_batches_and_counts_every_item_once(tmp_path: Path, save_interval_seconds: float) -> None:
    hears = Hears()
    result = stages(tmp_path, hears, save_interval_seconds).fold("sum", Sum(out_of_memory_over(2)), items_source(ITEMS, 7))
    assert result["sum"] == 190
    plan = json.loads((tmp_path / "sum" / "plan.json").read_text())
    assert sorted(item for batch in plan["batches"] for item in batch) == ITEMS
    assert max(map(len, plan["batches"])) <= 2
    assert plan["amendments"]
    assert "batches of 7 are halved" in hears.warnings[0]


def test_out_of_memory_with_a_single_item_fails_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="out of memory with a single item"):
        stages(tmp_path).fold("sum", Sum(out_of_memory_over(0)), items_source(ITEMS, 4))


def test_out_of_memory_never_changes_the_batches_of_a_sequential_fold(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="its result depends on its batches"):
        stages(tmp_path).fold("sum", SequentialSum(out_of_memory_over(2)), items_source(ITEMS, 4))


def test_other_data_than_a_fold_was_begun_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobCancelled):
        stages(tmp_path, Hears(cancel_after=1)).fold("sum", Sum(), items_source(ITEMS, 4))
    with pytest.raises(JobFailed, match="its data are not those it was begun with"):
        stages(tmp_path).fold("sum", Sum(), items_source(ITEMS[:-1], 4))


def test_a_stage_name_is_used_once(tmp_path: Path) -> None:
    running = stages(tmp_path)
    running.once("sum", lambda: 1)
    with pytest.raises(RuntimeError, match="'sum' is there twice"):
        running.once("sum", lambda: 2)
    with pytest.raises(ValueError, match="lower-case"):
        running.once("../escape", lambda: 2)


def test_append_outside_a_fold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="inside a fold"):
        stages(tmp_path).append("rows", {"x": torch.ones(1)})


def test_a_stage_draws_the_same_whether_those_before_it_ran_or_were_read_back(tmp_path: Path) -> None:
    whole = stages(tmp_path / "a")
    whole.once("first", lambda: torch.randn(1000))
    expected = whole.once("second", lambda: torch.randn(3))
    partly = stages(tmp_path / "b")
    partly.once("first", lambda: torch.randn(1000))
    torch.manual_seed(99)
    resumed = stages(tmp_path / "b")
    resumed.once("first", lambda: torch.randn(1000))
    assert torch.equal(resumed.once("second", lambda: torch.randn(3)), expected)


class Holding:
    """A fold whose state is given from outside."""

    def __init__(self, start: Callable[[], Any], step: Callable[[Any], Any] = lambda state: state) -> None:
        self._start, self._step = start, step

    def start(self) -> Any:
        return self._start()

    def step(self, state: Any, batch: list[int]) -> Any:
        return self._step(state)

    def finish(self, state: Any) -> Any:
        return {name: value.clone() for name, value in state.items()}


def shared() -> dict[str, torch.Tensor]:
    whole = torch.ones(4)
    return {"whole": whole, "part": whole[:2]}


@pytest.mark.parametrize(
    ("fold", "sentence"),
    [
        (Holding(lambda: [torch.ones(1)]), "a flat dict of tensors"),
        (Holding(lambda: {"a": 1.0}), "a flat dict of tensors"),
        (Holding(lambda: {"a": torch.ones(1)}, lambda state: {**state, "b": torch.ones(1)}), "keep the names it starts with; changed: b"),
        (Holding(lambda: {"a": torch.ones(1, requires_grad=True)}), "'a' asks for a gradient"),
        (Holding(lambda: {"a": torch.ones(1, dtype=torch.complex128)}), "'a' is torch.complex128"),
        (Holding(shared), "'part' shares its memory with 'whole'"),
    ],
    ids=["list", "number", "grows", "gradient", "dtype", "aliases"],
)
def test_a_state_that_would_not_come_back_as_it_was_is_refused_at_once(tmp_path: Path, fold: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        stages(tmp_path).fold("hold", fold, items_source(ITEMS))


def test_a_transposed_state_gives_the_same_bits_resumed(tmp_path: Path) -> None:
    def fold() -> Holding:
        def step(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"matrix": (state["matrix"] * 1.0001).T.contiguous().T, "sum": state["sum"] + state["matrix"].sum()}

        return Holding(lambda: {"matrix": torch.randn(700, 1111).T, "sum": torch.zeros(())}, step)

    whole = stages(tmp_path / "a").fold("hold", fold(), items_source(ITEMS))
    with pytest.raises(JobCancelled):
        stages(tmp_path / "b", Hears(cancel_after=3)).fold("hold", fold(), items_source(ITEMS))
    resumed = stages(tmp_path / "b").fold("hold", fold(), items_source(ITEMS))
    assert torch.equal(whole["sum"], resumed["sum"])


def test_running_out_of_memory_begins_with_the_same_draws(tmp_path: Path) -> None:
    class Drawing(Sum):
        def start(self) -> dict[str, torch.Tensor]:
            return {"sum": torch.randn(()), "batches": torch.zeros(())}

        def finish(self, state: dict[str, torch.Tensor]) -> Any:
            return float(state["sum"])

    plain = stages(tmp_path / "a").fold("sum", Drawing(), items_source([1, 2, 3, 4], 4))
    halved = stages(tmp_path / "b").fold("sum", Drawing(out_of_memory_over(1)), items_source([1, 2, 3, 4], 4))
    assert halved == pytest.approx(plain, rel=1e-6)  # float32, added in four steps instead of one


def test_stages_do_not_lie_in_one_another(tmp_path: Path) -> None:
    running = stages(tmp_path)
    with pytest.raises(RuntimeError, match="'inner' begins inside stage 'outer'"):
        running.once("outer", lambda: running.once("inner", lambda: 1))


@pytest.mark.parametrize("file", ["plan.json", "result.json"])
def test_a_damaged_stage_is_named(tmp_path: Path, file: str) -> None:
    with pytest.raises(JobCancelled):
        stages(tmp_path, Hears(cancel_after=1)).fold("sum", Sum(), items_source(ITEMS, 4))
    (tmp_path / "sum" / file).write_text("{")
    with pytest.raises(JobFailed, match=f"sum.*damaged|{file}.*damaged"):
        stages(tmp_path).fold("sum", Sum(), items_source(ITEMS, 4))


def test_chunks_come_in_the_order_of_stages_not_of_their_names(tmp_path: Path) -> None:
    running = stages(tmp_path)
    for number in (2, 10):
        append = lambda batch, number=number: running.append("rows", {"x": torch.tensor([number])})  # noqa: E731
        running.fold(f"pass-{number}", Sum(append), items_source([1]))
    assert [int(chunk["x"]) for chunk in running.appended("rows")] == [2, 10]
