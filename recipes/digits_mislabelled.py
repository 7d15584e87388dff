"""Trains the sample checkpoint `digits-mislabelled`, and writes its data and model card.

    python -m venv /tmp/recipe && /tmp/recipe/bin/pip install torch==2.13.0 scikit-learn safetensors numpy
    /tmp/recipe/bin/python recipes/digits_mislabelled.py

A tanh network like `digits-mlp`, on a part of its rows, of which a tenth were given a wrong label on purpose. Which ones is kept
beside it, so that whatever claims to find mislabelled rows can be checked.

Training minimises mean cross-entropy + WEIGHT_DECAY / 2 * |parameters|^2 over all rows at once, far enough that the gradient of
that objective is small: formulas that assume a minimum may be tried here. On one CPU thread, from fixed seeds: the same machine
writes the same bytes again. Every number on a card is measured here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from digits_mlp import DATA_NOTE, LAYER_SIZES, Weights, digits, initial_weights, logits, table, write_checkpoint

CLASSES = LAYER_SIZES[-1]
TRAIN_ROWS_PER_CLASS, TEST_ROWS_PER_CLASS = 100, 20
FLIPPED_FRACTION = 0.1
SUBSET_SEED, FLIPPING_SEED = 0, 3
TRAINING_STEPS = 2000
LEARNING_RATE, WEIGHT_DECAY = 0.01, 2e-3


class Rows(NamedTuple):
    """Labelled features, and what their labels should have been."""

    features: torch.Tensor
    """(row, 64) float32: the 8x8 picture row by row, each pixel a sixteenth between 0 and 1."""
    labels: torch.Tensor
    """(row,) int64: the digit as the network is taught it."""
    true_labels: torch.Tensor
    """(row,) int64: the digit."""

    @property
    def flipped(self) -> torch.Tensor:
        """(row,) bool: whether the label is wrong on purpose."""
        return self.labels != self.true_labels


def honest_rows() -> tuple[Rows, Rows]:
    """Training and test rows, as many of each class, from those of `digits-mlp`; in the data set's order."""
    parts = []
    for part, per_class in zip(digits(), (TRAIN_ROWS_PER_CLASS, TEST_ROWS_PER_CLASS), strict=True):
        generator = torch.Generator().manual_seed(SUBSET_SEED)
        is_kept = torch.zeros(len(part.labels), dtype=torch.bool)
        for label in range(CLASSES):
            of_class = (part.labels == label).nonzero().flatten()
            is_kept[of_class[torch.randperm(len(of_class), generator=generator)[:per_class]]] = True
        parts.append(Rows(part.features[is_kept], part.labels[is_kept], part.labels[is_kept]))
    return parts[0], parts[1]


def mislabelled(rows: Rows) -> Rows:
    """`rows` with FLIPPED_FRACTION of the labels changed, each to one of the other classes; all drawn uniformly."""
    generator = torch.Generator().manual_seed(FLIPPING_SEED)
    chosen = torch.randperm(len(rows.labels), generator=generator)[: round(FLIPPED_FRACTION * len(rows.labels))]
    labels = rows.labels.clone()
    labels[chosen] = (labels[chosen] + 1 + torch.randint(CLASSES - 1, (len(chosen),), generator=generator)) % CLASSES
    return rows._replace(labels=labels)


def objective(weights: Weights, rows: Rows) -> torch.Tensor:
    """What training minimises."""
    squares = sum(tensor.square().sum() for tensor in weights.values())
    return torch.nn.functional.cross_entropy(logits(weights, rows.features), rows.labels) + WEIGHT_DECAY / 2 * squares


def trained_weights(rows: Rows) -> Weights:
    """The network after TRAINING_STEPS of Adam on all rows at once, its learning rate falling linearly to 0."""
    weights = {name: tensor.requires_grad_() for name, tensor in initial_weights().items()}
    optimiser = torch.optim.Adam(weights.values(), lr=LEARNING_RATE)
    for step in range(TRAINING_STEPS):
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / TRAINING_STEPS)
        optimiser.zero_grad()
        objective(weights, rows).backward()
        optimiser.step()
    return {name: tensor.detach() for name, tensor in weights.items()}


def gradient_norm(weights: Weights, rows: Rows) -> float:
    """Length of the gradient of the objective."""
    leaves = {name: tensor.detach().double().requires_grad_() for name, tensor in weights.items()}
    gradients = torch.autograd.grad(objective(leaves, rows._replace(features=rows.features.double())), list(leaves.values()))
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


def found_by_loss(weights: Weights, rows: Rows) -> float:
    """Share of the flipped rows among as many rows of the largest loss: what a ranking has to beat."""
    losses = torch.nn.functional.cross_entropy(logits(weights, rows.features), rows.labels, reduction="none")
    count = int(rows.flipped.sum())
    return float(rows.flipped[losses.topk(count).indices].double().mean())


def write_rows(path: Path, rows: Rows, tell_flipped: bool) -> None:
    """One JSON object a line. Sixteenths are exact in decimal."""
    lines = []
    for features, label, true_label in zip(rows.features.tolist(), rows.labels.tolist(), rows.true_labels.tolist(), strict=True):
        row = {"features": [int(value) if value.is_integer() else value for value in features], "label": label}
        truth = {"flipped": label != true_label, "true_label": true_label} if tell_flipped else {}
        lines.append(json.dumps(row | truth, separators=(",", ":")))
    path.write_text("\n".join(lines) + "\n")


def card(train: Rows, test: Rows, weights: Weights) -> str:
    """README.md of `digits-mislabelled`."""
    said = logits(weights, train.features).argmax(1)
    said_of_test = logits(weights, test.features).argmax(1)

    def share(hits: torch.Tensor) -> str:
        return f"{hits.double().mean():.4f}"

    facts = [
        ("train rows", str(len(train.labels))),
        ("flipped rows", str(int(train.flipped.sum()))),
        ("test rows", str(len(test.labels))),
        ("test accuracy", share(said_of_test == test.labels)),
        ("train accuracy on rows that were not flipped", share((said == train.labels)[~train.flipped])),
        ("flipped rows read as their flipped label", share((said == train.labels)[train.flipped])),
        ("flipped rows read as their true label", share((said == train.true_labels)[train.flipped])),
        ("flipped rows among as many rows of the largest loss", f"{found_by_loss(weights, train):.4f}"),
        ("gradient norm of the objective", f"{gradient_norm(weights, train):.4f}"),
    ]
    return f"""# digits-mislabelled

A tanh network ({" - ".join(map(str, LAYER_SIZES))}) that reads handwritten digits, trained on rows of which a tenth carry a wrong label.
Made by `recipes/digits_mislabelled.py`, which also measured:

{table(facts)}

- `model.safetensors`, `config.json`: the network. `features` are 64 pixels, row by row; `label` is the digit.
- `train.jsonl`: its rows. `label` is what it was taught, `true_label` the digit, and `flipped` says whether the two differ.
- `test.jsonl`: rows that it has not seen, all labelled truly.

A list that claims to show mislabelled rows should beat the one by loss, which needs no more than a forward pass.

Training: {TRAINING_STEPS} steps of Adam on mean cross-entropy + {WEIGHT_DECAY} / 2 * |parameters|^2 over all rows at once, learning
rate falling linearly from {LEARNING_RATE} to 0; CPU, one thread, fixed seeds. Activation, weight decay, learning rate and number of steps
are one of about thirty combinations that were tried with these seeds, and were chosen for test accuracy, a small gradient at the end
and an end that does not hang on rounding, with some but not all wrong labels learned; so the test accuracy is a little flattered.

## Data
{DATA_NOTE}
{TRAIN_ROWS_PER_CLASS} training and {TEST_ROWS_PER_CLASS} test rows of each class were drawn from those of `digits-mlp`.
Then {FLIPPED_FRACTION:.0%} of the training rows, drawn uniformly, were given one of the other nine labels, drawn uniformly.

## Limits
A sample to try the tool on. Labels that are wrong at random are easier to find than the mistakes of people, who confuse digits that
look alike. Test rows come from the same writers as training rows, and are few.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the sample checkpoint digits-mislabelled.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "sample_checkpoints")
    folder = parser.parse_args().out / "digits-mislabelled"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    honest, test = honest_rows()
    train = mislabelled(honest)
    weights = trained_weights(train)
    write_checkpoint(folder, weights)
    write_rows(folder / "train.jsonl", train, tell_flipped=True)
    write_rows(folder / "test.jsonl", test, tell_flipped=False)
    text = card(train, test, weights)
    (folder / "README.md").write_text(text)
    print("\n".join(line for line in text.splitlines() if line.startswith("| ")))


if __name__ == "__main__":
    main()
