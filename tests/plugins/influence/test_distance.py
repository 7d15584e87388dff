"""`influence.distance`: two models on the same rows, against the models themselves, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from modelscope_influence.analyses import distance
from modelscope_influence.distance_estimate import distance_estimate
from modelscope_influence.distance_params import DistanceParams
from modelscope_influence.distance_passes import DistancePass, MomentsPass, NetworkDrawsPass, token_places
from modelscope_influence.moments import InputMoments, Linear, bernoulli_gates, covariance_root
from plugins.probes.score.in_process import Ran, run_in_process, saved_llama, word_tokenizer, written_rows
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from modelscope_app.api import BadInput, FinishedRun, JobCancelled
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.rendering.drawings import drawing
from modelscope_app.testing import assert_fold_merges, items_source

pytest_plugins = ["modelscope_app.testing"]

SAMPLES = Path(__file__).resolve().parents[3] / "sample_checkpoints"
DIGITS, TRIGGERED, TEST = SAMPLES / "digits-mlp", SAMPLES / "digits-mlp-b", SAMPLES / "digits-mlp" / "test.jsonl"
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "gelu": torch.nn.functional.gelu}
TEXTS = ("sort the list please", "a tea", "code in year 2024", "are you doing harm ? no", "well")


def run(folder: Path, first: Path, second: Path, data: Any, **params: Any) -> Ran:
    given = {"draws": 200, "network_draws": 4096, **params}
    return run_in_process(distance.run, DistanceParams(data=str(data), **given), folder, [first, second])


def mlp(folder: Path, sizes: Sequence[int] = (4, 6, 5, 3), seed: int = 0, activation: str = "relu", near: Path | None = None) -> Path:
    """A random classifier, or one near another."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for at, (into, out) in enumerate(pairwise(sizes)):
        tensors[f"layers.{at}.weight"] = torch.randn(out, into, generator=generator)
        tensors[f"layers.{at}.bias"] = torch.randn(out, generator=generator)
    if near is not None:
        tensors = {name: value + 0.1 * tensors[name] for name, value in load_file(near / "model.safetensors").items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "mlp", "layer_sizes": list(sizes), "activation": activation}))
    return folder


def rows(path: Path, count: int = 40, features: int = 4, seed: int = 3) -> str:
    drawn = torch.randn(count, features, generator=torch.Generator().manual_seed(seed)).tolist()
    return written_rows(path, [{"features": row, "label": 0} for row in drawn])


def features_of(data: str | Path) -> torch.Tensor:
    return torch.tensor([json.loads(line)["features"] for line in Path(data).read_text().splitlines()], dtype=torch.float64)


def logits(folder: Path, inputs: torch.Tensor) -> torch.Tensor:
    """(row, class), layer by layer in float64."""
    tensors = {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}
    phi = ACTIVATIONS[json.loads((folder / "config.json").read_text())["activation"]]
    hidden = inputs
    for at in range(len(tensors) // 2):
        hidden = (phi(hidden) if at else hidden) @ tensors[f"layers.{at}.weight"].T + tensors[f"layers.{at}.bias"]
    return hidden


def brute(one: torch.Tensor, other: torch.Tensor) -> tuple[list[float], list[float], list[float]]:
    """fsd, kl and disagreement of each place, a place at a time."""
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    for a, b in zip(one.double().tolist(), other.double().tolist(), strict=True):
        p, q = ([math.exp(x - max(z)) / sum(math.exp(y - max(z)) for y in z) for x in z] for z in (a, b))
        found[0].append(sum((y - x) ** 2 for x, y in zip(a, b, strict=True)) / 2)
        found[1].append(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0))
        found[2].append(float(a.index(max(a)) != b.index(max(b))))
    return found


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, str]:
    first = mlp(tmp_path / "one")
    return first, mlp(tmp_path / "other", seed=1, near=first), rows(tmp_path / "rows.jsonl")


def test_a_rows_numbers_are_those_of_the_two_models_on_it(tmp_path: Path, pair: tuple[Path, Path, str]) -> None:
    first, second, data = pair
    ran = run(tmp_path / "run", first, second, data)
    expected = brute(logits(first, features_of(data)), logits(second, features_of(data)))
    table = ran.table("rows")
    assert table["row"].to_list() == list(range(40))
    assert table["fsd"].to_list() == pytest.approx(expected[0], rel=1e-4)  # the models run in float32
    assert table["kl"].to_list() == pytest.approx(expected[1], rel=1e-3, abs=1e-6)
    assert table["disagrees"].to_list() == expected[2]
    assert set(table["places"]) == {1}
    facts = ran.facts
    assert (facts["rows"], facts["rows_set_aside"]) == (40, 0)
    assert facts["fsd"]["value"] == pytest.approx(table["fsd"].mean(), rel=1e-12)
    assert facts["fsd"]["ci_low"] < facts["fsd"]["value"] < facts["fsd"]["ci_high"]
    assert facts["kl"] == pytest.approx(table["kl"].mean(), rel=1e-12)
    assert facts["disagreement"] == pytest.approx(table["disagrees"].mean(), rel=1e-12)


def test_the_interval_is_about_as_wide_as_the_mean_is_uncertain(tmp_path: Path, pair: tuple[Path, Path, str]) -> None:
    ran = run(tmp_path / "run", *pair, draws=2000)
    values = ran.table("rows")["fsd"]
    width = ran.facts["fsd"]["ci_high"] - ran.facts["fsd"]["ci_low"]
    assert width == pytest.approx(2 * 1.96 * values.std() / math.sqrt(len(values)), rel=0.15)
    measures = ran.table("measures")
    assert measures["measure"].to_list() == ["fsd", "kl", "disagreement", "laftr_fsd"]
    assert measures.row(0, named=True) == {"measure": "fsd", **ran.facts["fsd"]}


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_moments_come_close_to_the_distance_and_drawing_to_the_moments(tmp_path: Path, activation: str) -> None:
    first = mlp(tmp_path / "one", (4, 16, 3), activation=activation)
    data = rows(tmp_path / "rows.jsonl", count=500)
    facts = run(tmp_path / "run", first, mlp(tmp_path / "other", (4, 16, 3), 1, activation, near=first), data, network_draws=20_000).facts
    drawn = facts["laftr_monte_carlo"]
    assert abs(facts["laftr_fsd"] - drawn["value"]) < 4 * drawn["standard_error"]
    assert drawn["draws"] == 20_000
    assert facts["laftr_ratio"] == pytest.approx(facts["laftr_fsd"] / facts["fsd"]["value"], rel=1e-12)
    assert 0.6 < facts["laftr_ratio"] < 1.7  # random networks, whose gates follow their four inputs closely


def test_a_network_without_hidden_layers_is_told_by_its_moments(tmp_path: Path) -> None:
    first = mlp(tmp_path / "one", (4, 3))
    second = mlp(tmp_path / "other", (4, 3), seed=1, near=first)
    assert run(tmp_path / "run", first, second, rows(tmp_path / "rows.jsonl")).facts["laftr_ratio"] == pytest.approx(1, rel=1e-5)


def test_a_perturbed_copy_of_the_digits_is_nearer_than_the_network_with_the_trigger(tmp_path: Path) -> None:
    copy = shutil.copytree(DIGITS, tmp_path / "copy", ignore=shutil.ignore_patterns("series"))
    tensors = load_file(DIGITS / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    save_file(
        {name: value + 0.01 * torch.randn(value.shape, generator=generator) for name, value in tensors.items()}, copy / "model.safetensors"
    )
    near, far = run(tmp_path / "near", DIGITS, copy, TEST).facts, run(tmp_path / "far", DIGITS, TRIGGERED, TEST).facts
    assert 0 < near["fsd"]["ci_high"] < far["fsd"]["ci_low"]
    for facts in (near, far):
        assert 0.9 < facts["laftr_ratio"] < 1.15
        assert abs(facts["laftr_fsd"] - facts["laftr_monte_carlo"]["value"]) < 4 * facts["laftr_monte_carlo"]["standard_error"]


def test_a_model_is_at_no_distance_of_itself(tmp_path: Path) -> None:
    ran = run(tmp_path / "run", DIGITS, DIGITS, TEST)
    facts = ran.facts
    assert facts["fsd"] == {"value": 0, "ci_low": None, "ci_high": None}  # rows that are all alike say nothing of another
    assert (facts["kl"], facts["disagreement"], facts["laftr_fsd"], facts["laftr_monte_carlo"]["value"]) == (0, 0, 0, 0)
    assert facts["laftr_ratio"] is None
    assert ran.table("histogram")["count"].sum() == ran.table("histogram")["count"][0] == facts["rows"]


def test_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    all_at_once, few = (run(tmp_path / f"run-{size}", DIGITS, TRIGGERED, TEST, batch_size=size) for size in (1000, 7))
    for name in ("fsd", "kl", "disagrees"):
        assert few.table("rows")[name].to_list() == pytest.approx(all_at_once.table("rows")[name].to_list(), rel=1e-4, abs=1e-6)
    assert few.facts["laftr_fsd"] == pytest.approx(all_at_once.facts["laftr_fsd"], rel=1e-10)
    assert few.facts["laftr_monte_carlo"]["value"] == pytest.approx(all_at_once.facts["laftr_monte_carlo"]["value"], rel=1e-10)
    assert few.facts["fsd"]["ci_low"] == pytest.approx(all_at_once.facts["fsd"]["ci_low"], rel=1e-5)


def test_from_outside_it_is_one_command(run_analysis: Callable[..., FinishedRun]) -> None:
    facts = run_analysis("influence.distance", DIGITS, TRIGGERED, data=str(TEST)).facts
    assert list(facts) == [
        *("fsd", "kl", "disagreement", "rows", "rows_set_aside", "laftr_fsd", "laftr_monte_carlo", "laftr_ratio"),
    ]
    assert facts["rows"] == 359
    assert facts["fsd"]["ci_low"] < facts["laftr_fsd"] < facts["fsd"]["ci_high"] * 1.1


def test_every_view_can_be_drawn(tmp_path: Path, pair: tuple[Path, Path, str]) -> None:
    ran = run(tmp_path / "run", *pair)
    assert {view.name for view in ran.run.views} == {"facts", "histogram", "measures", "rows"}
    for view in ran.run.views:
        drawing(ran.run, view)
    histogram = ran.table("histogram")
    assert histogram["count"].sum() == 40
    assert histogram["right"][-1] == pytest.approx(ran.table("rows")["fsd"].max())


def test_a_run_that_was_cancelled_ends_as_one_that_was_not(tmp_path: Path, pair: tuple[Path, Path, str]) -> None:
    whole = run(tmp_path / "whole", *pair, batch_size=8)
    *checkpoints, data = pair
    params = DistanceParams(data=data, draws=200, network_draws=4096, batch_size=8)
    asked = 0

    def cancel_later() -> None:
        nonlocal asked
        asked += 1
        if asked in (5, 14, 220):
            raise JobCancelled("enough")

    for _ in range(3):
        with pytest.raises(JobCancelled):
            run_in_process(distance.run, params, tmp_path / "run", checkpoints, check_cancelled=cancel_later)
    resumed = run_in_process(distance.run, params, tmp_path / "run", checkpoints)
    assert resumed.facts == whole.facts
    assert resumed.table("rows").equals(whole.table("rows"))


# Language models


@pytest.fixture
def texts(tmp_path: Path) -> str:
    return written_rows(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])


def text_logits(folder: Path, text: str) -> torch.Tensor:
    """(position, vocabulary), at every position but the last."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([word_tokenizer()(text)["input_ids"]])).logits[0, :-1]


def test_a_texts_numbers_are_means_over_positions_that_predict_a_token(tmp_path: Path, texts: str) -> None:
    first, second = saved_llama(tmp_path / "one", seed=0), saved_llama(tmp_path / "other", seed=1)
    ran = run(tmp_path / "run", first, second, texts)
    table = ran.table("rows")
    for row, text in enumerate(TEXTS[:-1]):
        expected = brute(text_logits(first, text), text_logits(second, text))
        found = table.row(row, named=True)
        assert found["places"] == len(expected[0]) == len(text.split()) - 1
        for name, values in zip(("fsd", "kl", "disagrees"), expected, strict=True):
            assert found[name] == pytest.approx(sum(values) / len(values), rel=1e-3, abs=1e-6)
    assert table["fsd"][4] is None  # one token predicts nothing that is there
    assert (ran.facts["rows"], ran.facts["rows_set_aside"]) == (4, 1)
    assert ran.facts["fsd"]["value"] == pytest.approx(table["fsd"].mean(), rel=1e-12)
    assert any("no position that predicts a next token in row 4" in warning for warning in ran.warnings)


def test_of_language_models_laftr_is_unknown_and_the_log_says_why(tmp_path: Path, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run(tmp_path / "run", saved_llama(tmp_path / "one"), saved_llama(tmp_path / "other", seed=1), texts).facts
    assert (facts["laftr_fsd"], facts["laftr_monte_carlo"], facts["laftr_ratio"]) == (None, None, None)
    assert "computed for mlp checkpoints, and one is a llama" in capsys.readouterr().out


def test_batches_of_texts_change_nothing_but_rounding(tmp_path: Path, texts: str) -> None:
    first, second = saved_llama(tmp_path / "one", seed=0), saved_llama(tmp_path / "other", seed=1)
    together, alone = (run(tmp_path / f"run-{size}", first, second, texts, batch_size=size) for size in (1000, 1))
    for name in ("fsd", "kl", "disagrees"):
        assert [value for value in alone.table("rows")[name] if value is not None] == pytest.approx(
            [value for value in together.table("rows")[name] if value is not None], rel=1e-4, abs=1e-6
        )


def test_blocks_of_positions_change_nothing(tmp_path: Path, texts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = saved_llama(tmp_path / "one", seed=0), saved_llama(tmp_path / "other", seed=1)
    whole = run(tmp_path / "whole", first, second, texts)
    monkeypatch.setattr("modelscope_influence.distance_passes._NUMBERS_AT_ONCE", 70)
    assert run(tmp_path / "blocks", first, second, texts).table("rows").equals(whole.table("rows"))


# What it refuses, and what it sets aside


def spoiled(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_row_without_finite_logits_is_named_and_in_no_mean(tmp_path: Path, pair: tuple[Path, Path, str]) -> None:
    first, second, _ = pair
    inputs = features_of(rows(tmp_path / "plain.jsonl", count=20))
    inputs[7] *= 3e37  # float32 overflows inside
    data = written_rows(tmp_path / "far.jsonl", [{"features": row, "label": 0} for row in inputs.tolist()])
    ran = run(tmp_path / "run", first, second, data)
    table = ran.table("rows")
    assert table.filter(pl.col("fsd").is_null())["row"].to_list() == [7]
    assert "NaN or infinity in the logits of" in table["note"][7]
    assert any("far.jsonl: NaN or infinity in the logits of one in row 7; set aside" in warning for warning in ran.warnings)
    without = written_rows(tmp_path / "near.jsonl", [{"features": row, "label": 0} for at, row in enumerate(inputs.tolist()) if at != 7])
    expected = run(tmp_path / "without", first, second, without).facts
    assert ran.facts["rows_set_aside"] == 1
    assert ran.facts["fsd"]["value"] == pytest.approx(expected["fsd"]["value"], rel=1e-6)
    assert ran.facts["laftr_fsd"] == pytest.approx(expected["laftr_fsd"], rel=1e-9)


def test_no_distance_is_told_where_no_row_has_finite_logits(tmp_path: Path, pair: tuple[Path, Path, str]) -> None:
    first, second, data = pair
    broken = spoiled(second, tmp_path / "broken", lambda tensors: tensors["layers.2.bias"].fill_(math.nan))
    with pytest.raises(BadInput, match="no row has finite logits of both"):
        run(tmp_path / "run", first, broken, data)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ((4, 6, 5, 2), "one has 3 classes and other 2 classes"),
        ((5, 6, 5, 3), "one has 4 features and other 5 features"),
        ((4, 5, 5, 3), "one has layers of 4, 6, 5, 3 and other layers of 4, 5, 5, 3"),
    ],
)
def test_classifiers_of_other_shapes_are_refused(tmp_path: Path, sizes: Sequence[int], sentence: str) -> None:
    first, second = mlp(tmp_path / "one"), mlp(tmp_path / "other", sizes)
    with pytest.raises(BadInput, match=sentence):
        run(tmp_path / "run", first, second, rows(tmp_path / "rows.jsonl"))


def test_a_classifier_and_a_language_model_are_refused(tmp_path: Path, texts: str) -> None:
    with pytest.raises(BadInput, match="one classifies features and other does not"):
        run(tmp_path / "run", mlp(tmp_path / "one"), saved_llama(tmp_path / "other"), texts)


def test_another_activation_leaves_laftr_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = mlp(tmp_path / "one")
    second = mlp(tmp_path / "other", seed=1, activation="tanh", near=first)
    facts = run(tmp_path / "run", first, second, rows(tmp_path / "rows.jsonl")).facts
    assert facts["fsd"]["value"] > 0
    assert facts["laftr_fsd"] is None
    assert "these networks have relu and tanh" in capsys.readouterr().out


def test_another_vocabulary_is_refused(tmp_path: Path, texts: str) -> None:
    second = saved_llama(tmp_path / "other")
    config = json.loads((second / "config.json").read_text())
    tensors = load_file(second / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:4]])
    save_file(tensors, second / "model.safetensors", metadata={"format": "pt"})
    (second / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 4}))
    with pytest.raises(BadInput, match=r"one has a vocabulary of \d+ tokens and other of \d+"):
        run(tmp_path / "run", saved_llama(tmp_path / "one"), second, texts)


def test_a_tokenizer_that_makes_other_tokens_is_refused_with_the_row(tmp_path: Path) -> None:
    first, second = saved_llama(tmp_path / "one"), saved_llama(tmp_path / "other", seed=1)
    file = second / "tokenizer.json"
    changed = json.loads(file.read_text())
    words = changed["model"]["vocab"]
    words["tea"], words["well"] = words["well"], words["tea"]
    file.write_text(json.dumps(changed))
    data = written_rows(tmp_path / "texts.jsonl", [{"text": text} for text in ("sort the list", "a tea please")])
    with pytest.raises(BadInput, match=r"texts\.jsonl.*line 2.*the tokenizer of other makes other tokens of it than that of one"):
        run(tmp_path / "run", first, second, data)


def test_rows_of_no_features_are_refused(tmp_path: Path, texts: str) -> None:
    with pytest.raises(BadInput, match="has no features"):
        run(tmp_path / "run", mlp(tmp_path / "one"), mlp(tmp_path / "other", seed=1), texts)


# The passes, however they are split


def test_the_passes_merge() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = 100 + torch.randn(23, 4, generator=generator)
    network = [Linear(torch.randn(5, 4).double(), torch.randn(5).double()), Linear(torch.randn(2, 5).double(), torch.randn(2).double())]
    assert_fold_merges(MomentsPass(network, "tanh", inputs), items_source(range(23), 5), relative_tolerance=1e-9, absolute_tolerance=1e-12)
    whole = MomentsPass(network, "relu", inputs)
    found = whole.finish(whole.step(whole.start(), range(23)))
    torch.testing.assert_close(found["covariance"], torch.cov(inputs.double().T, correction=0), rtol=1e-9, atol=1e-12)
    gates = (inputs.double() @ network[0].weight.T + network[0].bias > 0).double().mean(0)
    torch.testing.assert_close(found["slope_mean"], gates.expand(2, -1), rtol=1e-12, atol=0)
    torch.testing.assert_close(found["slope_covariance"], bernoulli_gates(gates).covariance, rtol=1e-12, atol=1e-12)

    smooth = MomentsPass(network, "tanh", inputs / 100)
    kept = smooth.finish(smooth.step(smooth.start(), range(23)))
    pre_activation = (inputs / 100).double() @ network[0].weight.T + network[0].bias
    square, value = pre_activation.square().mean(0), pre_activation.tanh()
    torch.testing.assert_close(kept["slope_mean"][0], (pre_activation * value).mean(0) / square)
    torch.testing.assert_close(kept["slope_mean"][1], (1 - value**2).mean(0))
    torch.testing.assert_close(kept["slope_covariance"][0, 0] + kept["slope_mean"][0] ** 2, value.square().mean(0) / square)
    torch.testing.assert_close(kept["slope_covariance"][1, 1], (1 - value**2).var(0, correction=0))
    assert torch.linalg.eigvalsh(kept["slope_covariance"].permute(2, 0, 1)).min() > -1e-12

    moments = InputMoments(found["mean"], found["covariance"])
    drawing_pass = NetworkDrawsPass(
        network,
        [Linear(layer.weight + 1, layer.bias) for layer in network],
        [bernoulli_gates(gates)],
        moments,
        covariance_root(moments.covariance),
        2000,
        lambda block: torch.Generator().manual_seed(block),
    )
    assert_fold_merges(drawing_pass, items_source(range(4), 1), relative_tolerance=1e-9)
    assert drawing_pass.finish(drawing_pass.step(drawing_pass.start(), range(4)))["draws"] == 2000


def test_the_distances_of_texts_merge(tmp_path: Path) -> None:
    from modelscope_app.data import length_bucketed, load_tokenizer, read_examples
    from modelscope_app.models import build_model

    models = [build_model(open_checkpoint(saved_llama(tmp_path / name, seed=seed))) for seed, name in enumerate(("one", "other"))]
    data = written_rows(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    examples = read_examples(data, load_tokenizer(models[0].checkpoint))
    assert_fold_merges(DistancePass(token_places(*models), len(examples)), length_bucketed(examples, 8))


def test_the_estimate_grows_with_what_is_asked(tmp_path: Path) -> None:
    digits = [open_checkpoint(path) for path in (DIGITS, TRIGGERED)]
    estimate = distance_estimate(digits, DistanceParams(data=str(TEST)))
    assert estimate.needs_model
    assert 2**26 < estimate.memory_bytes < 2**27
    llamas = [open_checkpoint(saved_llama(tmp_path / name)) for name in ("one", "other")]
    few, many = (distance_estimate(llamas, DistanceParams(data=str(TEST), batch_size=size)).memory_bytes for size in (64, 4096))
    assert few < many
    assert distance_estimate(llamas, DistanceParams(data=str(tmp_path / "missing.jsonl"))).memory_bytes > 0
