"""Fitting a probe, and its scores on rows it has not seen.

Where the file holds rows out itself, the probe is fitted on the others. Else whole groups are dealt to folds; the probe of each fold is
fitted on the others, and the scores of all folds are pooled. The probe that is saved is then fitted on all rows.

Pooling has a price: a constant that differs between folds moves scores of one fold against another's. Every method's bias is fitted with
its direction, so that 0 means the same in each fold. A sign must mean the same in each fold as well: what is found without labels is
turned, fold by fold, by labels of the training rows.

Layers are taken one after the other. Memory: beside the rows as they are, one layer in float64 a few times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from modelscope_app.api import BadInput
from modelscope_probes.directions import METHODS
from modelscope_probes.directions.ccs import ccs, pair_scores
from modelscope_probes.directions.crc_tpc import crc_tpc, difference_scores
from modelscope_probes.directions.linear_probe import LinearProbe, oriented, scores
from modelscope_probes.directions.logistic import logistic
from modelscope_probes.evidence import folds_of_groups
from modelscope_probes.labelled_rows import Rows
from modelscope_probes.leace import leace
from modelscope_probes.pair_sides import Normalisation, side
from modelscope_probes.statistics.ranks import auroc

UNSUPERVISED = ("ccs", "crc-tpc")

Layers = Sequence[torch.Tensor] | torch.Tensor
"""Rows (n, d) of each layer."""
Features = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
"""features(layer, train, chosen): what a supervised method sees of the rows `chosen`, (chosen, d) float64; whatever is fitted for that is
fitted on the rows `train`."""
_Part = Callable[[int, torch.Tensor, torch.Tensor], tuple[Any, torch.Tensor, torch.Tensor]]
"""part(layer, train, test): a probe fitted on the rows `train`, and its scores of these and of the rows `test`."""


class Fitted(NamedTuple):
    """A method's probe and what it says of rows."""

    probe: Any
    """What the method returned, with `direction` (layer, d) and `bias` (layer,)."""
    train: torch.Tensor
    """(layer, fitting rows) scores on the rows the saved probe was fitted on."""
    held_out: torch.Tensor
    """(layer, judged rows) scores on rows not seen."""
    turned: torch.Tensor | None = None
    """(layer, judged rows): `held_out`, each fold turned by the `sign_labels` of its training rows, where these were given."""


class Split(NamedTuple):
    """Which rows are fitted on, and which are judged."""

    parts: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """Training and held-out row numbers of each fold."""
    fitting: torch.Tensor
    """Rows the saved probe is fitted on."""
    judged: torch.Tensor
    """Rows with a held-out score, in the order of `held_out`."""


def split_of(rows: Rows, folds: int) -> Split:
    """By the file's own `test`, or grouped folds. BadInput where the groups leave the probe of a fold without a class."""
    every = torch.arange(len(rows.labels))
    if rows.test is not None:
        return Split(((every[~rows.test], every[rows.test]),), every[~rows.test], every[rows.test])
    fold = folds_of_groups(rows.groups, rows.labels, folds)
    parts = tuple((every[fold != number], every[fold == number]) for number in range(folds) if bool((fold == number).any()))
    for value in (True, False):
        if any(not bool((rows.labels[train] == value).any()) for train, _ in parts):
            groups, holding = len(set(rows.groups.tolist())), len(set(rows.groups[rows.labels == value].tolist()))
            raise BadInput(
                f"all rows labelled {int(value)} are in {holding} of {groups} groups, and {folds} grouped folds leave a probe without "
                "them: each class needs more groups, or hold rows out with `test`"
            )
    return Split(parts, every, torch.cat([test for _, test in parts]))


def fitter(method: str, C: float) -> Callable[[torch.Tensor, torch.Tensor], LinearProbe]:
    """fit(x (..., n, d), y (n,)) of a supervised method."""
    return (lambda x, y: logistic(x, y, C)) if method == "logistic" else METHODS[method]


def features_of(rows: Rows, normalisation: Normalisation) -> Features:
    """Rows as they are; of pairs the difference of their sides, yes less no, each normalised with its training rows."""
    if rows.x is not None:
        x = rows.x
        return lambda layer, train, chosen: x[layer][chosen].double()
    assert rows.x_no is not None and rows.x_yes is not None
    return _differences(rows.x_no, rows.x_yes, normalisation)


def _differences(x_no: Layers, x_yes: Layers, normalisation: Normalisation) -> Features:
    def features(layer: int, train: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        no, yes = (side(values[layer][train], normalisation).normalised(values[layer][chosen]) for values in (x_no, x_yes))
        return yes - no

    return features


def pair_statistics(x_no: Layers, x_yes: Layers, fitting: torch.Tensor, normalisation: Normalisation) -> dict[str, torch.Tensor]:
    """Mean and scale (layer, d) of both sides' rows `fitting`, by which raw pairs are normalised before a probe scores them."""
    found: dict[str, torch.Tensor] = {}
    for name, values in (("yes", x_yes), ("no", x_no)):
        sides = [side(values[layer][fitting], normalisation) for layer in range(len(values))]
        found[f"mean_{name}"] = torch.stack([one.mean for one in sides])
        found[f"scale_{name}"] = torch.stack([one.scale for one in sides])
    return found


def fitted(
    features: Features,
    layer_count: int,
    labels: torch.Tensor,
    split: Split,
    fit: Callable[[torch.Tensor, torch.Tensor], LinearProbe],
    erase: bool = False,
    check: Callable[[], None] = lambda: None,
    sign_labels: torch.Tensor | None = None,
) -> Fitted:
    """A supervised method; with `erase`, on features from which LEACE took the label, fitted on training rows.

    `check` is called before each fit.
    """

    def part(layer: int, train: torch.Tensor, test: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor]:
        inside, outside = features(layer, train, train), features(layer, train, test)
        if erase:
            eraser = leace(inside, labels[train])
            inside, outside = eraser.erase(inside), eraser.erase(outside)
        probe = fit(inside, labels[train])
        return probe, scores(probe, inside), scores(probe, outside)

    return _by_layer(part, layer_count, split, check, sign_labels)


def fitted_pairs(
    x_no: Layers,
    x_yes: Layers,
    truth: torch.Tensor,
    split: Split,
    method: str,
    normalisation: Normalisation,
    generator: Callable[[], torch.Generator],
    C: float = 1.0,
    check: Callable[[], None] = lambda: None,
    sign_labels: torch.Tensor | None = None,
) -> Fitted:
    """A method on pairs, (n, d) by layer: each side normalised with its training rows, `ccs` and `crc-tpc` without labels.

    Their sign, which is arbitrary, comes from the labels of the training rows; in `turned`, from their `sign_labels`. A supervised method
    is fitted on the differences. `generator` makes a new generator of one seed for each fit.
    """
    if method not in UNSUPERVISED:
        return fitted(
            *(_differences(x_no, x_yes, normalisation), len(x_no), truth, split, fitter(method, C)), check=check, sign_labels=sign_labels
        )

    def part(layer: int, train: torch.Tensor, test: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor]:
        sides = [(side(values[layer][train], normalisation), values[layer]) for values in (x_no, x_yes)]
        (no, yes), (no_out, yes_out) = ([one.normalised(values[chosen]) for one, values in sides] for chosen in (train, test))
        if method == "ccs":
            probe: Any = ccs(no, yes, generator())
            probe = oriented(probe, pair_scores(probe, no, yes), truth[train])
            return probe, pair_scores(probe, no, yes) - 0.5, pair_scores(probe, no_out, yes_out) - 0.5  # above 0 says yes
        probe = crc_tpc(no, yes)
        probe = oriented(probe, difference_scores(probe, no, yes), truth[train])
        return probe, difference_scores(probe, no, yes), difference_scores(probe, no_out, yes_out)

    return _by_layer(part, len(x_no), split, check, sign_labels)


def _by_layer(part: _Part, layer_count: int, split: Split, check: Callable[[], None], sign_labels: torch.Tensor | None) -> Fitted:
    """Every fold and the saved probe, one layer after the other; of a layer, its probe and scores are kept."""
    probes, train, held_out, turned = [], [], [], []
    for layer in range(layer_count):
        saved, pooled, signed = None, [], []
        for inside, outside in split.parts:
            check()
            probe, train_scores, scored = part(layer, inside, outside)
            pooled.append(scored)
            if sign_labels is not None:
                signed.append(torch.where(auroc(train_scores, sign_labels[inside]) < 0.5, -scored, scored))
            if torch.equal(inside, split.fitting):
                saved = probe, train_scores
        if saved is None:
            check()
            saved = part(layer, split.fitting, split.fitting[:1])[:2]
        probes.append(saved[0])
        train.append(saved[1])
        held_out.append(torch.cat(pooled))
        turned += [torch.cat(signed)] if signed else []
    return Fitted(_stacked(probes), torch.stack(train), torch.stack(held_out), torch.stack(turned) if turned else None)


def _stacked(probes: Sequence[Any]) -> Any:
    """The probe of all layers: tensors stacked; what is no tensor is the same in all."""
    fields = zip(*probes, strict=True)
    return type(probes[0])(*(torch.stack(values) if isinstance(values[0], torch.Tensor) else values[0] for values in fields))
