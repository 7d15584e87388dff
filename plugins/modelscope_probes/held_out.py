"""Fitting a probe, and its scores on rows it has not seen.

Where the file holds rows out itself, the probe is fitted on the others. Else whole groups are dealt to folds; the probe of each fold is
fitted on the others, and the scores of all folds are pooled. The probe that is saved is then fitted on all rows.

Pooling has a price: a constant that differs between folds moves scores of one fold against another's. Every method's bias is fitted with
its direction, so that 0 means the same in each fold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from modelscope_probes.directions import METHODS
from modelscope_probes.directions.ccs import ccs, pair_scores
from modelscope_probes.directions.crc_tpc import crc_tpc, difference_scores
from modelscope_probes.directions.linear_probe import LinearProbe, oriented, scores
from modelscope_probes.directions.logistic import logistic
from modelscope_probes.evidence import folds_of_groups
from modelscope_probes.labelled_rows import Rows
from modelscope_probes.leace import leace
from modelscope_probes.pair_sides import Normalisation, side

UNSUPERVISED = ("ccs", "crc-tpc")


class Fitted(NamedTuple):
    """A method's probe and what it says of rows."""

    probe: Any
    """What the method returned, with `direction` (layer, d) and `bias` (layer,) of the finite layers."""
    train: torch.Tensor
    """(layer, fitting rows) scores on the rows the saved probe was fitted on."""
    held_out: torch.Tensor
    """(layer, judged rows) scores on rows not seen."""


class Split(NamedTuple):
    """Which rows are fitted on, and which are judged."""

    parts: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """Training and held-out row numbers of each fold."""
    fitting: torch.Tensor
    """Rows the saved probe is fitted on."""
    judged: torch.Tensor
    """Rows with a held-out score, in the order of `held_out`."""


def split_of(rows: Rows, folds: int) -> Split:
    """By the file's own `test`, or grouped folds."""
    every = torch.arange(len(rows.labels))
    if rows.test is not None:
        return Split(((every[~rows.test], every[rows.test]),), every[~rows.test], every[rows.test])
    fold = folds_of_groups(rows.groups, rows.labels, folds)
    parts = tuple((every[fold != number], every[fold == number]) for number in range(folds) if bool((fold == number).any()))
    return Split(parts, every, torch.cat([test for _, test in parts]))


def fitter(method: str, C: float) -> Callable[[torch.Tensor, torch.Tensor], LinearProbe]:
    """fit(x (..., n, d), y (n,)) of a supervised method."""
    return (lambda x, y: logistic(x, y, C)) if method == "logistic" else METHODS[method]


def fitted(
    x: torch.Tensor,
    labels: torch.Tensor,
    split: Split,
    fit: Callable[[torch.Tensor, torch.Tensor], LinearProbe],
    erase: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Fitted:
    """A supervised method on rows x (layer, n, d); with `erase`, on rows from which LEACE took the label, fitted on training rows."""
    held_out = []
    for train, test in split.parts:
        check()
        inside, outside = x[:, train], x[:, test]
        if erase:
            eraser = leace(inside, labels[train])
            inside, outside = eraser.erase(inside), eraser.erase(outside)
        held_out.append(scores(fit(inside, labels[train]), outside))
    check()
    whole = x[:, split.fitting]
    if erase:
        whole = leace(whole, labels[split.fitting]).erase(whole)
    probe = fit(whole, labels[split.fitting])
    return Fitted(probe, scores(probe, whole), torch.cat(held_out, -1))


def fitted_pairs(
    x_no: torch.Tensor,
    x_yes: torch.Tensor,
    truth: torch.Tensor,
    split: Split,
    method: str,
    normalisation: Normalisation,
    generator: Callable[[], torch.Generator],
    C: float = 1.0,
    check: Callable[[], None] = lambda: None,
) -> Fitted:
    """A method on pairs (layer, n, d): each side normalised with its training rows, `ccs` and `crc-tpc` without labels.

    Their sign, which is arbitrary, comes from the labels of the training rows. A supervised method is fitted on the differences.
    `generator` makes a new generator of one seed for each fold.
    """

    def fit(train: torch.Tensor, test: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor]:
        check()
        sides = [side(values[:, train], normalisation) for values in (x_no, x_yes)]
        (no, yes), (no_out, yes_out) = (
            [one.normalised(values[:, chosen]) for one, values in zip(sides, (x_no, x_yes), strict=True)] for chosen in (train, test)
        )
        if method == "ccs":
            probe: Any = ccs(no, yes, generator())
            probe = oriented(probe, pair_scores(probe, no, yes), truth[train])
            return probe, pair_scores(probe, no, yes) - 0.5, pair_scores(probe, no_out, yes_out) - 0.5  # above 0 says yes
        if method == "crc-tpc":
            probe = crc_tpc(no, yes)
            probe = oriented(probe, difference_scores(probe, no, yes), truth[train])
            return probe, difference_scores(probe, no, yes), difference_scores(probe, no_out, yes_out)
        probe = fitter(method, C)(yes - no, truth[train])
        return probe, scores(probe, yes - no), scores(probe, yes_out - no_out)

    held_out = torch.cat([fit(train, test)[2] for train, test in split.parts], -1)
    probe, train_scores, _ = fit(split.fitting, split.fitting[:1])
    return Fitted(probe, train_scores, held_out)
