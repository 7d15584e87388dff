"""`weights.series` on real files."""

from __future__ import annotations

import math
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import polars.testing as polars_testing
import pytest
import torch
from modelscope_weights import passes
from modelscope_weights.analyses import series
from modelscope_weights.params import SeriesParams

from modelscope_app.api import BadInput

STEPS = [0, 10, 20, 50]


def member(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "layers.0.mlp.up.weight": torch.randn(20, 8, generator=generator),
        "layers.1.mlp.up.weight": torch.randn(20, 8, generator=generator),
        "norm.weight": torch.randn(8, generator=generator).to(torch.bfloat16),
        "scalar": torch.randn((), generator=generator),
        "empty": torch.zeros(0),
    }


@pytest.fixture
def members(written: Any) -> list[Any]:
    return [written(member(step), f"step_{step}") for step in STEPS]


def flat(step: int, *names: str) -> np.ndarray:
    return np.concatenate([member(step)[name].to(torch.float64).numpy().reshape(-1) for name in names])


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("mlp.up", ["layers.0.mlp.up.weight", "layers.1.mlp.up.weight"]),
        ("norm", ["norm.weight"]),
        ("(all)", ["layers.0.mlp.up.weight", "layers.1.mlp.up.weight", "norm.weight", "scalar"]),
    ],
)
@pytest.mark.parametrize("elements", [1 << 18, 7])
def test_norms_and_updates_of_a_module_are_those_of_all_its_values(
    members: Any, ran: Any, small_chunks: Any, module: str, names: list[str], elements: int
) -> None:
    small_chunks(elements)
    context = ran(series, SeriesParams(), *members, steps=STEPS)
    at = [flat(step, *names) for step in STEPS]
    updates = [b - a for a, b in pairwise(at)]
    length = np.linalg.norm
    for position, step in enumerate(STEPS):
        row = context.row("steps", module=module, step=step)
        assert row["norm"] == pytest.approx(length(at[position]), rel=1e-12)
        assert row["distance"] == pytest.approx(length(at[position] - at[0]), rel=1e-12)
        assert row["relative_distance"] == pytest.approx(length(at[position] - at[0]) / length(at[0]), rel=1e-12)
        if position == 0:
            assert (row["update_norm"], row["update_ratio"], row["straightness"], row["rounding_ratio"]) == (None,) * 4
            continue
        update = updates[position - 1]
        assert row["update_norm"] == pytest.approx(length(update), rel=1e-12)
        assert row["update_ratio"] == pytest.approx(length(update) / length(at[position - 1]), rel=1e-12)
        travelled = sum(length(each) for each in updates[:position])
        assert row["straightness"] == pytest.approx(length(at[position] - at[0]) / travelled, rel=1e-12)
        if position == 1:
            assert row["turn"] is None
            continue
        previous = updates[position - 2]
        assert row["turn"] == pytest.approx(np.vdot(update, previous) / length(update) / length(previous), rel=1e-10)
        assert row["turn_noise"] == pytest.approx(1 / math.sqrt(len(update)))


def test_passes_over_parts_of_the_tensors_merge_into_the_same_bits(members: Any, ran: Any) -> None:
    whole, merged = (ran(series, SeriesParams(), *members, steps=STEPS, parts=parts) for parts in (1, 3))
    assert whole.tables["steps"].equals(merged.tables["steps"])
    assert whole.tables["tensors"].equals(merged.tables["tensors"])


def test_training_in_a_straight_line_is_straight_and_a_standstill_has_no_turn(written: Any, ran: Any) -> None:
    direction = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line = [written({"w": direction * (1 + step)}, f"step_{step}") for step in range(4)]
    context = ran(series, SeriesParams(), *line, steps=range(4))
    assert context.values["straightness"] == pytest.approx(1)
    assert context.row("steps", module="w", step=3)["turn"] == pytest.approx(1)
    still = [written({"w": direction}, f"still_{step}") for step in range(3)]
    row = ran(series, SeriesParams(), *still, steps=range(3)).row("steps", module="w", step=2)
    assert (row["update_ratio"], row["turn"], row["straightness"]) == (0, None, None)


def test_nan_makes_the_steps_it_touches_unknown_and_no_others(written: Any, ran: Any) -> None:
    tensors = [member(step) for step in range(5)]
    tensors[2]["norm.weight"][0] = math.nan
    context = ran(series, SeriesParams(), *(written(each, f"step_{step}") for step, each in enumerate(tensors)), steps=range(5))
    norm = [context.row("steps", module="norm", step=step) for step in range(5)]
    assert [row["norm"] is None for row in norm] == [False, False, True, False, False]
    assert [row["update_norm"] is None for row in norm] == [True, False, True, True, False]
    assert [row["distance"] is None for row in norm] == [False, False, True, False, False]
    assert [row["nonfinite"] for row in norm] == [0, 0, 1, 0, 0]
    assert all(context.row("steps", module="mlp.up", step=step)["norm"] is not None for step in range(5))
    assert context.row("steps", module="(all)", step=2)["norm"] is None
    # the path is broken for good, so what is measured along it stays unknown
    assert [row["straightness"] is None for row in norm] == [True, False, True, True, True]
    assert [row["turn"] is None for row in norm] == [True, True, True, True, True]
    assert context.values["straightness"] is None
    assert (context.values["nonfinite"], context.values["nonfinite_checkpoints"]) == (1, 1)
    assert context.warnings == ["NaN or infinity in 1 of 5 checkpoints; what depends on them is unknown, straightness from there on"]
    ratios: list[tuple[str, float]] = []
    for name in ("layers.0.mlp.up.weight", "layers.1.mlp.up.weight", "norm.weight", "scalar"):
        for a, b in pairwise(each[name].double() for each in tensors):
            ratios.append((name, float((b - a).norm() / a.norm())))
    largest_name, largest_ratio = max((key for key in ratios if math.isfinite(key[1])), key=lambda key: key[1])
    assert context.values["largest_update_ratio_tensor"] == largest_name
    assert context.values["largest_update_ratio"] == pytest.approx(largest_ratio, rel=1e-12)
    assert context.values["unranked_updates"] == 2 + 4  # the two updates that touch the NaN, and the tensor without elements


def test_nan_in_the_first_checkpoint_makes_every_distance_unknown(written: Any, ran: Any) -> None:
    at = [written({"w": torch.tensor([math.nan if step == 0 else 1.0, float(step)])}, f"step_{step}") for step in range(5)]
    rows = [ran(series, SeriesParams(), *at, steps=range(5)).row("steps", module="w", step=step) for step in range(5)]
    assert [row["distance"] for row in rows] == [None] * 5
    assert [row["straightness"] for row in rows] == [None] * 5
    assert [row["norm"] is None for row in rows] == [True, False, False, False, False]
    assert [row["update_norm"] is None for row in rows] == [True, True, False, False, False]
    assert [row["turn"] is None for row in rows] == [True, True, True, False, False]


def test_a_tensor_that_one_member_stores_unreadably_is_left_out_of_all_and_named(written_raw: Any, ran: Any) -> None:
    numbers = struct.pack("<2f", 3, 4)
    first = written_raw({"w": ("F32", [2], numbers), "v": ("F32", [2], numbers)}, "step_0")
    second = written_raw({"w": ("F32", [2], numbers), "v": ("F4", [2], b"\x11")}, "step_1")
    context = ran(series, SeriesParams(), first, second, steps=[0, 1])
    assert [context.row("steps", module="(all)", step=step)["norm"] for step in (0, 1)] == [5, 5]
    assert context.tables["tensors"]["tensor"].unique().to_list() == ["w"]
    assert (context.values["skipped_tensors"], context.values["tensors"], context.values["last_norm"]) == (1, 2, 5)
    assert context.warnings == ["1 of 2 tensors are left out at every step: v (step 1: dtype F4 is not one that can be read as numbers)"]
    with pytest.raises(BadInput, match="no tensor can be followed from step to step, v for one: step 1: dtype F4"):
        ran(series, SeriesParams(only="v"), first, second, steps=[0, 1])


@pytest.mark.parametrize("scale", [1e-170, 1e160])
def test_norms_that_float64_cannot_hold_are_unknown(scale: float, written: Any, ran: Any) -> None:
    at = [written({"w": torch.arange(4, dtype=torch.float64) * scale * (step + 1)}, f"step_{step}") for step in range(3)]
    row = ran(series, SeriesParams(), *at, steps=range(3)).row("steps", module="w", step=2)
    measures = ("norm", "update_norm", "update_ratio", "rounding_ratio", "distance", "relative_distance", "turn", "straightness")
    assert [row[name] for name in measures] == [None] * len(measures)


def test_rows_longer_than_a_chunk_are_followed_in_parts(written: Any, ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at = [written({"w": torch.randn(3, 50, generator=torch.Generator().manual_seed(step))}, f"step_{step}") for step in range(4)]
    whole = ran(series, SeriesParams(), *at, steps=range(4)).tables["steps"]
    monkeypatch.setattr(passes, "CHUNK_ELEMENTS", 7)
    parts = ran(series, SeriesParams(), *at, steps=range(4)).tables["steps"]
    polars_testing.assert_frame_equal(whole, parts, rel_tol=1e-12)


def test_what_grows_out_of_zeros_has_no_update_ratio(written: Any, ran: Any) -> None:
    at = [written({"b": torch.full((3,), float(step))}, f"step_{step}") for step in range(3)]
    context = ran(series, SeriesParams(), *at, steps=range(3))
    assert context.row("tensors", tensor="b", step=1)["update_ratio"] is None
    assert context.row("tensors", tensor="b", step=2)["update_ratio"] == pytest.approx(1)


def test_members_with_other_tensors_or_shapes_are_refused_by_name(written: Any, ran: Any) -> None:
    first = written(member(0), "step_0")
    with pytest.raises(BadInput, match=r"step 0 and step 10 differ in shape: norm\.weight \[8\] and \[9\]"):
        ran(series, SeriesParams(), first, written({**member(1), "norm.weight": torch.zeros(9)}, "step_10"), steps=[0, 10])
    lacking = member(2)
    del lacking["scalar"]
    with pytest.raises(BadInput, match=r"step 20 \(.*step_20\) lacks scalar"):
        ran(series, SeriesParams(), first, written(lacking, "step_20"), steps=[0, 20])


def test_a_series_of_one_is_refused(written: Any, ran: Any) -> None:
    with pytest.raises(BadInput, match="updates need at least two"):
        ran(series, SeriesParams(), written(member(0), "step_0"), steps=[0])


def test_updates_are_held_against_the_rounding_of_the_stored_dtype(written: Any, ran: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(300, 100, generator=generator)
    at = [written({"w": exact.to(torch.bfloat16).to(torch.float32)}, "step_0"), written({"w": exact.to(torch.bfloat16)}, "step_1")]
    row = ran(series, SeriesParams(), *at, steps=[0, 1]).row("steps", module="w", step=1)
    rounding = float((exact.to(torch.bfloat16).to(torch.float32) - exact).norm() / exact.norm())
    assert row["update_ratio"] == 0
    assert row["rounding_ratio"] == pytest.approx(rounding, rel=0.02)
