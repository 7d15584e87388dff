"""Does a probe read a property or memorise? Control labels that can only be memorised (Hewitt & Liang 2019).

Every input type (a word, a question template) gets one random label, which all its rows carry:

    selectivity = accuracy on the task - accuracy on the control

with the same rows, split and method. A high accuracy with a low selectivity says that the probe is able to store a label for each type.
Both accuracies are on held-out rows of types that training rows have as well: where a type is held out as a whole, its control
label is a coin toss that nothing could predict, the control scores 1/2 and the selectivity says nothing. So the rows of each type are
spread over the folds, for the task and the control alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from modelscope_app.api import BadInput
from modelscope_probes.directions.linear_probe import LinearProbe, checked_labels, checked_rows, scores

Fit = Callable[[torch.Tensor, torch.Tensor], LinearProbe]


class Selectivity(NamedTuple):
    """Two accuracies and their difference."""

    task: torch.Tensor
    """(...) held-out accuracy on the labels."""
    control: torch.Tensor
    """(...) held-out accuracy on the control labels."""
    selectivity: torch.Tensor
    """(...) task - control."""
    control_labels: torch.Tensor
    """(n,) bool."""


def control_labels(groups: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(n,) bool: a random label for each input type, `groups` (n,) holding the number of each row's type.

    The types come in random order, and each gets the label that fewer rows have so far, so that the classes differ by no more rows
    than the largest type has. BadInput for a single type.
    """
    _, type_of, sizes = torch.unique(groups.cpu(), return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise BadInput("control labels need rows of two input types or more; these all have the same type")
    label, rows = torch.zeros(len(sizes), dtype=torch.bool), [0, 0]
    coins = torch.randint(2, (len(sizes),), generator=generator)
    for number in torch.randperm(len(sizes), generator=generator).tolist():
        given = int(rows[1] < rows[0]) if rows[0] != rows[1] else int(coins[number])
        label[number] = bool(given)
        rows[given] += int(sizes[number])
    return label[type_of].to(groups.device)


def spread_folds(groups: torch.Tensor, folds: int, generator: torch.Generator) -> torch.Tensor:
    """(n,) int64: a fold number for each row; the rows of each type are dealt round, in random order, to folds 0 ... `folds` - 1."""
    shuffled = torch.randperm(len(groups), generator=generator)
    by_type = shuffled[groups.cpu()[shuffled].argsort(stable=True)]  # rows of one type side by side
    fold = torch.empty(len(groups), dtype=torch.int64)
    fold[by_type] = torch.arange(len(groups)) % folds
    return fold.to(groups.device)


def selectivity(
    x: torch.Tensor, y: torch.Tensor, groups: torch.Tensor, fit: Fit, generator: torch.Generator, *, folds: int = 5
) -> Selectivity:
    """Of `fit` (x, y) -> probe on rows x (..., n, d) with labels y (n,) bool and types `groups` (n,).

    BadInput if no type has two rows, or if the rows outside a fold have one label or control label only.
    """
    x = checked_rows(x)
    y = checked_labels(y, x.shape[-2])
    _, type_of, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    if int(sizes.max()) < 2:
        raise BadInput("selectivity needs input types with two rows or more; a type seen once cannot be memorised")
    control = control_labels(groups, generator)
    fold = spread_folds(groups, folds, generator)
    for number in range(folds):
        for name, labels in (("label", y), ("control label", control)):
            outside = labels[fold != number]
            if bool(outside.all()) or not bool(outside.any()):
                raise BadInput(
                    f"selectivity needs both classes outside each of {folds} folds; outside fold {number} there is one {name} only"
                )
    right = {"task": [x.new_zeros(*x.shape[:-2], 0)], "control": [x.new_zeros(*x.shape[:-2], 0)]}
    for number in range(folds):
        seen = torch.zeros(len(sizes), dtype=torch.bool, device=x.device)
        seen[type_of[fold != number]] = True
        held_out = (fold == number) & seen[type_of]
        for name, labels in (("task", y), ("control", control)):
            probe = fit(x[..., fold != number, :], labels[fold != number])
            right[name].append(_rightness(scores(probe, x[..., held_out, :]), labels[held_out]))
    task, of_control = (torch.cat(parts, -1).mean(-1) for parts in right.values())
    return Selectivity(task, of_control, task - of_control, control)


def accuracy(score: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(...): share of scores (..., n) on the side of 0 that labels (n,) bool say; a score of exactly 0 is half right."""
    return _rightness(score, labels).mean(-1)


def _rightness(score: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (1 + torch.sign(score.double()) * torch.where(labels, 1.0, -1.0).to(score.device)) / 2
