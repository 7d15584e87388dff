"""What AUROCs labels without meaning would give, and what the best of many layers would have been by luck.

If the labels say nothing of the scores, any exchange of labels that the design allows was as likely as the one observed. Prompts of a
group are related, so what may be exchanged depends on where the labels vary:

    between groups    every group has one label: the groups' labels are permuted; where groups differ in size, so does the number of
                      positive prompts from one permutation to the next
    within groups     some group has both labels, as pairs of twins do: labels are permuted inside each group

The midranks R of a layer are the same under every permutation, so with permuted labels L (draws, n) in {0, 1} all AUROCs are one
matrix product (see `ranks`):

    A = (L R^T - P (P + 1) / 2) / (P N),        P = L 1, N = n - P for each draw.

Looking at all layers and reporting the best needs the null distribution of the best (max-T; Westfall & Young 1993): with
M_k = max over layers of A in permutation k,

    p(layer) = (1 + #{M_k >= A_layer}) / (1 + K),

which is one-sided, signed, and holds for all layers at once. No p can be believed below one over the number of labellings the design
allows; `Permutations.labellings` counts them.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

from modelscope_probes.statistics.ranks import checked_labels, midranks

_MOST_COUNTED = 10**15
"""Labellings beyond which a reader gains nothing from the number."""
_VALUES_AT_ONCE = 1 << 20
"""Draws are taken in blocks of about this many labels: temporaries of some tens of megabytes."""


class Permutations(NamedTuple):
    """Permuted labels and how they came about."""

    labels: torch.Tensor
    """(draws, n) bool."""

    how: Literal["between groups", "within groups"]
    """What was exchanged. Prompts without groups are groups of one."""

    labellings: int
    """How many different labellings can come about, the observed one included. 1 says that nothing can be tested."""

    @property
    def in_words(self) -> str:
        """What was exchanged, how many labellings were drawn (with repeats), and of how many: exact up to 10^15, else said to be more."""
        if self.labellings == 1:
            return f"{self.how}, where only one labelling is possible, so nothing can be tested"
        count = "more than 10^15" if self.labellings > _MOST_COUNTED else str(self.labellings)
        return f"{self.how}, {len(self.labels)} drawn of {count} possible labellings"


class BestLayer(NamedTuple):
    """p of each layer and of the best one, corrected for having looked at all of them."""

    p: torch.Tensor
    """(layer,) float64; NaN for a layer of unknown AUROC, which takes no part in the maximum."""

    layer: int | None
    """The layer of the highest AUROC, the first of equals; None if all are unknown."""

    best_p: float
    """Its p; NaN if there is none."""


def permuted_labels(
    labels: torch.Tensor, groups: torch.Tensor | None = None, draws: int = 1000, generator: torch.Generator | None = None
) -> Permutations:
    """`draws` permutations of `labels` (n,) bool as the groups (n,), integers, allow; None for prompts that stand alone.

    Memory: the result and some tens of megabytes.
    """
    checked_labels(labels, len(labels))
    labels = labels.cpu()
    if groups is not None and groups.shape != labels.shape:
        raise ValueError(f"groups are {tuple(groups.shape)}: expected ({len(labels)},), one for each label")
    members = torch.arange(len(labels)) if groups is None else torch.unique(groups.cpu(), return_inverse=True)[1]
    sizes = torch.bincount(members)
    positives = torch.bincount(members[labels], minlength=len(sizes))
    permuted = torch.empty((draws, len(labels)), dtype=torch.bool)
    if bool(((positives == 0) | (positives == sizes)).all()):
        for block in _blocks(draws, len(labels)):
            shuffled = _uniform(permuted[block], len(sizes), generator).argsort(-1)  # (block, groups)
            permuted[block] = (positives > 0)[shuffled][:, members]
        return Permutations(permuted, "between groups", math.comb(len(sizes), int((positives > 0).sum())))

    by_group = members.argsort(stable=True)
    for block in _blocks(draws, len(labels)):
        # An integer for the group and a fraction for the order: sorted, every group keeps its stretch and is shuffled inside it.
        fractions = _uniform(permuted[block], len(labels), generator) * (1 - 2**-20)  # never rounded up to the next integer
        permuted[block, by_group] = labels[(members + fractions).argsort(-1)]
    labellings = math.prod(math.comb(size, some) for size, some in zip(sizes.tolist(), positives.tolist(), strict=True))
    return Permutations(permuted, "within groups", labellings)


def permuted_aurocs(scores: torch.Tensor, permuted: torch.Tensor) -> torch.Tensor:
    """(draws, layer) float64: AUROC of `scores` (layer, n) under each row of `permuted` (draws, n) bool.

    Exact; NaN for a layer with a score that is not finite and for a draw of one class.
    """
    ranked = midranks(scores)
    ranked[~torch.isfinite(scores).all(-1).cpu()] = torch.nan
    count = scores.shape[-1]
    return torch.cat([_aurocs(ranked, permuted[block], count) for block in _blocks(len(permuted), count)])


def max_t(observed: torch.Tensor, permuted: torch.Tensor) -> BestLayer:
    """Corrected p of the AUROCs `observed` (layer,), given those of permuted labels (draws, layer)."""
    known = ~(observed.isnan() | permuted.isnan().any(0))
    p = torch.full(observed.shape, torch.nan, dtype=torch.float64)
    if not known.any():
        return BestLayer(p, None, math.nan)
    highest = permuted[:, known].amax(-1)  # (draws,)
    p[known] = (1 + (highest[:, None] >= observed[known]).sum(0)).to(torch.float64) / (1 + len(permuted))
    layer = int(observed.masked_fill(~known, -torch.inf).argmax())
    return BestLayer(p, layer, float(p[layer]))


def _aurocs(ranked: torch.Tensor, permuted: torch.Tensor, count: int) -> torch.Tensor:
    chosen = permuted.to(torch.float64)
    positives = chosen.sum(-1, keepdim=True)  # (draws, 1)
    pairs = positives * (count - positives)
    return (chosen @ ranked.T - positives * (positives + 1) / 2) / torch.where(pairs > 0, pairs, torch.nan)


def _blocks(draws: int, prompts: int) -> list[slice]:
    step = max(1, _VALUES_AT_ONCE // max(1, prompts))
    return [slice(start, start + step) for start in range(0, draws, step)]


def _uniform(block: torch.Tensor, count: int, generator: torch.Generator | None) -> torch.Tensor:
    """(draws of the block, count) float64."""
    return torch.rand((len(block), count), generator=generator, dtype=torch.float64)
