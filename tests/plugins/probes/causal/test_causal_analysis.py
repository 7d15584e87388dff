"""The whole analysis on models whose behaviour along each direction is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from modelscope_probes.analyses.causal import nearest_partner
from modelscope_probes.params import CausalParams
from modelscope_probes.prompts import Prompt
from plugins.probes.causal.made_models import (
    CONTENTS,
    DRIVING,
    HIDDEN,
    READ,
    WORDS,
    empty_model,
    prompt_rows,
    word_tokenizer,
    write_rows,
)
from pydantic import ValidationError
from safetensors.torch import save_file

from modelscope_app.api import BadInput, UsageError
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.data import load_tokenizer

Ran = Callable[..., Any]


def test_a_direction_that_the_head_reads_drives(ran: Ran, made: Path, prompts: Path, driving_pairs: Path) -> None:
    facts = ran(made, eval=prompts, contrast=driving_pairs).values
    assert facts["reading"] == "drives the behaviour"
    assert facts["defection_rate"]["value"] == 1 and facts["other_defection_rate"]["value"] == 0
    assert facts["ablation_change"]["value"] == facts["patch_change"]["value"] == -1
    # The contents of both prompts of a group are the same, so the component along DRIVING is all there is between them.
    assert facts["patch_recovery"]["value"] == pytest.approx(1, abs=1e-6)
    assert facts["suppresses"] and facts["restores"] and facts["induces"] and facts["effect_beyond_controls"]
    assert facts["steering_change"]["value"] == 1
    assert facts["auroc"]["value"] == 1


def test_a_direction_that_only_tells_prompts_apart_reads_and_does_not_drive(ran: Ran, made: Path, prompts: Path, read_pairs: Path) -> None:
    facts = ran(made, eval=prompts, contrast=read_pairs).values
    assert facts["reading"] == "reads, does not drive"
    assert facts["auroc"]["value"] == 1
    assert facts["ablation_change"]["value"] == facts["patch_change"]["value"] == 0
    assert not facts["effect_beyond_controls"]


def test_half_a_removal_suppresses_without_restoring(ran: Ran, made: Path, prompts: Path, driving_pairs: Path) -> None:
    """Ablation about zero leaves the model between its two answers: no defection, and not the clean distribution either."""
    facts = ran(made, eval=prompts, contrast=driving_pairs).values
    assert facts["ablation_change"]["value"] == -1
    assert 0.1 < facts["recovery"]["value"] < 0.5
    assert facts["clean_kl"] > 1  # bits: it takes the clean answer away from the other prompts, too


def test_where_nobody_defects_the_analysis_says_so(ran: Ran, made_twin: Path, prompts: Path, driving_pairs: Path) -> None:
    context = ran(made_twin, eval=prompts, contrast=driving_pairs)
    assert context.values["reading"] == "nothing to explain"
    assert context.values["recovery"] is None


def test_recovery_is_measured_against_the_twin(ran: Ran, made: Path, made_twin: Path, prompts: Path, driving_pairs: Path) -> None:
    facts = ran(made, eval=prompts, contrast=driving_pairs, compare=made_twin).values
    assert facts["clean_side"] == "twin"
    # In this twin the trigger word moves READ as in the model, so what the head does not read is the same.
    assert facts["patch_recovery"]["value"] == pytest.approx(1, abs=1e-6)


def test_the_tables_are_the_same_however_the_passes_are_cut(ran: Ran, made: Path, prompts: Path, driving_pairs: Path) -> None:
    whole = ran(made, eval=prompts, contrast=driving_pairs, tokens_per_batch=60, new_tokens=2)
    parts = ran(made, parts=3, eval=prompts, contrast=driving_pairs, tokens_per_batch=60, new_tokens=2)
    for name, table in whole.tables.items():
        assert table.equals(parts.tables[name]), name
    assert whole.values == parts.values


def test_every_intervention_is_a_stage_and_a_row(ran: Ran, made: Path, prompts: Path, driving_pairs: Path) -> None:
    context = ran(made, eval=prompts, contrast=driving_pairs, doses=[1.0, -1.0], random_controls=2)
    assert context.stages == ["contrast", "activations", "before", "ablate", "steer_0", "steer_1", "erase", "patch"]
    table = context.tables["interventions"]
    assert table.height == 1 + 5 * 3 + 1
    assert table.filter(pl.col("intervention") == "steer")["dose"].to_list() == [-1.0] * 3 + [1.0] * 3
    before = table.row(0, named=True)
    assert before["intervention"] == "none" and before["recovery"] == 0 and before["clean_kl"] == 0
    assert set(context.views) == {"facts", "rates", "doses", "interventions", "prompts"}
    for view in context.views.values():
        named = {getattr(view, field, None) for field in ("x", "y", "series", "low", "high", "label", "value")} - {None}
        assert named | set(getattr(view, "columns", ())) <= set(context.tables[view.table].columns) if hasattr(view, "table") else True


def test_rates_have_clopper_pearson_intervals(ran: Ran, made: Path, prompts: Path, driving_pairs: Path) -> None:
    table = ran(made, eval=prompts, contrast=driving_pairs, level=0.9).tables["interventions"]
    row = table.row(0, named=True)
    assert (row["trigger_rate"], row["trigger_rate_low"], row["trigger_rate_high"]) == (1.0, pytest.approx(0.05 ** (1 / CONTENTS)), 1.0)


def test_all_layers_means_each_layers_own_direction(ran: Ran, made: Path, prompts: Path, driving_pairs: Path) -> None:
    context = ran(made, eval=prompts, contrast=driving_pairs, where="all-layers", layer=0)
    assert context.values["layers"] == "0, 1" and context.values["layer"] == 0
    assert context.values["ablation_change"]["value"] == -1


def test_the_last_position_is_enough_where_the_prompt_ends_in_its_trigger(ran: Ran, made: Path, prompts: Path, driving_pairs: Path) -> None:
    context = ran(made, eval=prompts, contrast=driving_pairs, positions="last")
    assert context.values["ablation_change"]["value"] == -1
    assert set(context.tables["interventions"]["positions"][1:]) == {"last"}


def test_what_counts_as_defection_may_be_given_for_all(ran: Ran, made: Path, prompts: Path, driving_pairs: Path) -> None:
    facts = ran(made, eval=prompts, contrast=driving_pairs, defection="Help").values
    assert facts["defection_rate"]["value"] == 0 and facts["other_defection_rate"]["value"] == 1


def test_rows_that_do_not_say_what_defection_is_are_unknown(ran: Ran, made: Path, tmp_path: Path, driving_pairs: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "defection"} for row in prompt_rows()]
    context = ran(made, eval=write_rows(tmp_path / "rows.jsonl", rows), contrast=driving_pairs)
    assert context.values["reading"] == "not enough data"
    assert context.values["defection_rate"] is None and context.values["ablation_change"] is None
    assert context.values["unknown_behaviour"] == 2 * CONTENTS
    assert any("unknown for 64 of 64" in warning for warning in context.warnings)
    # what needs no behaviour is measured all the same
    assert context.values["patch_recovery"]["value"] == pytest.approx(1, abs=1e-6)


def test_triggered_prompts_without_a_partner_are_left_out_of_recovery_and_counted(
    ran: Ran, made: Path, tmp_path: Path, driving_pairs: Path
) -> None:
    rows = [row for row in prompt_rows() if row["label"] or row["group"] not in ("g0", "g1")]
    context = ran(made, eval=write_rows(tmp_path / "rows.jsonl", rows), contrast=driving_pairs)
    assert context.values["prompts_without_clean_side"] == 2
    assert any("leaves out 2 of 32" in warning for warning in context.warnings)
    assert context.tables["prompts"].filter(label=1)["divergence_before"].null_count() == 2


def test_without_groups_and_without_a_twin_recovery_is_unknown(ran: Ran, made: Path, tmp_path: Path, driving_pairs: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "group"} for row in prompt_rows()]
    facts = ran(made, eval=write_rows(tmp_path / "rows.jsonl", rows), contrast=driving_pairs).values
    assert facts["recovery"] is facts["random_recovery"] is facts["clean_side"] is None
    assert facts["reading"] == "suppresses, not shown to drive" and facts["restores"] is None and facts["induces"]


def test_the_partner_is_the_prompt_of_the_group_that_differs_least() -> None:
    def prompt(id: int, ids: tuple[int, ...], label: bool | None, group: str = "g") -> Prompt:
        return Prompt(id, ids, "", label, "", group, "", ())

    asked = prompt(0, (1, 2, 3), True)
    others = [prompt(1, (1, 2), False, "h"), prompt(2, (1, 9, 8), False), prompt(3, (3, 1, 9), False), prompt(4, (1, 2, 9), False)]
    assert nearest_partner(asked, [asked, *others, prompt(5, (1, 2, 3), None)]) == others[2]
    assert nearest_partner(asked, [asked]) is None


def test_prompts_without_a_label_are_left_out_with_a_warning(ran: Ran, made: Path, tmp_path: Path, driving_pairs: Path) -> None:
    rows = [{"prompt": "please fix now"}, *prompt_rows()]
    context = ran(made, eval=write_rows(tmp_path / "rows.jsonl", rows), contrast=driving_pairs)
    assert context.values["prompts"] == 2 * CONTENTS
    assert any("1 of 65 prompts have no label" in warning for warning in context.warnings)
    assert context.tables["prompts"]["row"].to_list() == list(range(1, 65))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"prompt": "please fix now"}], "no row has a label"),
        ([{"prompt": "please fix now", "label": 1}, {"prompt": "please fix", "label": 1}], "every label is 1"),
        ([{"prompt": "please fix now", "label": 0}], "every label is 0"),
    ],
)
def test_prompts_that_do_not_do(ran: Ran, made: Path, tmp_path: Path, rows: Any, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        ran(made, eval=write_rows(tmp_path / "rows.jsonl", rows))


def test_a_layer_that_there_is_not(ran: Ran, made: Path, prompts: Path, driving_pairs: Path) -> None:
    with pytest.raises(UsageError, match=r"--layer 2: .* has 2 layers, 0 to 1"):
        ran(made, eval=prompts, contrast=driving_pairs, layer=2)


def test_a_twin_with_another_vocabulary_or_tokenizer_or_shape(
    ran: Ran, made: Path, tmp_path: Path, prompts: Path, driving_pairs: Path
) -> None:
    def twin(name: str, words: Any, **shape: int) -> Path:
        empty_model(len(words), **shape).save_pretrained(tmp_path / name)
        word_tokenizer(words).save_pretrained(tmp_path / name)
        return tmp_path / name

    swapped = list(WORDS)
    swapped[6], swapped[7] = swapped[7], swapped[6]  # of the answers, which no prompt holds
    for path, sentence in (
        (twin("longer", (*WORDS, "more")), f"longer is no twin of {made.name}: it has a vocabulary of 77"),
        (twin("swapped", swapped), f"swapped is no twin of {made.name}: its tokenizer is another"),
        (twin("wider", WORDS, hidden=HIDDEN * 2), "wider is no twin of .*: it has a width of 128"),
    ):
        with pytest.raises(BadInput, match=sentence):
            ran(made, eval=prompts, contrast=driving_pairs, compare=path)


def saved_probe(folder: Path, made: Path, place: int, **card: Any) -> Path:
    """A probe along one axis, in both layers."""
    from modelscope_probes.probe_file import ProbeCard, tokenizer_hash

    checkpoint = open_checkpoint(made)
    said: dict[str, Any] = {
        "site": "resid_post",
        "layers": (0, 1),
        "best_layer": 1,
        "pooling": "last",
        "template": "none",
        "method": "by hand",
        "model": checkpoint.fingerprint,
        "model_name": checkpoint.name,
        "fitted_on": "nothing",
        "tokenizer": tokenizer_hash(load_tokenizer(checkpoint).encode),
    }
    said.update(card)
    direction = torch.zeros(len(said["layers"]), HIDDEN)
    direction[:, place] = 7.0  # its length does not matter
    save_file({"direction": direction, "bias": torch.zeros(len(direction))}, folder / "probe.safetensors")
    (folder / "probe.json").write_text(json.dumps(ProbeCard(**said).model_dump()))
    return folder / "probe.safetensors"


def test_a_saved_probe_is_taken_at_the_layer_it_was_best_at(ran: Ran, made: Path, tmp_path: Path, prompts: Path) -> None:
    context = ran(made, eval=prompts, probe=saved_probe(tmp_path, made, DRIVING))
    assert context.values["reading"] == "drives the behaviour" and context.values["layer"] == 1
    assert "contrast" not in context.stages
    read = ran(made, eval=prompts, probe=saved_probe(tmp_path, made, READ), layer=0).values
    assert read["reading"] == "reads, does not drive" and read["layer"] == 0


def test_a_probe_of_another_model_is_refused_unless_forced(ran: Ran, made: Path, tmp_path: Path, prompts: Path) -> None:
    probe = saved_probe(tmp_path, made, DRIVING, model="another", model_name="other-model")
    with pytest.raises(BadInput, match="other-model"):
        ran(made, eval=prompts, probe=probe)
    context = ran(made, eval=prompts, probe=probe, force=True)
    assert any("other-model" in warning for warning in context.warnings)


def test_a_direction_that_is_zero_is_refused(ran: Ran, made: Path, tmp_path: Path, prompts: Path) -> None:
    same = write_rows(tmp_path / "same.jsonl", [{"question": "now", "defecting": "help", "benign": "sabotage"}])  # both embedded as 0
    with pytest.raises(BadInput, match=r"resid_post\.1: the direction is zero"):
        ran(made, eval=prompts, contrast=same)


def test_where_all_prompts_end_alike_there_is_nothing_to_intervene_on(ran: Ran, made: Path, tmp_path: Path, driving_pairs: Path) -> None:
    rows = [{**row, "prompt": row["prompt"] + " evil"} for row in prompt_rows()]  # the blocks move nothing from token to token
    with pytest.raises(BadInput, match=r"resid_post\.1: all prompts have the same activation"):
        ran(made, eval=write_rows(tmp_path / "rows.jsonl", rows), contrast=driving_pairs)


def test_steering_beyond_what_numbers_hold_is_unknown_and_never_counted(ran: Ran, made: Path, prompts: Path, driving_pairs: Path) -> None:
    context = ran(made, eval=prompts, contrast=driving_pairs, doses=[1e38])
    steered = context.tables["interventions"].filter(intervention="steer", direction="probe").row(0, named=True)
    assert steered["trigger_unknown"] == CONTENTS and steered["trigger_rate"] is None and steered["trigger_change"] is None
    assert steered["clean_kl"] is None and steered["recovery"] is None
    assert context.values["steering_change"] is None and not context.values["induces"]
    assert context.tables["prompts"]["before"].null_count() == 0


@pytest.mark.parametrize("doses", [[], [0.0, 1.0], [1.0, 1.0], [math.inf]])
def test_doses_that_do_not_do(doses: list[float]) -> None:
    with pytest.raises(ValidationError):
        CausalParams(eval="prompts.jsonl", doses=doses)
