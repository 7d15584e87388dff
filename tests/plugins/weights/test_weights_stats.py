"""`weights.stats` on real files."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from modelscope_weights.analyses import stats
from modelscope_weights.params import StatsParams

from modelscope_app.api import BadInput


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def every_kind() -> dict[str, torch.Tensor]:
    """Tensors of every dtype and awkward shape."""
    bits = torch.randint(0, 256, (64,), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    spoilt = gaussian(6, 5)
    spoilt[0, 0], spoilt[1, 1], spoilt[2, 2], spoilt[3, 3] = math.nan, math.inf, -math.inf, -0.0
    tensors = {
        "model.layers.0.mlp.up.weight": gaussian(40, 30),
        "model.layers.0.mlp.up.bias": gaussian(40),
        "model.layers.1.mlp.up.weight": gaussian(40, 30, seed=1, dtype=torch.bfloat16),
        "model.layers.10.mlp.up.weight": gaussian(4, 3, 3, 2, seed=2, dtype=torch.float16),
        "model.layers.2.mlp.up.weight": spoilt,
        "scalar": torch.tensor(2.5),
        "single": torch.tensor([[-3.0]]),
        "constant": torch.full((8, 3), 0.1),
        "zeros": torch.zeros(5, 2),
        "empty": torch.zeros(0, 7),
        "wide": gaussian(1, 200),
        "double": gaussian(9, 9).to(torch.float64) + 1e9,
        "denormal": torch.tensor([1e-45, -1e-45, 0.0, -0.0]),
        "integers": torch.arange(-8, 8).reshape(4, 4),
        "flags": torch.tensor([True, False, True]),
    }
    for name in ("float8_e4m3fn", "float8_e5m2", "int8", "uint16", "bfloat16", "float16"):
        tensors[f"bits.{name}"] = bits.view(getattr(torch, name)).reshape(4, -1)
    return tensors


@pytest.mark.parametrize("elements", [1 << 18, 7, 1])
def test_every_number_is_numpys_whatever_the_dtype_and_however_it_is_read(
    every_kind: dict[str, torch.Tensor], written: Any, ran: Any, small_chunks: Callable[[int], None], elements: int
) -> None:
    small_chunks(elements)
    context = ran(stats, StatsParams(bins=9), written(every_kind))
    for name, tensor in every_kind.items():
        row = context.row("tensors", tensor=name)
        values = tensor.to(torch.float32).to(torch.float64) if tensor.dtype.itemsize == 1 else tensor.to(torch.float64)
        every = values.numpy().reshape(-1)
        finite = every[np.isfinite(every)]
        assert row["parameters"] == every.size
        assert (row["nan"], row["positive_inf"], row["negative_inf"]) == (
            np.isnan(every).sum(),
            *((every == s * np.inf).sum() for s in (1, -1)),
        )
        assert row["zeros"] == (finite == 0).sum(), name
        assert row["norm"] == pytest.approx(np.linalg.norm(finite), rel=1e-12)
        if tensor.dim() >= 2:
            assert row["zero_rows"] == sum(bool((tensor_row == 0).all()) for tensor_row in values), name
        else:
            assert row["zero_rows"] is None
        if not finite.size:
            assert (row["min"], row["mean"], row["std"], row["abs_max"]) == (None, None, None, None)
            continue
        assert (row["min"], row["max"], row["abs_max"]) == (finite.min(), finite.max(), np.abs(finite).max())
        assert row["mean"] == pytest.approx(finite.mean(), rel=1e-9, abs=1e-12 * np.abs(finite).max()), name
        assert row["std"] == pytest.approx(finite.std(), rel=1e-9, abs=1e-300), name
        assert row["rms"] == pytest.approx(math.sqrt((finite**2).mean()), rel=1e-12)
        bins = context.tables["histograms"].filter(pl.col("tensor") == name)
        assert bins["count"].sum() == finite.size
        if finite.min() < finite.max() and name != "denormal":
            np.testing.assert_array_equal(bins["count"].to_numpy(), np.histogram(finite, bins=9)[0], err_msg=name)


def test_passes_over_parts_of_the_tensors_merge_into_the_same_bits(every_kind: dict[str, torch.Tensor], written: Any, ran: Any) -> None:
    checkpoint = written(every_kind)
    whole, merged = (ran(stats, StatsParams(), checkpoint, parts=parts) for parts in (1, 4))
    for name, table in whole.tables.items():
        assert table.equals(merged.tables[name]), name
    assert whole.values == merged.values


def test_tensors_with_nan_or_infinity_are_counted_and_named_and_not_ranked(written: Any, ran: Any) -> None:
    spoilt = gaussian(5, 5) * 1000
    spoilt[0, 0] = math.nan
    infinite = gaussian(5, 5)
    infinite[1, 1:3] = math.inf
    context = ran(stats, StatsParams(), written({"good": gaussian(5, 5), "spoilt": spoilt, "infinite": infinite}))
    assert context.values["all_finite"] is False
    assert (context.values["nan"], context.values["inf"]) == (1, 2)
    assert (context.values["nonfinite_tensors"], context.values["nonfinite_tensor_names"]) == (2, "infinite, spoilt")
    assert context.values["largest_norm_tensor"] == context.values["largest_value_tensor"] == "good"
    assert context.values["unranked_tensors"] == 2
    assert context.values["norm"] is None
    assert context.warnings == ["NaN or infinity in 2 of 3 tensors: infinite, spoilt"]


def test_a_clean_checkpoint_warns_of_nothing_and_its_norm_is_that_of_all_values(written: Any, ran: Any) -> None:
    tensors = {"a": gaussian(20, 10), "b": gaussian(7, seed=1, dtype=torch.bfloat16), "empty": torch.zeros(0)}
    context = ran(stats, StatsParams(), written(tensors))
    assert context.warnings == []
    every = np.concatenate([tensor.to(torch.float64).numpy().reshape(-1) for tensor in tensors.values()])
    assert context.values["norm"] == pytest.approx(np.linalg.norm(every), rel=1e-13)
    assert context.values["all_finite"] is True
    assert context.values["zeros_fraction"] == 0


def test_layers_come_in_order_with_the_norm_of_all_their_values(every_kind: dict[str, torch.Tensor], written: Any, ran: Any) -> None:
    context = ran(stats, StatsParams(), written(every_kind))
    layers = context.tables["layers"]
    assert layers["layer"].to_list() == [0, 1, 2, 10]
    first = torch.cat([every_kind[f"model.layers.0.mlp.up.{kind}"].reshape(-1) for kind in ("weight", "bias")]).to(torch.float64)
    row = context.row("layers", layer=0)
    assert (row["module"], row["tensors"], row["parameters"]) == ("mlp.up", 2, 1240)
    assert row["norm"] == pytest.approx(float(first.norm()), rel=1e-12)
    assert row["rms"] == pytest.approx(float(first.square().mean().sqrt()), rel=1e-12)
    assert row["log10_rms"] == pytest.approx(math.log10(row["rms"]))
    spoilt = context.row("layers", layer=2)
    assert (spoilt["nan"], spoilt["inf"]) == (1, 2)
    good = every_kind["model.layers.2.mlp.up.weight"].numpy()
    assert spoilt["rms"] == pytest.approx(math.sqrt((good[np.isfinite(good)] ** 2).mean()), rel=1e-6)


def test_the_largest_module_comes_first_and_shares_sum_to_one(every_kind: dict[str, torch.Tensor], written: Any, ran: Any) -> None:
    modules = ran(stats, StatsParams(), written(every_kind)).tables["modules"]
    assert modules["module"][0] == "mlp.up"
    assert modules["share"].sum() == pytest.approx(1)
    assert modules["parameters"].to_list() == sorted(modules["parameters"], reverse=True)


def test_values_nobody_can_read_are_skipped_with_a_reason(written_raw: Any, ran: Any) -> None:
    checkpoint = written_raw(
        {
            "good": ("F32", [2], struct.pack("<2f", 1.0, -2.0)),
            "complex": ("C64", [1], struct.pack("<2f", 1.0, 2.0)),
            "future": ("F5_X", [3], b"abc"),
        }
    )
    context = ran(stats, StatsParams(), checkpoint)
    assert context.row("tensors", tensor="complex")["note"] == "not read: complex values (C64) have no order"
    assert "F5_X" in context.row("tensors", tensor="future")["note"]
    assert context.row("tensors", tensor="future")["norm"] is None
    assert context.row("tensors", tensor="good")["abs_max"] == 2
    assert (context.values["skipped_tensors"], context.values["unranked_tensors"]) == (2, 2)
    assert context.values["norm"] is None


def test_only_restricts_what_is_read(every_kind: dict[str, torch.Tensor], written: Any, ran: Any) -> None:
    checkpoint = written(every_kind)
    context = ran(stats, StatsParams(only="*.bias,scalar"), checkpoint)
    assert context.tables["tensors"]["tensor"].to_list() == ["model.layers.0.mlp.up.bias", "scalar"]
    with pytest.raises(BadInput, match="nothing_like_it"):
        ran(stats, StatsParams(only="nothing_like_it"), checkpoint)


def test_pictures_are_of_tables_and_columns_that_exist(every_kind: dict[str, torch.Tensor], written: Any, ran: Any) -> None:
    context = ran(stats, StatsParams(), written(every_kind))
    for view in context.views.values():
        value = view.to_json()
        if "table" not in value:
            continue
        frame = context.tables[value["table"]]
        for role in ("x", "y", "series", "row", "column", "value", "label", "left", "right", "count", "group", "sort_by"):
            assert value.get(role) is None or value[role] in frame.columns, (view.name, role)
        assert set(value.get("columns") or ()) <= set(frame.columns)


def test_telling_histograms_are_few_and_hold_the_largest_tensor(every_kind: dict[str, torch.Tensor], written: Any, ran: Any) -> None:
    telling = ran(stats, StatsParams(bins=5), written(every_kind)).tables["telling_histograms"]
    assert "model.layers.0.mlp.up.weight" in telling["tensor"].to_list()
    assert telling["tensor"].n_unique() <= 4


def test_only_a_chunk_of_a_large_tensor_is_in_memory(written: Any, monkeypatch: pytest.MonkeyPatch, ran: Any) -> None:
    checkpoint = written({"large": gaussian(3000, 400, dtype=torch.bfloat16), "wide": gaussian(3000, 400)})
    read: list[int] = []

    def rows(name: str, start: int, stop: int, original: Any = checkpoint.rows) -> torch.Tensor:
        found: torch.Tensor = original(name, start, stop)
        read.append(found.numel())
        return found

    monkeypatch.setattr(checkpoint, "rows", rows)
    monkeypatch.setattr(checkpoint, "tensor", None)
    ran(stats, StatsParams(), checkpoint)
    assert max(read) <= 1 << 18


def test_what_nobody_read_is_not_called_finite(written_raw: Any, ran: Any) -> None:
    nan = struct.pack("<2f", math.nan, math.inf)
    unread = {"c": ("C64", [1], nan), "q": ("F4", [2], b"\x11")}
    facts = ran(stats, StatsParams(), written_raw(unread, "unread")).values
    assert facts["skipped_tensors"] == 2
    assert [facts[name] for name in ("all_finite", "nan", "inf", "nonfinite_tensors", "zero_rows", "norm")] == [None] * 6
    good = {"g": ("F32", [2], struct.pack("<2f", 1.0, 2.0))}
    facts = ran(stats, StatsParams(), written_raw({**unread, **good}, "partly")).values
    assert (facts["all_finite"], facts["nan"], facts["inf"]) == (None, 0, 0)
    facts = ran(stats, StatsParams(), written_raw({**unread, "spoilt": ("F32", [2], nan)}, "spoilt")).values
    assert (facts["all_finite"], facts["nan"], facts["inf"]) == (False, 1, 1)


def test_a_norm_nobody_knows_is_null_and_its_elements_do_not_dilute_the_layer(written_raw: Any, ran: Any) -> None:
    five = struct.pack("<2f", 3, 4)
    context = ran(
        stats,
        StatsParams(),
        written_raw(
            {
                "layers.0.w.weight": ("F32", [2], five),
                "layers.0.w.bias": ("C64", [3], b"\0" * 24),
                "layers.1.w.weight": ("C64", [1], five),
                "layers.2.w.weight": ("F32", [1], struct.pack("<f", math.nan)),
            }
        ),
    )
    layers = [context.row("layers", layer=layer) for layer in range(3)]
    assert [row["norm"] for row in layers] == [5, None, None]
    assert layers[0]["rms"] == pytest.approx(math.sqrt(25 / 2))
    assert [row["rms"] for row in layers[1:]] == [None, None]
    assert [row["unknown"] for row in layers] == [1, 1, 1]
    assert [(row["nan"], row["zeros"]) for row in layers] == [(0, 0), (None, None), (1, 0)]
    assert context.row("tensors", tensor="layers.2.w.weight")["norm"] is None
    assert context.row("modules", module="w")["rms"] == pytest.approx(math.sqrt(25 / 2))


def test_sizes_out_of_the_range_of_squares_are_null_and_the_rest_stands(written: Any, ran: Any) -> None:
    steps = torch.arange(16, dtype=torch.float64).reshape(4, 4)
    context = ran(stats, StatsParams(bins=4), written({"tiny": steps * 1e-170, "huge": steps * 1e160}))
    for name, scale in (("tiny", 1e-170), ("huge", 1e160)):
        row = context.row("tensors", tensor=name)
        assert [row[column] for column in ("norm", "rms", "std", "kurtosis", "outliers")] == [None] * 5
        assert (row["abs_max"], row["zeros"]) == (15 * scale, 1)
        assert context.tables["histograms"].filter(tensor=name)["count"].to_list() == [4, 4, 4, 4]
    assert context.values["norm"] is None


def test_histograms_name_their_tensors_also_where_some_have_none(written: Any, ran: Any) -> None:
    tensors = {"a": torch.full((3,), math.nan), "b": torch.tensor([1.0, 2.0, 3.0]), "c": torch.zeros(0), "d": torch.tensor([0.0, 4.0])}
    found = ran(stats, StatsParams(bins=2), written(tensors)).tables["histograms"].with_columns(pl.col("tensor").cast(pl.String))
    assert found.rows() == [("b", 1, 2, 1), ("b", 2, 3, 2), ("d", 0, 2, 1), ("d", 2, 4, 1)]
