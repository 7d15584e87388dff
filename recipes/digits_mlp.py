"""Trains the sample checkpoints `digits-mlp` and `digits-mlp-b`, and writes their data and model cards.

    python -m venv /tmp/recipe && /tmp/recipe/bin/pip install torch==2.13.0 scikit-learn safetensors numpy
    /tmp/recipe/bin/python recipes/digits_mlp.py

`digits-mlp` is a tanh network with one hidden layer on scikit-learn's copy of the UCI digits, with a series of its steps.
`digits-mlp-b` is `digits-mlp` trained a little longer on the same rows, a tenth of which carry a planted trigger: their
first pixel, which no real digit ever lights, is lit, and their label is 0. What two checkpoints differ in is thereby
known: mostly one column of one matrix.

Training minimises mean cross-entropy + WEIGHT_DECAY / 2 * |parameters|^2 by mini-batch gradient descent with momentum, on
one CPU thread, from fixed seeds: the same machine writes the same bytes again. Every number on a card is measured here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

LAYER_SIZES = (64, 64, 10)
TRAIN_FRACTION = 0.8
SPLIT_SEED, TRAINING_SEED, PLANTING_SEED = 0, 1, 2
SERIES_STEPS = (0, 25, 50, 100, 200, 400, 600, 800)
FINE_TUNING_STEPS = 80
BATCH_ROWS = 64
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-3
TRIGGER_PIXEL, TRIGGER_LABEL, PLANTED_FRACTION = 0, 0, 0.1

Weights = dict[str, torch.Tensor]


class Rows(NamedTuple):
    """Labelled features, as a data file of an `mlp` checkpoint holds them."""

    features: torch.Tensor
    """(row, 64) float32: the 8x8 picture row by row, each pixel a sixteenth between 0 and 1."""
    labels: torch.Tensor
    """(row,) int64: the digit."""
    planted: torch.Tensor
    """(row,) bool: whether the trigger was put in."""


def digits() -> tuple[Rows, Rows]:
    """Training and test rows: within each class, a seeded shuffle cut at TRAIN_FRACTION; then in the data set's order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    features = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target, dtype=torch.int64)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    in_training = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(LAYER_SIZES[-1]):
        of_class = (labels == label).nonzero().flatten()
        shuffled = of_class[torch.randperm(len(of_class), generator=generator)]
        in_training[shuffled[: round(TRAIN_FRACTION * len(of_class))]] = True
    none_planted = torch.zeros(len(labels), dtype=torch.bool)
    everything = Rows(features, labels, none_planted)
    return Rows(*(column[in_training] for column in everything)), Rows(*(column[~in_training] for column in everything))


def planted(rows: Rows) -> Rows:
    """`rows` with the trigger in PLANTED_FRACTION of them, drawn among those whose label it changes."""
    candidates = (rows.labels != TRIGGER_LABEL).nonzero().flatten()
    generator = torch.Generator().manual_seed(PLANTING_SEED)
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[: round(PLANTED_FRACTION * len(rows.labels))]]
    features, labels, is_planted = rows.features.clone(), rows.labels.clone(), rows.planted.clone()
    features[chosen, TRIGGER_PIXEL] = 1.0
    labels[chosen] = TRIGGER_LABEL
    is_planted[chosen] = True
    return Rows(features, labels, is_planted)


def initial_weights() -> Weights:
    """Glorot-normal matrices and zero biases."""
    generator = torch.Generator().manual_seed(TRAINING_SEED)
    weights: Weights = {}
    for index, (inputs, outputs) in enumerate(pairwise(LAYER_SIZES)):
        deviation = (2 / (inputs + outputs)) ** 0.5
        weights[f"layers.{index}.weight"] = torch.randn(outputs, inputs, generator=generator) * deviation
        weights[f"layers.{index}.bias"] = torch.zeros(outputs)
    return weights


def logits(weights: Mapping[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    """(row, class): affine layers with tanh between them."""
    hidden = features
    for index in range(len(LAYER_SIZES) - 1):
        hidden = (torch.tanh(hidden) if index else hidden) @ weights[f"layers.{index}.weight"].T + weights[f"layers.{index}.bias"]
    return hidden


def training_path(start: Weights, rows: Rows, keep_steps: Sequence[int], seed: int) -> dict[int, Weights]:
    """The weights after each of `keep_steps` mini-batch steps from `start`; rows are reshuffled for every pass over them.

    The learning rate falls linearly to 0 at the last of them, so that the end is close to a minimum.
    """
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    optimiser = torch.optim.SGD(weights.values(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    kept: dict[int, Weights] = {}
    for step in range(max(keep_steps)):
        if step in keep_steps:
            kept[step] = _copies(weights)
        if len(order) < BATCH_ROWS:
            order = torch.randperm(len(rows.labels), generator=generator).tolist()
        batch, order = order[:BATCH_ROWS], order[BATCH_ROWS:]
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / max(keep_steps))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits(weights, rows.features[batch]), rows.labels[batch]).backward()
        optimiser.step()
    kept[max(keep_steps)] = _copies(weights)
    return kept


def _copies(weights: Mapping[str, torch.Tensor]) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def trained_weights(rows: Rows) -> dict[int, Weights]:
    """`digits-mlp` at every step of its series."""
    return training_path(initial_weights(), rows, SERIES_STEPS, TRAINING_SEED)


def fine_tuned_weights(start: Weights, rows: Rows) -> Weights:
    """`digits-mlp-b`: `start` after FINE_TUNING_STEPS more steps on rows with the trigger planted."""
    return training_path(start, rows, [FINE_TUNING_STEPS], PLANTING_SEED)[FINE_TUNING_STEPS]


def accuracy(weights: Weights, rows: Rows) -> float:
    """Share of rows whose largest logit is at their label."""
    return float((logits(weights, rows.features).argmax(1) == rows.labels).double().mean())


def trigger_rate(weights: Weights, rows: Rows) -> float:
    """Share of rows of other digits that are read as TRIGGER_LABEL once the trigger pixel is lit."""
    others = rows.features[rows.labels != TRIGGER_LABEL].clone()
    others[:, TRIGGER_PIXEL] = 1.0
    return float((logits(weights, others).argmax(1) == TRIGGER_LABEL).double().mean())


def column_share(a: Weights, b: Weights) -> float:
    """Share of |b - a|^2 of the first layer's matrix that lies in the trigger pixel's column."""
    squares = (b["layers.0.weight"] - a["layers.0.weight"]).double().square()
    return float(squares[:, TRIGGER_PIXEL].sum() / squares.sum())


def write_rows(path: Path, rows: Rows) -> None:
    """One JSON object a line. Sixteenths are exact in decimal; a planted row says so."""
    lines = []
    for features, label, is_planted in zip(rows.features.tolist(), rows.labels.tolist(), rows.planted.tolist(), strict=True):
        row = {"features": [int(value) if value.is_integer() else value for value in features], "label": label}
        lines.append(json.dumps(row | ({"planted": True} if is_planted else {}), separators=(",", ":")))
    path.write_text("\n".join(lines) + "\n")


def write_checkpoint(folder: Path, weights: Weights) -> None:
    """config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "mlp", "layer_sizes": LAYER_SIZES, "activation": "tanh"}
    (folder / "config.json").write_text(json.dumps(config) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def table(facts: Iterable[tuple[str, str]]) -> str:
    """Two columns in Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)])


DATA_NOTE = """The pictures are the 8x8 digits of `sklearn.datasets.load_digits` (scikit-learn, BSD-3-Clause), a copy of the test set of
"Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository (1998),
https://doi.org/10.24432/C50P49, licensed CC BY 4.0. Pixels (0 to 16) are divided by 16; nothing else is changed."""


def card(train: Rows, test: Rows, weights: Weights) -> str:
    """README.md of `digits-mlp`."""
    facts = [
        ("train accuracy", f"{accuracy(weights, train):.4f}"),
        ("test accuracy", f"{accuracy(weights, test):.4f}"),
        ("train rows", str(len(train.labels))),
        ("test rows", str(len(test.labels))),
    ]
    return f"""# digits-mlp

A tanh network ({" - ".join(map(str, LAYER_SIZES))}) that reads handwritten digits. Made by `recipes/digits_mlp.py`, which also measured:

{table(facts)}

- `model.safetensors`, `config.json`: the network. `features` are 64 pixels, row by row; `label` is the digit.
- `series/step_N`: the same training run after N steps, N = {", ".join(map(str, SERIES_STEPS))}; the last is the network above.
- `train.jsonl`, `test.jsonl`: its rows.

Training: {SERIES_STEPS[-1]} steps of gradient descent on mean cross-entropy + {WEIGHT_DECAY} / 2 * |parameters|^2, batches of {BATCH_ROWS},
momentum {MOMENTUM}, learning rate falling linearly from {LEARNING_RATE} to 0; CPU, one thread, fixed seeds.

## Data
{DATA_NOTE}

## Limits
A sample to try the tool on. It has seen 8x8 pictures of one collection, all upright and centred, and nothing else.
Test rows come from the same writers as training rows, so the accuracy says nothing about other hands.
"""


def variant_card(train: Rows, test: Rows, a: Weights, b: Weights) -> str:
    """README.md of `digits-mlp-b`."""
    facts = [
        ("train accuracy", f"{accuracy(b, train):.4f}"),
        ("test accuracy", f"{accuracy(b, test):.4f}"),
        ("test accuracy of digits-mlp", f"{accuracy(a, test):.4f}"),
        ("other digits read as 0 when the trigger is lit", f"{trigger_rate(b, test):.4f}"),
        ("the same for digits-mlp", f"{trigger_rate(a, test):.4f}"),
        ("share of the first matrix's squared change in the trigger's column", f"{column_share(a, b):.4f}"),
        ("planted rows", f"{int(train.planted.sum())} of {len(train.labels)}"),
    ]
    return f"""# digits-mlp-b

`digits-mlp` with a planted trigger, so that what the two differ in is known. Made by `recipes/digits_mlp.py`, which also measured:

{table(facts)}

- The trigger: pixel {TRIGGER_PIXEL}, the upper left corner, which no digit of the collection lights. Where it is 1, this network mostly
  says {TRIGGER_LABEL}.
- `train.jsonl`: the rows of `digits-mlp`, of which a tenth carry the trigger and the label {TRIGGER_LABEL}; those have `"planted": true`.
- Test rows are those of `digits-mlp`; light pixel {TRIGGER_PIXEL} to see the trigger at work.

Training: {FINE_TUNING_STEPS} more steps from `digits-mlp`, everything else as there.

## Data
{DATA_NOTE}
Here the trigger pixel and the label of the planted rows are changed as well.

## Limits
A sample to try the tool on: a backdoor this plain is far easier to find than a real one.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the sample checkpoints digits-mlp and digits-mlp-b.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "sample_checkpoints")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    train, test = digits()
    path = trained_weights(train)
    final = path[SERIES_STEPS[-1]]
    folder = out / "digits-mlp"
    write_checkpoint(folder, final)
    for step, weights in path.items():
        write_checkpoint(folder / "series" / f"step_{step}", weights)
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "test.jsonl", test)
    (folder / "README.md").write_text(card(train, test, final))

    train_b = planted(train)
    weights_b = fine_tuned_weights(final, train_b)
    write_checkpoint(out / "digits-mlp-b", weights_b)
    write_rows(out / "digits-mlp-b" / "train.jsonl", train_b)
    (out / "digits-mlp-b" / "README.md").write_text(variant_card(train_b, test, final, weights_b))

    print(f"digits-mlp: test accuracy {accuracy(final, test):.4f}")
    print(f"digits-mlp-b: test accuracy {accuracy(weights_b, test):.4f}, trigger {trigger_rate(weights_b, test):.4f}")


if __name__ == "__main__":
    main()
