"""`influence.scores --curvature ggn`: against scores with the dense matrix, with top-k, modules and tokens as for any other curvature."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from modelscope_influence.analyses import scores
from modelscope_influence.params import ScoresParams
from plugins.influence.dense_reference import relative_error
from plugins.influence.test_bad_input import labelled, mlp
from plugins.influence.test_gauss_newton import (
    FRACTION,
    QUERIES,
    dense_directions,
    dense_gauss_newton,
    features_of,
    flat_gradients,
    found_by_plugin,
)
from plugins.probes.score.in_process import WORDS, run_in_process, saved_llama, written_rows
from pydantic import ValidationError
from torch import nn

from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.models import build_model


def test_scores_are_those_with_the_dense_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    checkpoint = mlp(tmp_path / "mlp", activation="tanh", dtype=torch.float64)
    rows = written_rows(tmp_path / "rows.jsonl", labelled())
    given = {"train": rows, "modules": "all", "curvature": "ggn", "fisher": "empirical", "damping": FRACTION}
    asked = [labelled()[at] for at in QUERIES]
    ran = run_in_process(
        scores.run, ScoresParams(queries=written_rows(tmp_path / "q.jsonl", asked), **given), tmp_path / "run", [checkpoint]
    )
    found = found_by_plugin(tmp_path / "other", checkpoint, rows, "all")
    features, module = features_of(rows), build_model(open_checkpoint(checkpoint), "cpu", "float64").module
    dense = dense_gauss_newton(module, found.weights, lambda module, row: module(features[row : row + 1]), range(len(features)))
    labels = torch.tensor([row["label"] for row in labelled()])
    module.requires_grad_(True)
    losses = nn.functional.cross_entropy(module(features), labels, reduction="none")
    expected = dense_directions(found, dense) @ flat_gradients(module, found.weights, losses).T
    table = ran.table("pairwise").sort("query", "example")
    assert relative_error(table["score"].to_torch().reshape(len(QUERIES), -1), expected.detach()) < 1e-5
    assert ran.facts["curvature"] == "ggn"


def test_ends_modules_and_tokens_sum_to_the_same_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second pass asks for the same directions, and solves for them once."""
    monkeypatch.setenv("MSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    checkpoint = saved_llama(tmp_path / "llama", layers=2)
    words = [word for word in WORDS if word.isalpha()]
    rows = written_rows(tmp_path / "train.jsonl", [{"text": " ".join(words[at : at + 3 + at % 3])} for at in range(8)])
    queries = written_rows(tmp_path / "q.jsonl", [{"text": "are you doing harm"}, {"text": "year code please"}])
    given = {"train": rows, "queries": queries, "curvature": "ggn", "damping": 1.0}
    whole = run_in_process(scores.run, ScoresParams(**given), tmp_path / "whole", [checkpoint]).table("pairwise")
    ran = run_in_process(scores.run, ScoresParams(**given, top_k=2, per_module=True, per_token=True), tmp_path / "few", [checkpoint])
    found = ran.table("pairwise").select("query", "example", "score")
    both = found.join(whole, on=["query", "example"])
    assert both.height == 8 and relative_error(both["score"].to_torch(), both["score_right"].to_torch()) < 1e-4
    for name in ("modules", "tokens"):
        summed = ran.table(name).group_by("query", "example").agg(pl.col("score").sum()).join(found, on=["query", "example"])
        assert relative_error(summed["score"].to_torch(), summed["score_right"].to_torch()) < 1e-4, name


def test_a_rank_is_of_blocks() -> None:
    with pytest.raises(ValidationError, match="--rank is of directions that are divided by blocks"):
        ScoresParams(train="t", queries="q", curvature="ggn", rank=4)
