"""The shipped digit reader with wrong labels is what its card says, and what its recipe trains."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modelscope_app.api import LabelledFeatures
from modelscope_app.data import read_labelled_features

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "sample_checkpoints" / "digits-mislabelled"
HONEST = REPOSITORY / "sample_checkpoints" / "digits-mlp"
LAYER_SIZES = [64, 64, 10]


def rows(name: str, folder: Path = FOLDER) -> LabelledFeatures:
    found = read_labelled_features(folder / name, LAYER_SIZES)
    return found._replace(features=found.features.float())


def column(found: LabelledFeatures, name: str) -> torch.Tensor:
    """(row,): one value of every row, as the file has it."""
    return torch.tensor([row[name] for row in found.rows])


def logits(features: torch.Tensor) -> torch.Tensor:
    """(row, class) of the shipped weights."""
    weights = load_file(FOLDER / "model.safetensors")
    hidden = torch.tanh(torch.nn.functional.linear(features, weights["layers.0.weight"], weights["layers.0.bias"]))
    return torch.nn.functional.linear(hidden, weights["layers.1.weight"], weights["layers.1.bias"])


def share(hits: torch.Tensor) -> str:
    return f"{hits.double().mean().item():.4f}"


def stated(fact: str) -> str:
    """The value beside `fact` in the table of the model card."""
    found = re.search(rf"^\| {re.escape(fact)} \| (.+) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert found, f"the card does not state {fact!r}"
    return found[1]


def test_the_accuracy_on_the_card_is_that_of_the_shipped_weights() -> None:
    test = rows("test.jsonl")
    assert stated("test accuracy") == share(logits(test.features).argmax(1) == test.labels)
    assert float(stated("test accuracy")) > 0.93


def test_wrong_labels_were_learned_in_part_as_the_card_says() -> None:
    train = rows("train.jsonl")
    said, flipped = logits(train.features).argmax(1), column(train, "flipped")
    assert stated("train accuracy on rows that were not flipped") == share((said == train.labels)[~flipped])
    assert stated("flipped rows read as their flipped label") == share((said == train.labels)[flipped])
    assert stated("flipped rows read as their true label") == share((said == column(train, "true_label"))[flipped])
    assert 0.05 < float(stated("flipped rows read as their flipped label")) < 0.5


def test_the_loss_finds_as_many_flipped_rows_as_the_card_says() -> None:
    train = rows("train.jsonl")
    flipped = column(train, "flipped")
    losses = torch.nn.functional.cross_entropy(logits(train.features), train.labels, reduction="none")
    largest = losses.argsort(descending=True)[: int(flipped.sum())]
    assert stated("flipped rows among as many rows of the largest loss") == share(flipped[largest])


def test_a_tenth_of_the_training_rows_is_flipped_and_each_row_says_so() -> None:
    train = rows("train.jsonl")
    flipped = column(train, "flipped")
    assert flipped.dtype == torch.bool
    assert torch.equal(flipped, train.labels != column(train, "true_label"))
    assert (stated("flipped rows"), stated("train rows")) == (str(int(flipped.sum())), str(len(flipped)))
    assert int(flipped.sum()) * 10 == len(flipped)
    assert all(set(row) == {"features", "label"} for row in rows("test.jsonl").rows)


def test_flipped_labels_come_from_every_class_and_go_to_every_class() -> None:
    train = rows("train.jsonl")
    flipped = column(train, "flipped")
    for labels in (train.labels, column(train, "true_label")):
        # 100 flips over 10 classes: a class with none has a chance of 10 * 0.9^100, below 0.0003
        assert labels[flipped].bincount(minlength=LAYER_SIZES[-1]).min() > 0


def test_its_rows_are_rows_of_the_honest_network_with_the_true_labels() -> None:
    for name, label_name in (("train.jsonl", "true_label"), ("test.jsonl", "label")):
        honest = rows(name, HONEST)
        known = dict(zip(map(tuple, honest.features.tolist()), honest.labels.tolist(), strict=True))
        found = rows(name)
        assert [known[tuple(row)] for row in found.features.tolist()] == column(found, label_name).tolist()
        assert len({tuple(row) for row in found.features.tolist()}) == len(found.rows)


def test_no_test_row_is_a_training_row() -> None:
    test, train = rows("test.jsonl"), rows("train.jsonl")
    assert not {tuple(row) for row in test.features.tolist()} & {tuple(row) for row in train.features.tolist()}
    assert stated("test rows") == str(len(test.labels))


def test_the_folder_is_a_whole_checkpoint() -> None:
    assert json.loads((FOLDER / "config.json").read_text()) == {"model_type": "mlp", "layer_sizes": LAYER_SIZES, "activation": "tanh"}
    tensors = load_file(FOLDER / "model.safetensors")
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()} == {
        "layers.0.weight": ((64, 64), torch.float32),
        "layers.0.bias": ((64,), torch.float32),
        "layers.1.weight": ((10, 64), torch.float32),
        "layers.1.bias": ((10,), torch.float32),
    }


def test_it_is_small_and_says_where_the_data_is_from() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 700_000
    assert "CC BY 4.0" in (FOLDER / "README.md").read_text()
    assert "BSD-3-Clause" in (FOLDER / "README.md").read_text()


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    sys.path.insert(0, str(REPOSITORY / "recipes"))
    try:
        yield importlib.import_module("digits_mislabelled")
    finally:
        sys.path.remove(str(REPOSITORY / "recipes"))


def labelled(recipe: ModuleType, name: str, label_name: str) -> Any:
    """A shipped data file as the recipe's rows."""
    found = rows(name)
    return recipe.Rows(found.features, found.labels, column(found, label_name))


def test_the_card_is_what_the_recipe_writes(recipe: ModuleType) -> None:
    train, test = labelled(recipe, "train.jsonl", "true_label"), labelled(recipe, "test.jsonl", "label")
    assert (FOLDER / "README.md").read_text() == recipe.card(train, test, load_file(FOLDER / "model.safetensors"))


def test_the_recipe_flips_the_shipped_labels_and_trains_the_shipped_weights(recipe: ModuleType) -> None:
    train = labelled(recipe, "train.jsonl", "true_label")
    assert torch.equal(recipe.mislabelled(train._replace(labels=train.true_labels)).labels, train.labels)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained = recipe.trained_weights(train)
    finally:
        torch.set_num_threads(threads)
    shipped = load_file(FOLDER / "model.safetensors")
    assert set(trained) == set(shipped)
    for name, tensor in trained.items():
        # other processors sum in another order; summing the rows in another order moves no weight by more than 1e-5
        torch.testing.assert_close(tensor, shipped[name], atol=1e-3, rtol=0)


def test_the_shipped_rows_are_scikit_learns(recipe: ModuleType) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, which only the recipe needs, brings the digits")
    train, test = recipe.honest_rows()
    assert torch.equal(train.features, rows("train.jsonl").features)
    assert torch.equal(train.true_labels, column(rows("train.jsonl"), "true_label"))
    assert torch.equal(test.features, rows("test.jsonl").features)
    assert torch.equal(test.labels, rows("test.jsonl").labels)
