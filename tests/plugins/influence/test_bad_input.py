"""What the analyses refuse, each with its sentence; and rows without a finite loss, which are set aside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from modelscope_influence.analyses import factors, scores, self_influence
from modelscope_influence.params import FactorsParams, ScoresParams, SelfParams
from plugins.probes.score.in_process import Ran, run_in_process, saved_llama, written_rows

from modelscope_app.api import BadInput, JobFailed
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.job import Job
from modelscope_app.testing import write_checkpoint

pytest_plugins = ["modelscope_app.testing"]

SIZES = (4, 5, 3)
FAR = [3e38, 3e38, -3e38, 3e38]
"""Finite, and the logits of them are not."""


def mlp(folder: Path, seed: int = 0, sizes: Sequence[int] = SIZES, activation: str = "relu", dtype: torch.dtype = torch.float32) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for at, (into, out) in enumerate(pairwise(sizes)):
        tensors[f"layers.{at}.weight"] = torch.randn(out, into, generator=generator).to(dtype)
        tensors[f"layers.{at}.bias"] = torch.randn(out, generator=generator).to(dtype)
    return write_checkpoint(folder, tensors, {"model_type": "mlp", "layer_sizes": list(sizes), "activation": activation})


def labelled(count: int = 20, seed: int = 1, **more: Callable[[int], Any]) -> list[dict[str, Any]]:
    features = torch.randn(count, SIZES[0], generator=torch.Generator().manual_seed(seed)).tolist()
    return [
        {"features": row, "label": at % SIZES[-1], **{name: value(at) for name, value in more.items()}} for at, row in enumerate(features)
    ]


def run(analysis: str, folder: Path, checkpoint: Path, train: str, **params: Any) -> Ran:
    """A run that other runs can find by its folder."""
    if not (folder / "job.json").exists():
        RunFolder.create(folder, Job("run", f"influence.{analysis}", 1, {}, {}, (), (), "cpu", "auto", 0, "2026-01-01T00:00:00Z", "", ""))
    work, of = {
        "factors": (factors.run, FactorsParams),
        "scores": (scores.run, ScoresParams),
        "self": (self_influence.run, SelfParams),
    }[analysis]
    return run_in_process(work, of(train=train, **params), folder, [checkpoint])


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return mlp(tmp_path / "mlp")


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return written_rows(tmp_path / "rows.jsonl", labelled())


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return saved_llama(tmp_path / "llama", layers=2)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    return written_rows(tmp_path / "texts.jsonl", [{"text": text} for text in ("sort the list please", "a tea", "code in year 2024")])


# Rows


@pytest.mark.parametrize("analysis", ["factors", "scores", "self"])
def test_a_file_without_rows_is_refused(tmp_path: Path, classifier: Path, llama: Path, rows: str, texts: str, analysis: str) -> None:
    empty = written_rows(tmp_path / "empty.jsonl", [])
    for checkpoint, queries in ((classifier, rows), (llama, texts)):
        more = {"queries": queries} if analysis == "scores" else {}
        with pytest.raises(BadInput, match=r"empty\.jsonl.* (no|empty)"):
            run(analysis, tmp_path / f"{analysis}-{checkpoint.name}", checkpoint, empty, **more)
    if analysis == "scores":
        with pytest.raises(BadInput, match=r"empty\.jsonl.* (no|empty)"):
            run(analysis, tmp_path / "run", llama, texts, queries=empty)


def test_a_row_of_one_token_is_refused_with_its_line(tmp_path: Path, llama: Path, texts: str) -> None:
    single = written_rows(tmp_path / "single.jsonl", [{"text": "a tea"}, {"text": "well"}])
    sentence = r"single\.jsonl.*line 2.*has one token, and with nothing before it there is nothing to predict; leave the row out"
    with pytest.raises(BadInput, match=sentence):
        run("factors", tmp_path / "run", llama, single)
    with pytest.raises(BadInput, match=sentence):
        run("scores", tmp_path / "scores", llama, texts, queries=single)


def test_a_prompt_with_an_empty_completion_is_refused_with_its_line(tmp_path: Path, llama: Path) -> None:
    path = written_rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "completion": "tea"}, {"prompt": "a list", "completion": ""}])
    with pytest.raises(BadInput, match=r"pairs\.jsonl.*line 2.*completion is empty"):
        run("self", tmp_path / "run", llama, path)


def test_a_row_longer_than_the_model_reads_is_refused_with_its_line(tmp_path: Path, llama: Path) -> None:
    path = written_rows(tmp_path / "long.jsonl", [{"text": "a tea"}, {"input_ids": [7] * 128}, {"input_ids": [7] * 129}])
    with pytest.raises(BadInput, match=r"long\.jsonl.*line 3.*has 129 tokens, and the model takes 128; shorten the row"):
        run("factors", tmp_path / "run", llama, path)


def test_rows_of_the_other_kind_are_refused(tmp_path: Path, classifier: Path, llama: Path, rows: str, texts: str) -> None:
    with pytest.raises(BadInput, match=r"texts\.jsonl.*has no features"):
        run("factors", tmp_path / "one", classifier, texts)
    with pytest.raises(BadInput, match=r"rows\.jsonl.*a row has text, prompt and completion"):
        run("factors", tmp_path / "other", llama, rows)


# Modules and settings


@pytest.mark.parametrize("modules", ["model.layers.*.nothing", "lm_*", "mlp,attention.q"])
def test_modules_that_match_nothing_are_refused_with_some_that_there_are(tmp_path: Path, llama: Path, texts: str, modules: str) -> None:
    with pytest.raises(BadInput, match=r"^--modules '.*' matches no linear layer inside the model's layers; there are model\.layers\.0\."):
        run("factors", tmp_path / "run", llama, texts, modules=modules)


def test_attention_of_a_classifier_is_refused(tmp_path: Path, classifier: Path, rows: str) -> None:
    with pytest.raises(BadInput, match=r"--modules 'attention' matches no linear layer .* there are layers\.0, layers\.1"):
        run("factors", tmp_path / "run", classifier, rows, modules="attention")


def test_every_label_of_a_language_model_is_refused(tmp_path: Path, llama: Path, texts: str) -> None:
    with pytest.raises(BadInput, match=r"--fisher exact takes one backward pass for each class and position, .*--fisher true draws labels"):
        run("factors", tmp_path / "run", llama, texts, fisher="exact")


# Curvature


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "diagonal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [4, 8])
def test_a_singular_curvature_without_damping_is_one_sentence(tmp_path: Path, curvature: str, dtype: torch.dtype, rows: int) -> None:
    """With fewer rows than inputs, some directions have no curvature but what rounding leaves; with a feature that is always
    zero, so has a weight."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        checkpoint = mlp(tmp_path / f"wide-{seed}", seed, (8, 3, 3), "tanh", dtype)
        features = torch.randn(rows, 8, generator=generator)
        if curvature == "diagonal":
            features[:, 2] = 0
        train = written_rows(tmp_path / "few.jsonl", [{"features": row, "label": at % 3} for at, row in enumerate(features.tolist())])
        given = {"fisher": "empirical", "curvature": curvature, "modules": "layers.0"}
        sentence = r"^the curvature is singular \(an eigenvalue is zero, and damping is too\); raise --damping above 0$"
        with pytest.raises(JobFailed, match=sentence):
            run("self", tmp_path / f"run-{seed}", checkpoint, train, damping=0, **given)
        damped = run("self", tmp_path / f"damped-{seed}", checkpoint, train, damping=1e-3, **given)
        assert damped.table("self")["score"].null_count() == 0


def test_a_curvature_that_is_not_singular_needs_no_damping(tmp_path: Path, classifier: Path) -> None:
    train = written_rows(tmp_path / "many.jsonl", labelled(200))
    checkpoint = mlp(tmp_path / "tanh", sizes=(4, 7, 3), activation="tanh")
    for curvature in ("ekfac", "diagonal"):
        given = {"fisher": "empirical", "curvature": curvature, "damping": 0, "modules": "layers.0"}
        assert (run("self", tmp_path / curvature, checkpoint, train, **given).table("self")["score"] > 0).all()


def test_a_module_without_any_gradient_is_told_from_one_without_damping(tmp_path: Path) -> None:
    """Damping is a fraction of nothing then, however large."""
    checkpoint = mlp(tmp_path / "mlp")
    dead = write_checkpoint(
        tmp_path / "dead",
        {
            "layers.0.weight": torch.zeros(5, 4),
            "layers.0.bias": -torch.ones(5),  # no unit ever fires
            "layers.1.weight": torch.ones(3, 5),
            "layers.1.bias": torch.zeros(3),
        },
        json.loads((checkpoint / "config.json").read_text()),
    )
    train = written_rows(tmp_path / "rows.jsonl", labelled())
    with pytest.raises(
        JobFailed, match=r"^the curvature of a module is zero everywhere: no training row has a gradient there; leave it out of --modules$"
    ):
        run("self", tmp_path / "run", dead, train)
    assert run("self", tmp_path / "last", dead, train, modules="layers.1").table("self")["score"].null_count() == 0


# Curvature of an earlier run


def test_curvature_of_an_earlier_run_is_used(tmp_path: Path, classifier: Path, rows: str) -> None:
    run("factors", tmp_path / "factors", classifier, rows, label_draws=2)
    found = run("self", tmp_path / "one", classifier, rows, label_draws=2, factors=str(tmp_path / "factors")).table("self")
    assert found.equals(run("self", tmp_path / "other", classifier, rows, label_draws=2).table("self"))


def test_curvature_of_another_checkpoint_is_refused(tmp_path: Path, classifier: Path, rows: str) -> None:
    run("factors", tmp_path / "factors", mlp(tmp_path / "another", seed=1), rows)
    with pytest.raises(BadInput, match=r"--factors .*factors: its curvature is of another checkpoint \(another\); fit this one's"):
        run("scores", tmp_path / "run", classifier, rows, queries=rows, factors=str(tmp_path / "factors"))


@pytest.mark.parametrize("other", [{"fisher": "empirical"}, {"curvature": "kfac"}, {"label_draws": 2}])
def test_curvature_fitted_otherwise_is_refused(tmp_path: Path, classifier: Path, rows: str, other: dict[str, Any]) -> None:
    run("factors", tmp_path / "factors", classifier, rows, **other)
    with pytest.raises(BadInput, match=r"--factors .*: it was fitted with \[.*\], and this run asks for \['ekfac', 'true', 1\]"):
        run("self", tmp_path / "run", classifier, rows, factors=str(tmp_path / "factors"))


def test_curvature_of_other_modules_is_refused(tmp_path: Path, classifier: Path, rows: str) -> None:
    run("factors", tmp_path / "factors", classifier, rows, modules="layers.1")
    with pytest.raises(BadInput, match=r"it has no curvature of layers\.0 \(1 modules are missing\)"):
        run("self", tmp_path / "run", classifier, rows, factors=str(tmp_path / "factors"))
    found = run("self", tmp_path / "part", classifier, rows, factors=str(tmp_path / "factors"), modules="layers.1")
    assert found.table("self").height == 20


def test_a_run_that_fitted_nothing_is_refused(tmp_path: Path, classifier: Path, rows: str) -> None:
    run("self", tmp_path / "self", classifier, rows)
    with pytest.raises(BadInput, match=r"run run of influence\.self .* holds no fitted curvature"):
        run("self", tmp_path / "run", classifier, rows, factors=str(tmp_path / "self"))
    with pytest.raises(BadInput):
        run("self", tmp_path / "other", classifier, rows, factors=str(tmp_path / "nowhere"))


# Rows without a finite loss


def spoiled(path: Path, at: Sequence[int], features: Sequence[float] = FAR, **more: Callable[[int], Any]) -> str:
    given = labelled(**more)
    for row in at:
        given[row]["features"] = list(features)
    return written_rows(path, given)


def without(path: Path, at: Sequence[int], **more: Callable[[int], Any]) -> str:
    return written_rows(path, [row for place, row in enumerate(labelled(**more)) if place not in at])


def test_a_row_without_a_finite_loss_is_named_and_in_no_ranking(tmp_path: Path, classifier: Path, rows: str) -> None:
    ran = run("scores", tmp_path / "run", classifier, spoiled(tmp_path / "far.jsonl", [7]), queries=rows, fisher="empirical", batch_size=6)
    assert "training row 7 is set aside: its loss or its gradient is not finite" in ran.warnings
    table = ran.table("pairwise")
    assert table.height == 20 * 20
    assert table.filter(pl.col("example") == 7).select("score", "delta_measure", "relatif", "effect").null_count().row(0) == (20,) * 4
    assert table.filter(pl.col("example") != 7)["score"].null_count() == 0
    last = table.group_by("query", maintain_order=True).agg(pl.col("example").last())
    assert last["example"].to_list() == [7] * 20
    assert 7 not in ran.table("shown")["example"].to_list()
    assert (ran.facts["rows"], ran.facts["rows_set_aside"]) == (20, 1)

    fewer = run("scores", tmp_path / "fewer", classifier, without(tmp_path / "near.jsonl", [7]), queries=rows, fisher="empirical")
    expected = {(row["query"], row["example"] + (row["example"] >= 7)): row for row in fewer.table("pairwise").iter_rows(named=True)}
    for row in table.filter(pl.col("example") != 7).iter_rows(named=True):
        other = expected[row["query"], row["example"]]
        assert row["score"] == pytest.approx(other["score"], rel=1e-3, abs=1e-4)
        assert row["delta_measure"] == pytest.approx(row["score"] / 20, rel=1e-12)  # of all rows, also those set aside


def test_the_highest_and_lowest_leave_out_what_was_set_aside(tmp_path: Path, classifier: Path, rows: str) -> None:
    ran = run("scores", tmp_path / "run", classifier, spoiled(tmp_path / "far.jsonl", [3, 7]), queries=rows, top_k=4)
    table = ran.table("pairwise")
    assert table.height == 20 * 8
    assert table["score"].null_count() == 0
    assert not set(table["example"]) & {3, 7}
    every = run("scores", tmp_path / "every", classifier, spoiled(tmp_path / "far.jsonl", [3, 7]), queries=rows, top_k=100)
    assert set(every.table("pairwise")["example"]) == set(range(20)) - {3, 7}


def test_self_influence_leaves_out_what_was_set_aside(tmp_path: Path, classifier: Path) -> None:
    flags = {"odd": lambda at: at in (2, 7, 9)}
    ran = run("self", tmp_path / "run", classifier, spoiled(tmp_path / "far.jsonl", [7], **flags), flag="odd", fisher="empirical")
    table = ran.table("self")
    assert table.filter(pl.col("score").is_null())["example"].to_list() == [7]
    assert table["gradient_norm"].null_count() == 1
    assert table["loss"].is_finite().sum() == 19
    assert "training row 7 is set aside: its loss or its gradient is not finite" in ran.warnings
    fewer = run("self", tmp_path / "fewer", classifier, without(tmp_path / "near.jsonl", [7], **flags), flag="odd", fisher="empirical")
    for name in ("recall_at_10", "recall_at_20", "auc", "recall_at_20_loss", "auc_gradient_norm"):
        assert ran.facts[name] == pytest.approx(fewer.facts[name])
    assert fewer.table("self")["score"].to_list() == pytest.approx(table["score"].drop_nulls().to_list(), rel=1e-3)


def test_factors_count_the_rows_that_went_in(tmp_path: Path, classifier: Path) -> None:
    ran = run("factors", tmp_path / "run", classifier, spoiled(tmp_path / "far.jsonl", [0, 1, 7, 19]))
    assert ran.table("factors")["rows"].to_list() == ran.table("factors")["positions"].to_list() == [16, 16]
    assert (ran.facts["rows"], ran.facts["rows_set_aside"]) == (20, 4)
    assert [warning for warning in ran.warnings if "set aside" in warning] == [
        *(f"training row {row} is set aside: its loss or its gradient is not finite" for row in (0, 1, 7)),
        "4 training rows are set aside, their losses or gradients are not finite",
    ]


def test_rows_of_which_none_has_a_finite_loss_are_refused(tmp_path: Path, classifier: Path) -> None:
    with pytest.raises(BadInput, match="no training row has a finite loss: every one was set aside"):
        run("factors", tmp_path / "run", classifier, spoiled(tmp_path / "far.jsonl", range(20)))
    with pytest.raises(BadInput, match="no training row has a finite loss: every one was set aside"):
        run("factors", tmp_path / "diagonal", classifier, spoiled(tmp_path / "far.jsonl", range(20)), curvature="diagonal")


def test_a_row_whose_squares_overflow_is_set_aside(tmp_path: Path, classifier: Path) -> None:
    """Its loss is finite, and products of its inputs and gradients are not."""
    path = spoiled(tmp_path / "far.jsonl", [7], [1e25, 0, 0, 0])
    ran = run("factors", tmp_path / "run", classifier, path)
    assert "training row 7 is set aside" in " ".join(ran.warnings)
    assert ran.table("factors")["lambda_mean"].is_finite().all()


def test_a_row_whose_squares_overflow_is_in_no_ranking(tmp_path: Path, classifier: Path, rows: str) -> None:
    path = spoiled(tmp_path / "far.jsonl", [7], [1e25, 0, 0, 0])
    ran = run("scores", tmp_path / "run", classifier, path, queries=rows)
    assert ran.table("pairwise").filter(pl.col("example") == 7)["score"].null_count() == 20
    assert ran.facts["rows_set_aside"] == 1
    table = run("self", tmp_path / "self", classifier, path).table("self")
    assert table.filter(pl.col("score").is_null())["example"].to_list() == [7]


def test_a_query_without_a_finite_measure_is_refused_by_number(tmp_path: Path, classifier: Path, rows: str) -> None:
    asked = spoiled(tmp_path / "asked.jsonl", [4])
    for measure in ("loss", "logprob", "margin"):
        with pytest.raises(BadInput, match=f"query 4: its {measure} is not finite; leave it out"):
            run("scores", tmp_path / measure, classifier, rows, queries=asked, measure=measure)


# The column of flags


@pytest.mark.parametrize("said", [lambda at: False, lambda at: at < 3 or None, lambda at: "yes"])
def test_a_column_nobody_asked_for_is_passed_over_where_it_tells_nothing_apart(
    tmp_path: Path, classifier: Path, said: Callable[[int], Any]
) -> None:
    ran = run("self", tmp_path / "run", classifier, spoiled(tmp_path / "clean.jsonl", [], poisoned=said))
    assert "flagged" not in ran.facts and "flagged" not in ran.table("self").columns


def test_poisoned_is_the_flag_where_it_tells_rows_apart(tmp_path: Path, classifier: Path) -> None:
    ran = run("self", tmp_path / "run", classifier, spoiled(tmp_path / "mixed.jsonl", [], poisoned=lambda at: at in (2, 5)))
    assert ran.facts["flagged"] == 2


def test_a_flag_that_is_in_no_row_is_refused(tmp_path: Path, classifier: Path, rows: str) -> None:
    for analysis, more in (("self", {}), ("scores", {"queries": rows})):
        with pytest.raises(BadInput, match=r"--flag flipped: .*rows\.jsonl has no such column; there are 'features', 'label'"):
            run(analysis, tmp_path / analysis, classifier, rows, flag="flipped", **more)


@pytest.mark.parametrize(("value", "shown"), [("yes", '"yes"'), (2, "2"), (None, "null"), ([1], r"\[1\]"), (0.5, r"0\.5")])
def test_a_flag_that_is_neither_true_nor_false_is_refused(tmp_path: Path, classifier: Path, value: Any, shown: str) -> None:
    path = written_rows(tmp_path / "odd.jsonl", labelled(odd=lambda at: value if at == 3 else at == 1))
    with pytest.raises(BadInput, match=rf"odd\.jsonl.*line 4.*odd is {shown}, and --flag needs true or false in every row"):
        run("self", tmp_path / "run", classifier, path, flag="odd")


@pytest.mark.parametrize("value", [True, False])
def test_a_flag_that_is_the_same_everywhere_is_refused(tmp_path: Path, classifier: Path, value: bool) -> None:
    path = written_rows(tmp_path / "same.jsonl", labelled(odd=lambda at: value))
    with pytest.raises(BadInput, match=rf"same\.jsonl: odd is {str(value).lower()} in every row, so no ranking can be measured against it"):
        run("self", tmp_path / "run", classifier, path, flag="odd")


# From outside


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        (("--modules", "layers.7"), 3, "--modules 'layers.7' matches no linear layer"),
        (("--flag", "flipped"), 3, "has no such column; there are 'features', 'label'"),
        (("--damping", "0", "--curvature", "diagonal"), 4, "the curvature is singular"),
        (("--damping", "-1"), 2, "damping"),
    ],
)
def test_from_outside_it_is_one_sentence_and_an_exit_code(
    tmp_path: Path, classifier: Path, words: Sequence[str], exit_code: int, sentence: str, mscope_folders: Path
) -> None:
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    features[:, 1] = 0
    train = written_rows(tmp_path / "train.jsonl", [{"features": row, "label": at % 3} for at, row in enumerate(features.tolist())])
    command = [*("run", "influence.self", str(classifier), "--train", train, "--out", str(tmp_path / "run"), "--device", "cpu"), *words]
    ended = subprocess.run(
        [sys.executable, "-m", "modelscope_app.cli.main", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == exit_code, ended.stderr
    assert ended.stdout == ""
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sum(sentence in line for line in ended.stderr.splitlines()) == 1


def test_the_queue_has_the_highest_rows_first_with_their_labels(tmp_path: Path, classifier: Path, rows: str) -> None:
    found = run("self", tmp_path / "run", classifier, rows)
    table, queue = found.table("self"), found.table("queue")
    assert queue["score"].to_list() == sorted(table["score"].to_list(), reverse=True)
    labels = [json.loads(line)["label"] for line in Path(rows).read_text().splitlines()]
    assert queue["label"].to_list() == [labels[at] for at in queue["example"].to_list()]
