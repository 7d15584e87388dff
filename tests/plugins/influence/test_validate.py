"""`influence.validate`: what it says of scores, on real checkpoints, and that it leaves the model as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from modelscope_influence.analyses import validate
from modelscope_influence.validate_estimate import validate_estimate
from modelscope_influence.validate_params import ValidateParams
from plugins.probes.score.in_process import WORDS, Ran, run_in_process, saved_llama, written_rows
from pydantic import ValidationError

from modelscope_app.api import BadInput, JobCancelled
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.jobs.models import FreshModels
from modelscope_app.rendering.drawings import drawing

pytest_plugins = ["modelscope_app.testing"]

SAMPLES = Path(__file__).resolve().parents[3] / "sample_checkpoints"
DIGITS, MISLABELLED = SAMPLES / "digits-mlp", SAMPLES / "digits-mislabelled"
QUICK = {"removals": 6, "label_seeds": 0, "halves": False, "damping_sweep": False, "draws": 200, "exact": False}


@pytest.fixture(autouse=True)
def one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def first_lines(path: Path, into: Path, count: int) -> str:
    into.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:count]))
    return str(into)


def run(folder: Path, checkpoint: Path, train: str, queries: str, **params: Any) -> Ran:
    watched = {name: params.pop(name) for name in ("check_cancelled", "watch") if name in params}
    return run_in_process(
        validate.run, ValidateParams(train=train, queries=queries, **{**QUICK, **params}), folder, [checkpoint], **watched
    )


def digits(tmp_path: Path, checkpoint: Path = DIGITS, rows: int = 200, queries: int = 8) -> tuple[Path, str, str]:
    data = first_lines(checkpoint / "train.jsonl", tmp_path / "train.jsonl", rows)
    return checkpoint, data, first_lines(checkpoint / "test.jsonl", tmp_path / "queries.jsonl", queries)


def relu_digits(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "relu"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes((DIGITS / "model.safetensors").read_bytes())
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "mlp", "layer_sizes": [64, 64, 10], "activation": "relu"}))
    return checkpoint


def texts(tmp_path: Path, rows: int = 24, queries: int = 5) -> tuple[Path, str, str]:
    """A tiny language model, and sentences of its words, the queries among them."""
    generator = torch.Generator().manual_seed(0)

    def sentence(length: int) -> str:
        return " ".join(WORDS[at] for at in torch.randint(len(WORDS), (length,), generator=generator).tolist())

    told = [{"text": sentence(4 + at % 5)} for at in range(rows)]
    asked = [{"prompt": row["text"], "completion": " " + sentence(2)} for row in told[:queries]]
    train, queried = written_rows(tmp_path / "train.jsonl", told), written_rows(tmp_path / "queries.jsonl", asked)
    return saved_llama(tmp_path / "llama"), train, queried


def test_on_the_digits_it_says_in_a_sentence_how_far_to_trust_a_score(tmp_path: Path) -> None:
    ran = run(tmp_path / "run", *digits(tmp_path, MISLABELLED, rows=300), damping=1, epsilon_sweep=True, exact=True)
    facts = ran.facts
    r = facts["r"]
    assert facts["trust"].startswith(
        f"EK-FAC and PBRF: r = {r['value']:.2f}, slope {facts['slope']:.2f} over 6 removals (median of 8 queries)"
    )
    assert f"gradient cosine: r = {facts['r_gradient_cosine']:.2f}" in facts["trust"]
    assert "BM25" not in facts["trust"]
    assert (facts["removals"], facts["queries"], facts["rows"], facts["epsilon"]) == (6, 8, 300, -1 / 300)
    assert r["ci_low"] <= r["value"] <= r["ci_high"]
    responses = ran.table("responses")
    assert responses.height == 48 and responses["delta_pbrf"].null_count() == 0
    assert set(responses["chosen"]) == {"by score", "at random"}
    removals = ran.table("removals")
    assert removals["chosen"].to_list() == ["by score"] * 3 + ["at random"] * 3
    assert removals["has_converged"].sum() == facts["converged"]
    limit = removals.with_columns(share=pl.col("last_gradient_norm") / pl.col("first_gradient_norm")).filter("has_converged")
    assert limit["share"].max() <= 1e-4
    gaps = {row["term"]: row["relative"] for row in ran.table("gaps").iter_rows(named=True)}
    assert gaps["linearisation"] > 0 and gaps["solver"] > 0
    assert gaps["warm start"] is None and facts["gaps_unknown"] == "warm start, proximity, non-convergence"
    exact = ran.table("epsilons").filter((pl.col("method") == "exact") & (pl.col("epsilon") > -1e-4))
    assert exact["slope"].item() == pytest.approx(1, abs=0.05) and exact["r"].item() >= 0.95
    for view in ran.run.views:
        drawing(ran.run, view)


def test_on_the_rows_it_was_trained_on_curvature_says_more_than_gradients_alone(tmp_path: Path) -> None:
    given = digits(tmp_path, MISLABELLED, rows=1000, queries=10)
    facts = run(tmp_path / "run", *given, removals=14).facts
    assert facts["r"]["value"] > facts["r_gradient_cosine"] + 0.1
    assert facts["r"]["value"] > facts["r_gradient_dot"] + 0.1
    assert facts["converged"] >= 12 and 0.05 < facts["slope"] < 2


def test_predicted_changes_are_scores_over_the_number_of_rows(tmp_path: Path) -> None:
    from modelscope_influence.analyses import scores
    from modelscope_influence.params import ScoresParams

    given = digits(tmp_path, rows=100)
    responses = run(tmp_path / "run", *given, max_steps=3).table("responses")
    pairs = run_in_process(scores.run, ScoresParams(train=given[1], queries=given[2]), tmp_path / "scores", [DIGITS]).table("pairwise")
    both = responses.join(pairs, left_on=["query", "removal"], right_on=["query", "example"], suffix="_scored")
    assert both.height == responses.height
    assert both["delta_measure"].to_list() == pytest.approx(both["delta_measure_scored"].to_list(), rel=1e-5)
    assert both["gradient_cosine"].to_list() == pytest.approx(both["gradient_cosine_scored"].to_list(), rel=1e-5)
    mean = pairs.group_by("example").agg(pl.col("score").abs().mean()).sort("score", descending=True)
    assert responses.filter(chosen="by score")["removal"].unique(maintain_order=True).to_list() == mean["example"].head(3).to_list()


def test_removing_a_row_does_what_training_without_it_does(tmp_path: Path) -> None:
    """The whole chain on few rows: terms are known, and the gaps are between neighbours of the chain."""
    given = digits(tmp_path, rows=60, queries=4)
    recipe = {"weight_decay": 0.05, "epochs": 30, "learning_rate": 0.02, "lds_subsets": 3}
    ran = run(tmp_path / "run", *given, **recipe, removals=4, max_steps=50, exact=True)
    facts, responses = ran.facts, ran.table("responses")
    assert facts["gaps_unknown"] is None and -1 <= facts["lds"] <= 1 and -1 <= facts["lds_gradient_cosine"] <= 1
    assert ran.table("lds").height == 4
    for row in ran.table("gaps").iter_rows(named=True):
        one, other = (
            responses["delta_measure" if name == "curvature" else f"delta_{name}"].to_numpy() for name in (row["from"], row["to"])
        )
        assert row["size"] == pytest.approx(float(((one - other) ** 2).sum() ** 0.5), rel=1e-9)


def test_scores_are_fitted_again_with_other_labels_halves_and_dampings(tmp_path: Path) -> None:
    given = digits(tmp_path, rows=120)
    ran = run(tmp_path / "run", *given, label_seeds=2, halves=True, damping_sweep=True, sweep_responses=True, removals=4, max_steps=50)
    stability = ran.table("stability")
    assert stability["what"].to_list() == ["damping"] * 2 + ["labels"] * 2 + ["half of the rows"] * 2 + ["halves"]
    assert stability["spearman"].is_between(0.1, 0.9999).all()  # alike, and not the same
    assert stability["top_20"].is_between(0.2, 1).all()
    assert stability["spearman"].n_unique() == 7
    assert stability.filter(pl.col("what") != "halves")["r"].null_count() == 0
    assert ran.facts["spearman_labels"] == stability.filter(what="labels")["spearman"].min()
    none = run(tmp_path / "none", *given, label_seeds=2, fisher="exact", removals=4, max_steps=3)
    assert none.table("stability").height == 0
    assert none.facts["converged"] == 0 and "4 removals were not solved to the end" in none.facts["trust"]
    assert any("raise --max-steps" in warning for warning in none.warnings)
    assert "r_exact" not in none.facts


@pytest.mark.parametrize("measure", ["loss", "logprob", "margin"])
def test_on_a_tiny_language_model_bm25_stands_beside(tmp_path: Path, measure: str) -> None:
    """Damped so much that random weights answer to the loss of a random sentence nearly linearly."""
    ran = run(tmp_path / "run", *texts(tmp_path), measure=measure, damping=100, label_draws=10)
    facts = ran.facts
    assert "EK-FAC and PBRF: r = " in facts["trust"] and "BM25: r = " in facts["trust"]
    assert facts["converged"] == 6 and "r_exact" not in facts
    responses = ran.table("responses")
    assert (responses["bm25"] >= 0).all() if measure == "loss" else (responses["bm25"] <= 0).all()
    assert facts["r"]["value"] > 0.9 and 0.5 < facts["slope"] < 1
    assert facts["r"]["value"] > facts["r_gradient_cosine"]


def test_a_log_probability_changes_as_the_loss_does_the_other_way(tmp_path: Path) -> None:
    given = texts(tmp_path)
    one, other = (
        run(tmp_path / measure, *given, measure=measure, damping=100, removals=4).table("responses")["delta_pbrf"]
        for measure in ("loss", "logprob")
    )
    assert one.to_list() == pytest.approx((-other).to_list(), rel=1e-9, abs=1e-15)


class Watched(FreshModels):
    """Keeps the model it built, to be looked at afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.built: list[Any] = []

    def model(self, *given: Any) -> Any:
        self.built.append(super().model(*given))
        self.before = {name: tensor.clone() for name, tensor in self.built[-1].module.state_dict().items()}
        self.identities = [id(parameter) for parameter in self.built[-1].module.parameters()]
        return self.built[-1]


@pytest.mark.parametrize("kind", ["digits", "texts", "cancelled"])
def test_the_resident_model_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import plugins.probes.score.in_process as harness

    watched, calls = Watched(), iter(range(10**9))
    monkeypatch.setattr(harness, "FreshModels", lambda: watched)

    def cancel() -> None:
        if kind == "cancelled" and next(calls) > 150:
            raise JobCancelled("stopped")

    given = texts(tmp_path) if kind == "texts" else digits(tmp_path, rows=60, queries=3)
    more = {} if kind == "texts" else {"weight_decay": 0.01, "epochs": 3, "learning_rate": 0.01}
    try:
        run(tmp_path / "run", *given, check_cancelled=cancel, max_steps=20, removals=4, **more)
        assert kind != "cancelled"
    except JobCancelled:
        assert kind == "cancelled"
    (model,) = watched.built
    after = model.module.state_dict()
    assert after.keys() == watched.before.keys()
    assert all(torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in watched.before.items())
    assert [id(parameter) for parameter in model.module.parameters()] == watched.identities
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in model.module.parameters())
    assert not any(module._forward_hooks or module.training for module in model.module.modules())


def test_a_cancelled_run_goes_on_with_the_removal_it_was_at(tmp_path: Path) -> None:
    given = digits(tmp_path, rows=60, queries=3)
    whole = run(tmp_path / "whole", *given, max_steps=20)
    done: list[float] = []

    def cancel() -> None:
        if done:
            raise JobCancelled("stopped")

    def watch(folder: Any) -> None:
        state = tmp_path / "run" / "stages" / "responses"
        if state.exists() and not (tmp_path / "run" / "stages" / "exact").exists():
            ticks.append(1)
            if len(ticks) == 4:
                done.append(1)

    ticks: list[int] = []
    with pytest.raises(JobCancelled):
        run(tmp_path / "run", *given, check_cancelled=cancel, watch=watch, max_steps=20)
    done.clear()
    again = run(tmp_path / "run", *given, max_steps=20)
    assert again.table("responses").equals(whole.table("responses"))
    first = next(told for told in again.progress if told[2] == "removals")
    assert first[0] == 3  # removals that were solved before


def test_a_row_without_a_finite_loss_is_never_removed(tmp_path: Path) -> None:
    _, train, queries = digits(tmp_path, rows=40, queries=3)
    checkpoint = relu_digits(tmp_path)
    rows = [json.loads(line) for line in Path(train).read_text().splitlines()]
    rows[5]["features"] = [3e38] * 64  # whose sums overflow
    written_rows(Path(train), rows)
    ran = run(tmp_path / "run", checkpoint, train, queries, damping=1000, max_steps=50)
    assert ran.facts["rows_set_aside"] == 1 and 5 not in ran.table("removals")["example"].to_list()
    assert ran.table("responses")["delta_pbrf"].null_count() == 0


def test_a_removal_without_a_minimum_is_not_compared(tmp_path: Path) -> None:
    """Weights that were trained with tanh, run with ReLU: logits grow with the square of the weights, as the damping does."""
    _, train, queries = digits(tmp_path, rows=40, queries=3)
    ran = run(tmp_path / "run", relu_digits(tmp_path), train, queries, max_steps=200)
    facts, removals, responses = ran.facts, ran.table("removals"), ran.table("responses")
    lost = removals.filter(pl.col("last_gradient_norm").is_null())["example"].to_list()
    assert facts["without_solution"] == len(lost) > 0
    assert responses.filter(pl.col("delta_pbrf").is_null())["removal"].unique().sort().to_list() == sorted(lost)
    assert "no solution near the checkpoint" in facts["trust"] and f"over {6 - len(lost)} removals" in facts["trust"]
    assert any("raise --damping" in warning for warning in ran.warnings)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"epochs": 10}, "together"),
        ({"epochs": 10, "learning_rate": 0.1}, "together"),
        ({"lds_subsets": 5}, "lds_subsets trains anew"),
        ({"lds_subsets": 2, "epochs": 1, "learning_rate": 0.1, "weight_decay": 0.0}, "at least 3"),
        ({"curvature": "identity"}, "ekfac"),
    ],
)
def test_half_a_recipe_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ValidateParams(train="t", queries="q", **given)


def test_a_recipe_for_a_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--weight-decay"):
        run(tmp_path / "run", *texts(tmp_path), weight_decay=0.1)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least 4"):
        run(tmp_path / "run", *digits(tmp_path, rows=3))


def test_more_parameters_need_more_memory() -> None:
    params = ValidateParams(train="t", queries="q")
    small = validate_estimate([open_checkpoint(DIGITS)], params)
    assert small.needs_model and 2**20 < small.memory_bytes < 2**33
