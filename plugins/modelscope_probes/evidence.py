"""What stands beside a defection probe's AUROC: everything in one pass over activations that exist already.

The direction of layer l is the mean over contrast pairs of a(defecting answer) - a(benign answer), its score x . w; neither labels nor
prompts had a part in it, so AUROCs on the prompts are held out. Only the choice of layer looks at labels, and is corrected for (max-T).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from modelscope_probes.directions.logistic import logistic
from modelscope_probes.statistics.cluster_bootstrap import bootstrap_aurocs, cluster_interval
from modelscope_probes.statistics.delong import delong
from modelscope_probes.statistics.intervals import Interval
from modelscope_probes.statistics.label_permutation import max_t, permuted_aurocs, permuted_labels
from modelscope_probes.statistics.random_directions import random_direction_aurocs, standing
from modelscope_probes.statistics.ranks import auroc
from modelscope_probes.statistics.worst_cell import WorstCell, worst_cell

_BASELINE_FOLDS = 5
_MOST_TOKENS = 1000
"""Of the baseline: those that most prompts hold; the fit is cubic in them."""


class Labelled(NamedTuple):
    """Prompts with a label, as tensors."""

    labels: torch.Tensor
    """(n,) bool."""
    groups: torch.Tensor
    """(n,) int64: what is resampled together."""
    cells: torch.Tensor
    """(n,) int64: place in `cell_names`."""
    cell_names: tuple[str, ...]


class LayerEvidence(NamedTuple):
    """Numbers by layer, (layer,) float64 each, NaN where unknown."""

    auroc: torch.Tensor
    intervals: tuple[Interval, ...]
    """By cluster bootstrap."""
    delong_error: torch.Tensor
    worst: WorstCell
    percentile: torch.Tensor
    """Among random directions."""
    random_p: torch.Tensor
    """Share of random directions that do as well or better, the probe counted among them."""
    random: torch.Tensor
    """(layer, count): signed AUROCs of random directions."""
    p: torch.Tensor
    """Permutation p, corrected for looking at every layer."""
    halves: tuple[torch.Tensor, torch.Tensor]
    """(layer,) of the direction from pairs whose defecting answer is the first word there is, and from the others."""
    pairs: torch.Tensor
    """(pair, layer): AUROC of each pair's own direction."""
    between_within: torch.Tensor
    """Between-class over within-class variance of the scores."""
    resamples: torch.Tensor
    """(draws, layer): AUROCs of the bootstrap."""
    permuted: str
    """What was exchanged, how many labellings were drawn and of how many."""


def stored(evidence: LayerEvidence) -> dict[str, Any]:
    """As a stage's result can hold it."""
    intervals = [tuple(interval) for interval in evidence.intervals]
    return {**evidence._asdict(), "intervals": intervals, "worst": evidence.worst._asdict()}


def restored(result: Mapping[str, Any]) -> LayerEvidence:
    """What `stored` made a stage's result of."""
    intervals = tuple(Interval(*ends) for ends in result["intervals"])
    return LayerEvidence(**{**result, "intervals": intervals, "worst": WorstCell(**result["worst"])})


def directions(contrast: torch.Tensor) -> torch.Tensor:
    """(layer, hidden) float64: mean difference of answers (pair, 2, layer, hidden), the defecting one first."""
    return (contrast[:, 0].double() - contrast[:, 1].double()).mean(0)


def scores(activations: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """(layer, n) float64 of activations (n, layer, hidden) along a direction (layer, hidden)."""
    return torch.einsum("nlh,lh->ln", activations.double(), direction.double())


def layer_evidence(
    activations: torch.Tensor,
    contrast: torch.Tensor,
    polarity: Sequence[str],
    data: Labelled,
    *,
    random_count: int,
    draws: int,
    level: float,
    generators: dict[str, torch.Generator],
) -> LayerEvidence:
    """Everything by layer: `activations` (n, layer, hidden), `contrast` (pair, 2, layer, hidden), `polarity` the defecting answers.

    `generators` has `bootstrap`, `permutation` and `random`. Memory: activations once in float32 and once in float64, and
    random_count x layer and draws x layer numbers.
    """
    found = scores(activations, directions(contrast))  # (layer, n)
    areas = auroc(found, data.labels)
    resampled = bootstrap_aurocs(found, data.labels, data.groups, draws, generators["bootstrap"])
    intervals = tuple(
        cluster_interval(float(area), resampled.aurocs[:, layer], resampled.independent_pairs, level) for layer, area in enumerate(areas)
    )
    permuted = permuted_labels(data.labels, data.groups, draws, generators["permutation"])
    random = random_direction_aurocs(activations.transpose(0, 1), data.labels, random_count, generators["random"])
    each = contrast[:, 0].double() - contrast[:, 1].double()  # (pair, layer, hidden)
    pair_scores = torch.einsum("nlh,plh->pln", activations.double(), each)
    return LayerEvidence(
        auroc=areas,
        intervals=intervals,
        delong_error=delong(found, data.labels).standard_error,
        worst=worst_cell(found, data.labels, data.cells, level),
        percentile=standing(areas, random).percentile,
        random_p=standing(areas, random).p,
        random=random,
        p=max_t(areas, permuted_aurocs(found, permuted.labels)).p,
        halves=_halves(activations, each, polarity, data.labels),
        pairs=auroc(pair_scores, data.labels),
        between_within=_between_within(found, data.labels),
        resamples=resampled.aurocs,
        permuted=permuted.in_words,
    )


def _halves(
    activations: torch.Tensor, each: torch.Tensor, polarity: Sequence[str], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """AUROCs of the directions from the pairs of either polarity: the direction of all mixes the answer's word with its meaning."""
    first = torch.tensor([answer.lower() == polarity[0].lower() for answer in polarity])
    unknown = torch.full((activations.shape[1],), torch.nan, dtype=torch.float64)
    halves = [auroc(scores(activations, each[half].mean(0)), labels) if bool(half.any()) else unknown for half in (first, ~first)]
    return halves[0], halves[1]


def _between_within(found: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(layer,): variance of the class means of scores (layer, n), weighted by class size, over the mean variance within classes."""
    total = found - found.mean(-1, keepdim=True)
    between = torch.zeros(len(found), dtype=torch.float64)
    within = torch.zeros_like(between)
    for chosen in (labels, ~labels):
        mean = total[:, chosen].mean(-1, keepdim=True)
        between += chosen.sum() * mean[:, 0].square()
        within += (total[:, chosen] - mean).square().sum(-1)
    return between / within


def bag_of_tokens_auroc(
    token_ids: Sequence[Sequence[int]], data: Labelled, check: Callable[[], None] = lambda: None, C: float = 1.0
) -> float:
    """AUROC, out of fold, of a logistic regression on which tokens a prompt holds: what the words alone give, without a model.

    Groups are kept together in `_BASELINE_FOLDS` folds; presence of the `_MOST_TOKENS` most common tokens, not counts. NaN where a fold has
    one class only. `check` is called before each fold.
    """
    counts = Counter(id for ids in token_ids for id in set(ids))
    chosen = sorted(counts, key=lambda id: (-counts[id], id))[:_MOST_TOKENS]
    vocabulary = {id: at for at, id in enumerate(chosen)}
    x = torch.zeros(len(token_ids), len(vocabulary), dtype=torch.float64)
    for row, ids in enumerate(token_ids):
        x[row, [vocabulary[id] for id in set(ids) if id in vocabulary]] = 1
    fold = folds_of_groups(data.groups, data.labels, _BASELINE_FOLDS)
    held_out = torch.full((len(token_ids),), torch.nan, dtype=torch.float64)
    for number in range(_BASELINE_FOLDS):
        check()
        test = fold == number
        train = data.labels[~test]
        if not bool(test.any()):
            continue
        if not bool(train.any() and (~train).any()):
            return float("nan")
        probe = logistic(x[~test], train, C)
        held_out[test] = x[test] @ probe.direction + probe.bias
    return float(auroc(held_out[None], data.labels)[0])


def folds_of_groups(groups: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """(n,) int64 fold of each row: whole groups, largest first, each to the fold with fewest rows of the classes it brings.

    Deterministic. Groups and labels are (n,).
    """
    members = torch.unique(groups, return_inverse=True)[1]
    sizes = torch.stack([torch.bincount(members[chosen], minlength=int(members.max()) + 1) for chosen in (labels, ~labels)])  # (2, group)
    filled = torch.zeros(2, count)
    fold_of = torch.zeros(sizes.shape[1], dtype=torch.int64)
    share = sizes / sizes.sum(1, keepdim=True).clamp(min=1)
    for group in torch.argsort(share.sum(0), descending=True, stable=True).tolist():
        load = (filled + share[:, group, None]).square().sum(0)
        before = filled.square().sum(0)
        fold_of[group] = int(torch.argmin(load - before))
        filled[:, fold_of[group]] += share[:, group]
    return fold_of[members]
