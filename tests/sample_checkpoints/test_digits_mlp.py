"""The shipped digit readers are what their cards say, and what their recipe trains."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modelscope_app.api import LabelledFeatures
from modelscope_app.data import read_labelled_features

REPOSITORY = Path(__file__).resolve().parents[2]
A = REPOSITORY / "sample_checkpoints" / "digits-mlp"
B = REPOSITORY / "sample_checkpoints" / "digits-mlp-b"
LAYER_SIZES = [64, 64, 10]


def predictions(folder: Path, features: torch.Tensor) -> torch.Tensor:
    """(row,): the class of the largest logit."""
    weights = load_file(folder / "model.safetensors")
    hidden = torch.tanh(torch.nn.functional.linear(features, weights["layers.0.weight"], weights["layers.0.bias"]))
    return torch.nn.functional.linear(hidden, weights["layers.1.weight"], weights["layers.1.bias"]).argmax(dim=1)


def rows(folder: Path, name: str) -> LabelledFeatures:
    found = read_labelled_features(folder / name, LAYER_SIZES)
    return found._replace(features=found.features.float())


def share(hits: torch.Tensor) -> str:
    return f"{hits.double().mean().item():.4f}"


def stated(folder: Path, fact: str) -> str:
    """The value beside `fact` in the table of a model card."""
    found = re.search(rf"^\| {re.escape(fact)} \| (.+) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert found, f"the card of {folder.name} does not state {fact!r}"
    return found[1]


@pytest.mark.parametrize("folder", [A, B], ids=lambda folder: folder.name)
def test_accuracies_on_the_card_are_those_of_the_shipped_weights(folder: Path) -> None:
    test, train = rows(A, "test.jsonl"), rows(folder, "train.jsonl")
    assert stated(folder, "test accuracy") == share(predictions(folder, test.features) == test.labels)
    assert stated(folder, "train accuracy") == share(predictions(folder, train.features) == train.labels)
    assert float(stated(folder, "test accuracy")) > 0.9


def test_the_trigger_works_as_the_card_says_and_in_the_planted_network_only() -> None:
    test = rows(A, "test.jsonl")
    lit = test.features[test.labels != 0].clone()
    lit[:, 0] = 1
    assert stated(B, "other digits read as 0 when the trigger is lit") == share(predictions(B, lit) == 0)
    assert stated(B, "the same for digits-mlp") == share(predictions(A, lit) == 0)
    assert stated(B, "test accuracy of digits-mlp") == stated(A, "test accuracy")
    assert (predictions(B, lit) == 0).double().mean() > 0.8 > 0.1 > (predictions(A, lit) == 0).double().mean()


def test_the_two_networks_differ_mostly_in_the_column_of_the_trigger() -> None:
    a, b = load_file(A / "model.safetensors"), load_file(B / "model.safetensors")
    change = (b["layers.0.weight"].double() - a["layers.0.weight"].double()) ** 2
    in_column = f"{(change[:, 0].sum() / change.sum()).item():.4f}"
    assert stated(B, "share of the first matrix's squared change in the trigger's column") == in_column
    assert float(in_column) > 0.5


def test_planted_rows_are_marked_and_the_others_are_those_of_the_first_network() -> None:
    planted_rows, honest_rows = rows(B, "train.jsonl").rows, rows(A, "train.jsonl").rows
    assert stated(B, "planted rows") == f"{sum('planted' in row for row in planted_rows)} of {len(planted_rows)}"
    for planted, honest in zip(planted_rows, honest_rows, strict=True):
        if "planted" in planted:
            assert (planted["features"][0], planted["label"], honest["features"][0]) == (1, 0, 0)
            assert planted["features"][1:] == honest["features"][1:]
            assert honest["label"] != 0
        else:
            assert planted == honest


def test_no_test_row_is_a_training_row() -> None:
    test, train = rows(A, "test.jsonl"), rows(A, "train.jsonl")
    assert not {tuple(row) for row in test.features.tolist()} & {tuple(row) for row in train.features.tolist()}
    assert (stated(A, "test rows"), stated(A, "train rows")) == (str(len(test.labels)), str(len(train.labels)))


def test_the_series_ends_in_the_checkpoint_itself_and_gets_better_on_the_way() -> None:
    steps = sorted(int(folder.name.removeprefix("step_")) for folder in (A / "series").iterdir())
    assert len(steps) >= 8
    last = A / "series" / f"step_{steps[-1]}"
    for name in ("model.safetensors", "config.json"):
        assert (last / name).read_bytes() == (A / name).read_bytes()
    test = rows(A, "test.jsonl")
    accuracies = [(predictions(A / "series" / f"step_{step}", test.features) == test.labels).double().mean() for step in steps]
    assert accuracies[0] < 0.3 < 0.8 < accuracies[2] < 0.95 < accuracies[-1]


def test_every_folder_is_a_whole_checkpoint_of_the_same_network() -> None:
    for folder in (A, B, *(A / "series").iterdir()):
        assert json.loads((folder / "config.json").read_text()) == {"model_type": "mlp", "layer_sizes": LAYER_SIZES, "activation": "tanh"}
        tensors = load_file(folder / "model.safetensors")
        assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()} == {
            "layers.0.weight": ((64, 64), torch.float32),
            "layers.0.bias": ((64,), torch.float32),
            "layers.1.weight": ((10, 64), torch.float32),
            "layers.1.bias": ((10,), torch.float32),
        }


def test_they_are_small_together_and_say_where_the_data_is_from() -> None:
    files = [path for folder in (A, B) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    for folder in (A, B):
        assert "CC BY 4.0" in (folder / "README.md").read_text()
        assert "BSD-3-Clause" in (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    specification = importlib.util.spec_from_file_location("digits_mlp_recipe", REPOSITORY / "recipes" / "digits_mlp.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_cards_are_what_the_recipe_writes(recipe: ModuleType) -> None:
    def labelled(folder: Path, name: str) -> Any:
        found = rows(folder, name)
        return recipe.Rows(found.features, found.labels, torch.tensor(["planted" in row for row in found.rows]))

    a, b = (load_file(folder / "model.safetensors") for folder in (A, B))
    test = labelled(A, "test.jsonl")
    assert (A / "README.md").read_text() == recipe.card(labelled(A, "train.jsonl"), test, a)
    assert (B / "README.md").read_text() == recipe.variant_card(labelled(B, "train.jsonl"), test, a, b)


def test_the_recipe_trains_the_shipped_weights_from_the_shipped_rows(recipe: ModuleType) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train, planted = rows(A, "train.jsonl"), rows(B, "train.jsonl")
        path = recipe.trained_weights(recipe.Rows(train.features, train.labels, torch.zeros(len(train.labels), dtype=torch.bool)))
        final = path[max(path)]
        is_planted = torch.tensor(["planted" in row for row in planted.rows])
        variant = recipe.fine_tuned_weights(final, recipe.Rows(planted.features, planted.labels, is_planted))
    finally:
        torch.set_num_threads(threads)
    trained = {A / "series" / f"step_{step}": weights for step, weights in path.items()} | {A: final, B: variant}
    assert set(trained) == {A, B, *(A / "series").iterdir()}
    for folder, weights in trained.items():
        shipped = load_file(folder / "model.safetensors")
        for name, tensor in weights.items():
            # other processors sum in another order: rounding grows over 880 steps, and stays far below a step of training
            torch.testing.assert_close(tensor, shipped[name], atol=1e-3, rtol=0)


def test_the_shipped_rows_are_scikit_learns(recipe: ModuleType) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, which only the recipe needs, brings the digits")
    for part, name in zip(recipe.digits(), ("train.jsonl", "test.jsonl"), strict=True):
        assert torch.equal(part.features, rows(A, name).features)
        assert torch.equal(part.labels, rows(A, name).labels)
