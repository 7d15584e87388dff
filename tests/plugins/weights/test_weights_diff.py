"""`weights.diff` on real files."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from modelscope_weights import passes, spectrum
from modelscope_weights.analyses import diff
from modelscope_weights.params import DiffParams

from modelscope_app.api import BadInput

VOCABULARY, HIDDEN = 50, 12


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def before() -> dict[str, torch.Tensor]:
    return {
        "model.embed_tokens.weight": gaussian(VOCABULARY, HIDDEN),
        "model.layers.0.attn.weight": gaussian(40, 30, seed=1),
        "model.layers.0.attn.bias": gaussian(40, seed=2),
        "model.layers.1.attn.weight": gaussian(40, 30, seed=3),
        "model.layers.1.conv.weight": gaussian(8, 3, 2, 2, seed=4),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
    }


@pytest.fixture
def after(before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    changed = {name: tensor.clone() for name, tensor in before.items()}
    changed["model.embed_tokens.weight"][7] += 1.0
    changed["model.embed_tokens.weight"][3] += 0.5
    changed["model.layers.0.attn.weight"] += 0.1 * gaussian(40, 1, seed=5) @ gaussian(1, 30, seed=6)
    changed["model.layers.1.conv.weight"] += 0.01 * gaussian(8, 3, 2, 2, seed=7)
    changed["model.layers.0.attn.bias"][0] += 2.0
    return changed


def test_every_measure_is_numpys_and_torchs(before: Any, after: Any, written: Any, ran: Any) -> None:
    context = ran(diff, DiffParams(), written(before, "a"), written(after, "b"))
    for name in before:
        a, b = (side[name].to(torch.float64).numpy() for side in (before, after))
        row, change = context.row("tensors", tensor=name), b - a
        assert row["change_norm"] == pytest.approx(np.linalg.norm(change), rel=1e-12)
        if not a.size:
            assert row["changed_share"] is None
            continue
        assert row["relative_change"] == pytest.approx(np.linalg.norm(change) / np.linalg.norm(a), rel=1e-12)
        assert row["max_abs_change"] == np.abs(change).max()
        assert row["changed_share"] == (change != 0).mean()
        assert row["cosine"] == pytest.approx(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-12)
        if a.ndim < 2 or not change.any():
            assert (row["sigma_max"], row["stable_rank"], row["top16_energy"], row["noise_stable_rank"]) == (None,) * 4
            continue
        sigma = np.linalg.svd(change.reshape(len(a), -1), compute_uv=False)
        assert row["sigma_max"] == pytest.approx(sigma[0], rel=1e-12)
        assert row["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-12)
        assert row["top16_energy"] == pytest.approx((sigma[:16] ** 2).sum() / (sigma**2).sum(), rel=1e-12)
        assert row["sigma_error"] == row["energy_error"] == 0
        values = context.tables["singular_values"].filter(tensor=name)["singular_value"].to_numpy()
        np.testing.assert_allclose(values, sigma[:16], rtol=1e-8, atol=sigma[0] * 1e-7)


def test_a_low_rank_change_stands_out_from_noise_of_its_norm(before: Any, after: Any, written: Any, ran: Any) -> None:
    context = ran(diff, DiffParams(), written(before, "a"), written(after, "b"))
    row = context.row("tensors", tensor="model.layers.0.attn.weight")
    assert row["stable_rank"] == pytest.approx(1, abs=1e-6)
    assert row["noise_stable_rank"] > 8
    assert row["top16_energy"] > 0.999 > 0.9 > row["noise_top16_energy"]
    assert context.values["lowest_rank_tensor"] == "model.layers.0.attn.weight"


@pytest.mark.parametrize("held", [0, passes.HELD_ELEMENTS])
@pytest.mark.parametrize("gram_side", [10, spectrum.GRAM_SIDE])
def test_however_the_matrices_are_read_and_decomposed_the_numbers_agree(
    before: Any, after: Any, written: Any, ran: Any, small_chunks: Any, monkeypatch: pytest.MonkeyPatch, held: int, gram_side: int
) -> None:
    a, b = written(before, "a"), written(after, "b")
    expected = ran(diff, DiffParams(), a, b)
    small_chunks(70)
    monkeypatch.setattr(passes, "HELD_ELEMENTS", held)
    monkeypatch.setattr(spectrum, "GRAM_SIDE", gram_side)
    found = ran(diff, DiffParams(), a, b)
    for name in before:
        row, plain = found.row("tensors", tensor=name), expected.row("tensors", tensor=name)
        for column, value in plain.items():
            assert row[column] == (pytest.approx(value, rel=1e-9, abs=1e-11) if isinstance(value, float) else value), (name, column)
    assert found.tables["rows"].drop("movement", "relative").equals(expected.tables["rows"].drop("movement", "relative"))


def test_passes_over_parts_of_the_tensors_merge_into_the_same_bits(before: Any, after: Any, written: Any, ran: Any) -> None:
    a, b = written(before, "a"), written(after, "b")
    whole = ran(diff, DiffParams(), a, b)
    for parts in (2, 3, 7):
        merged = ran(diff, DiffParams(), a, b, parts=parts)
        for name, table in whole.tables.items():
            assert table.equals(merged.tables[name]), name
        assert whole.values == merged.values


def test_the_rows_that_moved_most_come_first_with_their_tokens(before: Any, after: Any, written: Any, ran: Any, words: Any) -> None:
    a, b = written(before, "a"), written(after, "b")
    rows = ran(diff, DiffParams(rows=5), a, b, tokenizer=words).tables["rows"]
    assert rows["token_id"].to_list() == [7, 3]
    assert rows["token"].to_list() == ["w7", "w3"]
    assert rows["movement"].to_list() == pytest.approx([math.sqrt(HIDDEN), 0.5 * math.sqrt(HIDDEN)], rel=1e-6)
    norms = before["model.embed_tokens.weight"].norm(dim=1)
    assert rows["relative"][0] == pytest.approx(math.sqrt(HIDDEN) / float(norms[7]), rel=1e-6)
    assert ran(diff, DiffParams(rows=1), a, b).tables["rows"]["token"].to_list() == [None]
    assert ran(diff, DiffParams(rows=0), a, b).tables["rows"].is_empty()


def test_rows_can_be_ranked_by_their_relative_movement(written: Any, ran: Any) -> None:
    table = torch.ones(4, 3)
    table[2] = 0.001
    table[3] = 0.0
    moved = table.clone()
    moved[0] += 0.5
    moved[2] += 0.1
    moved[3] += 0.2
    a, b = written({"wte.weight": table}, "a"), written({"wte.weight": moved}, "b")
    assert ran(diff, DiffParams(), a, b).tables["rows"]["token_id"].to_list() == [0, 3, 2]
    relative = ran(diff, DiffParams(rank_rows_by="relative"), a, b).tables["rows"]
    assert relative["token_id"].to_list() == [2, 0]  # row 3 grew out of zeros: its relative movement is unknown


def test_nan_makes_its_tensor_unknown_and_poisons_no_ranking(before: Any, after: Any, written: Any, ran: Any) -> None:
    after["model.layers.0.attn.weight"][0, 0] = math.nan
    after["model.embed_tokens.weight"][7, 0] = math.inf
    context = ran(diff, DiffParams(), written(before, "a"), written(after, "b"))
    row = context.row("tensors", tensor="model.layers.0.attn.weight")
    assert [row[name] for name in ("relative_change", "cosine", "changed_share", "sigma_max", "top16_energy")] == [None] * 5
    assert (row["nonfinite_before"], row["nonfinite_after"], row["note"]) == (0, 1, "unknown: holds NaN or infinity")
    assert context.values["unknown_tensors"] == 2
    assert context.values["identical"] is False
    assert math.isfinite(context.values["relative_change"])
    assert context.values["most_changed_tensor"] == "model.layers.0.attn.bias"
    assert context.tables["rows"]["token_id"].to_list() == [3]
    assert context.values["embedding_rows_unknown"] == 1


def test_a_checkpoint_does_not_differ_from_itself(before: Any, written: Any, ran: Any) -> None:
    checkpoint = written(before)
    context = ran(diff, DiffParams(), checkpoint, checkpoint)
    assert context.values["identical"] is True
    assert (context.values["relative_change"], context.values["changed_tensors"]) == (0, 0)
    assert context.values["most_changed_tensor"] is None
    assert context.tables["rows"].is_empty()


def test_a_change_of_the_size_of_rounding_is_shown_as_such(written: Any, ran: Any) -> None:
    exact = gaussian(200, 100)
    context = ran(diff, DiffParams(), written({"w": exact}, "a"), written({"w": exact.to(torch.bfloat16)}, "b"))
    row = context.row("tensors", tensor="w")
    assert row["note"] == "stored as F32 before and BF16 after"
    assert row["change_over_rounding"] == pytest.approx(1, abs=0.02)
    assert row["relative_change"] == pytest.approx(row["rounding_noise"], rel=0.02)
    assert "w among them" in context.warnings[0]


def test_other_shapes_and_missing_tensors_are_refused_by_name(before: Any, after: Any, written: Any, ran: Any) -> None:
    a = written(before, "a")
    with pytest.raises(BadInput, match=r"differ in shape: model\.layers\.0\.attn\.weight \[40, 30\] and \[30, 40\]; compare the rest"):
        ran(diff, DiffParams(), a, written({**after, "model.layers.0.attn.weight": gaussian(30, 40)}, "b"))
    del after["scalar"]
    with pytest.raises(BadInput, match=r"the second \(.*\) lacks scalar;"):
        ran(diff, DiffParams(), a, written(after, "c"))
    with pytest.raises(BadInput, match=r"the first checkpoint \(.*\) lacks extra;"):
        ran(diff, DiffParams(), a, written({**before, "extra": gaussian(2)}, "d"))
    assert ran(diff, DiffParams(only="model.*"), a, written(after, "e")).values["tensors"] == 5


def test_the_embedding_can_be_named(before: Any, after: Any, written: Any, ran: Any) -> None:
    a, b = written(before, "a"), written(after, "b")
    assert ran(diff, DiffParams(embedding="model.layers.0.attn.weight"), a, b).tables["rows"].height == 32
    with pytest.raises(BadInput, match="--embedding 'scalar' is no matrix"):
        ran(diff, DiffParams(embedding="scalar"), a, b)


def test_without_spectra_everything_else_is_the_same(before: Any, after: Any, written: Any, ran: Any) -> None:
    a, b = written(before, "a"), written(after, "b")
    full, plain = (ran(diff, DiffParams(spectrum=wanted), a, b) for wanted in (True, False))
    kept = ["tensor", "relative_change", "cosine", "rounding_noise"]
    assert full.tables["tensors"].select(kept).equals(plain.tables["tensors"].select(kept))
    assert plain.tables["singular_values"].is_empty()
    assert "spectra" in full.views and "spectra" not in plain.views


def test_where_nothing_could_be_compared_nothing_is_said_to_be_unchanged(written: Any, ran: Any) -> None:
    unknown = {"w": torch.full((4, 4), math.nan)}
    facts = ran(diff, DiffParams(), written(unknown, "a"), written(unknown, "b")).values
    assert [facts[name] for name in ("relative_change", "change_over_rounding", "changed_share", "max_abs_change")] == [None] * 4
    assert (facts["identical"], facts["unknown_tensors"]) == (False, 1)


def test_a_tensor_of_zeros_has_no_direction(written: Any, ran: Any) -> None:
    zeros, ones = written({"b": torch.zeros(5)}, "a"), written({"b": torch.ones(5)}, "b")
    assert ran(diff, DiffParams(), zeros, ones).row("tensors", tensor="b")["cosine"] is None
    assert ran(diff, DiffParams(), ones, zeros).row("tensors", tensor="b")["cosine"] is None


def test_finite_numbers_too_large_or_small_to_square_leave_the_other_tensors_their_measures(written: Any, ran: Any) -> None:
    before = {"huge": torch.full((4, 4), 1e160, dtype=torch.float64), "tiny": torch.full((4, 4), 1e-170, dtype=torch.float64)}
    after = {"huge": -1e160 * torch.eye(4, dtype=torch.float64), "tiny": 3 * before["tiny"]}
    context = ran(diff, DiffParams(), written({**before, "plain": torch.eye(3)}, "a"), written({**after, "plain": 2 * torch.eye(3)}, "b"))
    for name in ("huge", "tiny"):
        row = context.row("tensors", tensor=name)
        measures = ("norm_before", "change_norm", "relative_change", "rounding_noise", "cosine", "sigma_max", "stable_rank", "top16_energy")
        assert [row[measure] for measure in measures] == [None] * len(measures)
        assert row["changed_share"] == 1
        assert row["max_abs_change"] == pytest.approx(2e160 if name == "huge" else 2e-170)
    assert context.row("tensors", tensor="plain")["relative_change"] == 1
    facts = context.values
    assert (facts["relative_change"], facts["changed_tensors"], facts["unranked_tensors"], facts["identical"]) == (1, 3, 2, False)


def test_a_step_counter_does_not_drown_the_weights(written: Any, ran: Any) -> None:
    before = {"layers.0.bn.weight": torch.ones(100, 100), "layers.0.bn.num_batches_tracked": torch.tensor(1000)}
    after = {"layers.0.bn.weight": torch.full((100, 100), 1 + 2**-20), "layers.0.bn.num_batches_tracked": torch.tensor(2000)}
    context = ran(diff, DiffParams(), written(before, "a"), written(after, "b"))
    facts = context.values
    assert facts["relative_change"] == facts["most_changed_relative"] == pytest.approx(2**-20)
    assert facts["max_abs_change"] == 2**-20
    assert facts["most_changed_tensor"] == "layers.0.bn.weight"
    assert facts["change_over_rounding"] == pytest.approx(8 * math.sqrt(12))
    assert (facts["changed_tensors"], facts["integer_tensors_changed"]) == (2, 1)
    assert context.row("tensors", tensor="layers.0.bn.num_batches_tracked")["relative_change"] == 1
    row = context.row("layers", layer=0)
    assert row["relative_change"] == pytest.approx(2**-20)
    assert (row["unknown"], row["integer_tensors"]) == (0, 1)


def test_integers_beyond_what_float64_counts_are_not_taken_for_equal(written: Any, ran: Any) -> None:
    a, b = written({"i": torch.tensor([2**53, 5])}, "a"), written({"i": torch.tensor([2**53 + 1, 5])}, "b")
    context = ran(diff, DiffParams(), a, b)
    assert (context.values["identical"], context.values["changed_share"]) == (False, 0.5)
    assert context.row("tensors", tensor="i")["max_abs_change"] == 1
    assert ran(diff, DiffParams(), a, a).values["identical"] is True


def test_a_layer_counts_every_tensor_it_leaves_out_and_sums_all_others(written: Any, ran: Any) -> None:
    before = {"layers.0.m.weight": torch.ones(4, 4), "layers.0.m.bias": torch.zeros(4), "layers.0.m.spoilt": torch.ones(2)}
    after = {**before, "layers.0.m.bias": torch.full((4,), 8.0), "layers.0.m.spoilt": torch.tensor([math.nan, 1.0])}
    before["layers.1.m.bias"] = after["layers.1.m.bias"] = torch.zeros(4)
    context = ran(diff, DiffParams(), written(before, "a"), written(after, "b"))
    row = context.row("layers", layer=0)
    assert (row["change_norm"], row["relative_change"], row["unknown"]) == (16, 4, 1)
    assert context.row("layers", layer=1)["relative_change"] == 0


def test_a_tensor_that_cannot_be_read_is_unknown_to_its_layer_and_no_integer(written_raw: Any, ran: Any) -> None:
    tensors = {"layers.0.m.weight": ("F32", [1], b"\0\0\x80?"), "layers.0.m.phase": ("C64", [1], b"\0" * 8)}
    checkpoint = written_raw(tensors)
    context = ran(diff, DiffParams(), checkpoint, checkpoint)
    row = context.row("layers", layer=0)
    assert (row["relative_change"], row["unknown"], row["integer_tensors"]) == (0, 1, 0)
    assert (context.values["unknown_tensors"], context.values["identical"]) == (1, False)


def test_no_share_of_the_energy_exceeds_all_of_it(written: Any, ran: Any) -> None:
    shapes = {f"w{columns}": (8, columns) for columns in range(5, 35)}
    before = written({name: torch.zeros(shape) for name, shape in shapes.items()}, "a")
    context = ran(diff, DiffParams(), before, written({name: gaussian(*shape, seed=shape[1]) for name, shape in shapes.items()}, "b"))
    assert context.tables["tensors"]["top16_energy"].to_list() == [pytest.approx(1)] * len(shapes)
    assert context.tables["tensors"]["top16_energy"].max() <= 1
    assert context.tables["singular_values"]["energy_share"].max() <= 1


def test_small_matrices_are_not_held_against_noise(written: Any, ran: Any) -> None:
    shapes = {"row": (1, 6), "small": (4, 4), "enough": (16, 20)}
    after = {name: gaussian(*shape) for name, shape in shapes.items()}
    context = ran(diff, DiffParams(), written({name: torch.zeros(shape) for name, shape in shapes.items()}, "a"), written(after, "b"))
    ranks = {name: context.row("tensors", tensor=name)["noise_stable_rank"] for name in shapes}
    assert (ranks["row"], ranks["small"]) == (1, None)
    assert ranks["enough"] > 1
    over = {name: context.tables["singular_values"].filter(tensor=name)["over_noise"].to_list() for name in shapes}
    assert over["row"] == [pytest.approx(1)]
    assert over["small"] == [None] * 4
    assert None not in over["enough"]


def test_the_usual_movement_of_an_even_number_of_rows_lies_between_the_two_in_the_middle(written: Any, ran: Any) -> None:
    moved = torch.ones(4, 1) + torch.tensor([[1.0], [4.0], [2.0], [8.0]])
    context = ran(diff, DiffParams(), written({"wte.weight": torch.ones(4, 1)}, "a"), written({"wte.weight": moved}, "b"))
    assert context.values["median_row_movement"] == 3
    odd = ran(diff, DiffParams(), written({"wte.weight": torch.ones(3, 1)}, "c"), written({"wte.weight": moved[:3]}, "d"))
    assert odd.values["median_row_movement"] == 2
