"""`influence.scores`, `.self` and `.factors` against what kronfluence answered (`tests/oracles/ask_kronfluence.py`), from the files on.

Relative norms, never correlations: the common mistakes keep those above 0.94.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from modelscope_influence.analyses import factors, scores, self_influence
from modelscope_influence.params import FactorsParams, ScoresParams, SelfParams
from modelscope_influence.scanning import kept_places
from oracles import toy_sequence_model
from plugins.probes.score.in_process import Ran, run_in_process, written_rows
from safetensors import safe_open
from safetensors.torch import save_file

pytest_plugins = ["modelscope_app.testing"]

WITHIN = {"mlp": 1e-8, "tiny_llama": 1e-5}
"""Relative norms. A Llama of transformers computes its norms in float32 whatever it is made of."""
DAMPINGS = {"heuristic": 0.1}
each_case = pytest.mark.parametrize("case", WITHIN)


class Case:
    """An oracle's model and data as files."""

    def __init__(self, name: str, folder: Path) -> None:
        with safe_open(Path(toy_sequence_model.__file__).with_name(f"kronfluence_{name}.safetensors"), "pt") as file:
            about = json.loads(file.metadata()["about"])
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.layers: list[str] = about["layers"]
        self.checkpoint = folder / "model"
        self.checkpoint.mkdir(parents=True)
        weights = {key.removeprefix("model/"): value.double() for key, value in self.tensors.items() if key.startswith("model/")}
        save_file(weights, self.checkpoint / "model.safetensors", {"format": "pt"})
        (self.checkpoint / "config.json").write_text(json.dumps(about["config"]))
        self.train, self.queries = (written_rows(folder / f"{part}.jsonl", self._rows(part)) for part in ("train", "query"))

    def _rows(self, part: str) -> list[dict[str, Any]]:
        if f"{part}/ids" in self.tensors:
            return [{"input_ids": ids} for ids in self.tensors[f"{part}/ids"].tolist()]
        features, labels = self.tensors[f"{part}/features"].tolist(), self.tensors[f"{part}/labels"].tolist()
        return [{"features": row, "label": label} for row, label in zip(features, labels, strict=True)]


@pytest.fixture
def made(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setenv("MSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    return Case(case, tmp_path)


def error(found: torch.Tensor, answer: torch.Tensor) -> float:
    assert found.shape == answer.shape
    return float((found - answer).norm() / answer.norm())


def scored(made: Case, folder: Path, **params: Any) -> tuple[Ran, torch.Tensor]:
    """The run and its scores (query, example)."""
    given = {"train": made.train, "queries": made.queries, "fisher": "empirical", **params}
    ran = run_in_process(scores.run, ScoresParams(**given), folder, [made.checkpoint])
    table = ran.table("pairwise").sort("query", "example")
    shape = (table["query"].n_unique(), table["example"].n_unique())
    return ran, torch.tensor(table["score"].to_list(), dtype=torch.float64).reshape(shape)


@each_case
@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "diagonal", "identity"])
def test_pairwise_and_self_scores(made: Case, case: str, tmp_path: Path, curvature: str) -> None:
    _, found = scored(made, tmp_path / "scores", curvature=curvature)
    assert error(found, made.tensors[f"pairwise/{curvature}/heuristic"]) < WITHIN[case]
    params = SelfParams(train=made.train, fisher="empirical", curvature=curvature)
    ran = run_in_process(self_influence.run, params, tmp_path / "self", [made.checkpoint])
    own = torch.tensor(ran.table("self")["score"].to_list(), dtype=torch.float64)
    assert error(own, made.tensors[f"self/{curvature}/heuristic"]) < WITHIN[case]


@each_case
def test_scores_by_module_and_by_token(made: Case, case: str, tmp_path: Path) -> None:
    ran, found = scored(made, tmp_path / "scores", per_module=True, per_token=True)
    assert error(found, made.tensors["pairwise/ekfac/heuristic"]) < WITHIN[case]
    modules = ran.table("modules")
    for layer in made.layers:
        table = modules.filter(modules["module"] == layer).sort("query", "example")
        own = torch.tensor(table["score"].to_list(), dtype=torch.float64).reshape(found.shape)
        assert error(own, made.tensors[f"pairwise_by_layer/{layer}"]) < WITHIN[case]
    if "pairwise_by_token" in made.tensors:
        answer = made.tensors["pairwise_by_token"]
        tokens = torch.tensor(ran.table("tokens").sort("query", "example", "position")["score"].to_list(), dtype=torch.float64)
        assert error(tokens.reshape(answer.shape), answer) < WITHIN[case]


@each_case
def test_delta_is_the_score_over_all_rows(made: Case, case: str, tmp_path: Path) -> None:
    params = ScoresParams(train=made.train, queries=made.queries, fisher="empirical", top_k=3)
    ran = run_in_process(scores.run, params, tmp_path / "scores", [made.checkpoint])
    table = ran.table("pairwise")
    rows = len(made.tensors["train/labels"] if case == "mlp" else made.tensors["train/ids"])
    assert table.height == 6 * table["query"].n_unique()
    assert (table["delta_measure"] * rows - table["score"]).abs().max() < 1e-9 * table["score"].abs().max()


@pytest.mark.parametrize("case", ["mlp"])
def test_factors(made: Case, tmp_path: Path) -> None:
    ran = run_in_process(factors.run, FactorsParams(train=made.train, fisher="empirical"), tmp_path / "run", [made.checkpoint])
    kept = ran.run.tensors("curvature")
    for layer in made.layers:
        basis = torch.kron(kept[f"outputs {layer}"], kept[f"inputs {layer}"])
        whole = basis @ kept[f"eigenvalues {layer}"].flatten().diag() @ basis.T
        assert error(whole, made.tensors[f"curvature/{layer}"]) < 1e-8
    table = ran.table("factors")
    assert table["rows"].to_list() == [40, 40, 40] and table["positions"].to_list() == [40, 40, 40]
    means = [float(made.tensors[f"lambda/{layer}"].mean()) for layer in made.layers]
    assert torch.allclose(
        torch.tensor(table["lambda_mean"].to_list(), dtype=torch.float64), torch.tensor(means, dtype=torch.float64), rtol=1e-8
    )
    assert torch.allclose(
        torch.tensor(table["damping"].to_list(), dtype=torch.float64), 0.1 * torch.tensor(means, dtype=torch.float64), rtol=1e-8
    )


@each_case
def test_cosines_of_gradients_are_products_over_lengths(made: Case, case: str, tmp_path: Path) -> None:
    """Rows asked about themselves; with the identity, scores are plain products, which are held against kronfluence above."""
    params = ScoresParams(train=made.train, queries=made.train, fisher="empirical", curvature="identity")
    table = run_in_process(scores.run, params, tmp_path / "run", [made.checkpoint]).table("pairwise").sort("query", "example")
    lengths = made.tensors["self/identity/heuristic"].sqrt()
    found = torch.tensor(table["gradient_cosine"].to_list(), dtype=torch.float64).reshape(len(lengths), -1)
    products = torch.tensor(table["score"].to_list(), dtype=torch.float64).reshape(len(lengths), -1)
    assert error(found * lengths[:, None] * lengths, products) < WITHIN[case]
    assert float((found.diag() - 1).abs().max()) < WITHIN[case]


@pytest.mark.parametrize(("top_k", "kept"), [(None, [2, 0, 3, 4, 1]), (1, [2, 4]), (2, [2, 0, 3, 4]), (3, [2, 0, 3, 4]), (9, [2, 0, 3, 4])])
def test_the_highest_and_the_lowest_are_kept_once_and_what_is_unknown_stands_last(top_k: int | None, kept: list[int]) -> None:
    assert kept_places(torch.tensor([[3.0, torch.nan, 7.0, -1.0, -5.0]]), top_k)[0].tolist() == kept
