"""What plugin authors test with: folds held to their promise, checkpoints, runs in a process of their own."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import polars
import pytest
import torch
from plugin_host.plugin_sources import WORKING
from safetensors.numpy import load_file

from modelscope_app.plugin_host import PluginHost
from modelscope_app.testing import RunFailed, TemporaryPlugins, assert_fold_merges

pytest_plugins = ["modelscope_app.testing"]

State = dict[str, torch.Tensor]


class Numbers:
    """Batches of numbers of unequal size."""

    unit = "numbers"

    def __init__(self, plan: Sequence[Sequence[int]] = ((0, 1, 2), (3,), (4, 5, 6, 7), (8, 9))) -> None:
        self.plan = plan
        self.values = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0], dtype=torch.float64)

    def load(self, ids: Sequence[int]) -> torch.Tensor:
        return self.values[list(ids)]


class Moments:
    """Sum, largest and count: a fold as it should be."""

    def start(self) -> State:
        return {
            "sum": torch.zeros((), dtype=torch.float64),
            "largest": torch.full((), -math.inf, dtype=torch.float64),
            "count": torch.zeros((), dtype=torch.int64),
        }

    def step(self, state: State, batch: torch.Tensor) -> State:
        state["sum"] += batch.sum()
        state["largest"] = torch.maximum(state["largest"], batch.max())
        state["count"] += len(batch)
        return state

    def merge(self, a: State, b: State) -> State:
        return {"sum": a["sum"] + b["sum"], "largest": torch.maximum(a["largest"], b["largest"]), "count": a["count"] + b["count"]}

    def finish(self, state: State) -> Any:
        mean = state["sum"] / state["count"]
        frame = polars.DataFrame({"mean": [float(mean)], "nothing": [None]}, schema={"mean": polars.Float64, "nothing": polars.String})
        return {"mean": mean, "list": [float(state["largest"]), math.nan], "table": frame, "count": int(state["count"])}


class MergeForgetsTheCount(Moments):
    def merge(self, a: State, b: State) -> State:
        return {**super().merge(a, b), "count": a["count"]}


class MergeTakesTheSecond(Moments):
    """Wrong only where the order of the parts matters."""

    def merge(self, a: State, b: State) -> State:
        return {**super().merge(a, b), "largest": b["largest"]}


class KeepsSomethingOutsideItsState(Moments):
    def __init__(self) -> None:
        self.seen = 0

    def step(self, state: State, batch: torch.Tensor) -> State:
        self.seen += len(batch)
        return super().step(state, batch)

    def finish(self, state: State) -> Any:
        return self.seen


class AveragesAverages(Moments):
    """Right for equal batches, wrong for others."""

    def step(self, state: State, batch: torch.Tensor) -> State:
        state["sum"] += batch.mean()
        state["count"] += 1
        return state

    def merge(self, a: State, b: State) -> State:
        mean = (a["sum"] / a["count"].clamp(min=1) + b["sum"] / b["count"].clamp(min=1)) / 2
        return {**super().merge(a, b), "sum": mean, "count": torch.ones((), dtype=torch.int64)}


class ChangesItsType(Moments):
    def finish(self, state: State) -> Any:
        return 1 if int(state["count"]) == 10 and self.merged else 1.0

    merged = False

    def merge(self, a: State, b: State) -> State:
        self.merged = True
        return super().merge(a, b)


class KeepsAList(Moments):
    def start(self) -> Any:
        return {"values": []}


class KeepsANumber(Moments):
    def step(self, state: State, batch: torch.Tensor) -> Any:
        return {**super().step(state, batch), "count": 3}


def test_a_fold_that_merges_passes() -> None:
    assert_fold_merges(Moments(), Numbers())
    assert_fold_merges(Moments(), Numbers([[index] for index in range(10)]))


@pytest.mark.parametrize(
    ("fold", "words"),
    [
        (MergeForgetsTheCount(), r"MergeForgetsTheCount: two halves merged and one pass differ: result\['mean'\], largest difference"),
        (MergeTakesTheSecond(), r"merged .*differ: result\['list'\]\[0\] is 9.0 and 6.0|merged .*is 9.0 and"),
        (KeepsSomethingOutsideItsState(), "the same pass again and one pass differ: result is 10 and 20"),
        (AveragesAverages(), "merged and one pass differ"),
        (ChangesItsType(), "differ: result is 1.0 and 1"),
        (KeepsAList(), r"KeepsAList.start: state\['values'\] is a list; the state of a fold is a flat dict of tensors"),
        (KeepsANumber(), r"KeepsANumber.step: state\['count'\] is a int"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_fold_that_breaks_its_promise_is_caught(fold: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        assert_fold_merges(fold, Numbers())


def test_one_batch_is_not_enough_to_say() -> None:
    with pytest.raises(AssertionError, match="at least two batches"):
        assert_fold_merges(Moments(), Numbers([[0, 1, 2]]))


def test_a_sequential_fold_is_told_it_has_no_merge() -> None:
    class Training:
        start, step, finish = Moments.start, Moments.step, Moments.finish

    with pytest.raises(AssertionError, match="Training has no merge"):
        assert_fold_merges(Training(), Numbers())  # type: ignore[arg-type]


def test_a_tiny_checkpoint_is_safetensors_with_a_config(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint({"a": [[1, 2]], "b": numpy.arange(3)}, {"model_type": "mlp"})
    tensors = load_file(folder / "model.safetensors")
    assert (tensors["a"].dtype, tensors["a"].tolist()) == (numpy.float32, [[1.0, 2.0]])
    assert (tensors["b"].dtype, tensors["b"].tolist()) == (numpy.int64, [0, 1, 2])
    assert (folder / "config.json").read_text() == '{"model_type": "mlp"}'
    assert tiny_checkpoint({}) != folder


def test_a_tiny_checkpoint_can_be_bfloat16(tiny_checkpoint: Callable[..., Path]) -> None:
    from safetensors.torch import load_file as load_torch_file

    folder = tiny_checkpoint({"a": torch.ones(2, 2, dtype=torch.bfloat16).t(), "b": [1.0]})
    assert {name: tensor.dtype for name, tensor in load_torch_file(folder / "model.safetensors").items()} == {
        "a": torch.bfloat16,
        "b": torch.float32,
    }
    assert not (folder / "config.json").exists()


def test_every_test_has_folders_of_its_own(mscope_folders: Path) -> None:
    assert [os.environ[f"MSCOPE_{kind}_DIR"] for kind in ("DATA", "CACHE", "CONFIG", "STATE")] == [
        str(mscope_folders / kind) for kind in ("data", "cache", "config", "state")
    ]


def test_the_installed_host_sees_the_first_party_plugins(installed_host: PluginHost) -> None:
    assert installed_host.plugin_report("weights").distribution == "modelscope-app"


def test_a_temporary_plugin_hides_all_others_and_is_forgotten(temporary_plugins: TemporaryPlugins) -> None:
    module = temporary_plugins.write("one", WORKING)
    assert temporary_plugins.host().names() == ("one",)
    temporary_plugins.host().load_all()
    assert module in sys.modules
    temporary_plugins.forget_modules()
    assert module not in sys.modules


def test_an_analysis_runs_as_a_user_runs_it(
    temporary_plugins: TemporaryPlugins, run_analysis: Callable[..., Any], tiny_checkpoint: Callable[..., Path]
) -> None:
    temporary_plugins.write("one", WORKING)
    run = run_analysis("one.stats", tiny_checkpoint({"a": [1.0]}), bins=7)
    assert (run.analysis, run.status, run.facts) == ("one.stats", "done", {"bins": 7})
    with pytest.raises(RunFailed, match=r"mscope run exited with 3: .*no-such-folder") as failed:
        run_analysis("one.stats", "no-such-folder")
    assert failed.value.exit_code == 3
