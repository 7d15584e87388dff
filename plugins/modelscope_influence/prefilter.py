"""Scoring only rows with words in common with a query, and telling from a sample of the others what that missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.stats import beta  # type: ignore[import-untyped]

from modelscope_influence.baselines import Words

_LEVEL = 0.95


class Chosen(NamedTuple):
    """Which rows are scored."""

    rows: Sequence[int]
    """Rising."""
    sample: Sequence[int]
    """Drawn from the others, to tell what was missed."""
    total: int
    """Rows there are."""

    @property
    def is_all(self) -> bool:
        """Whether nothing was filtered."""
        return len(self.rows) == self.total


def prefiltered(words: Words, queries: int, total: int, each: int, sample: int, generator: torch.Generator) -> Chosen:
    """The `each` rows of each query that have most words in common with it (BM25), none of them with no word; equal ones by their order."""
    is_chosen = torch.zeros(total, dtype=torch.bool)
    for query in range(queries):
        scores = words.scores(query)
        best = scores.argsort(descending=True, stable=True)[:each]
        is_chosen[best[scores[best] > 0]] = True
    others = (~is_chosen).nonzero()[:, 0]
    drawn = others[torch.randperm(len(others), generator=generator)[:sample]]
    return Chosen(is_chosen.nonzero()[:, 0].tolist(), sorted(drawn.tolist()), total)


class Recall(NamedTuple):
    """Of the rows that score at least as high as the last one found, the share that was found."""

    value: float
    low: float
    """Of an interval at 0.95, the mean of the queries' own (Clopper and Pearson's of the share of the sample that is as high)."""
    high: float


def recall(found: Sequence[torch.Tensor], sampled: torch.Tensor, others: int) -> Recall | None:
    """From the scores found by query (the last of them being the lowest), and those of the sample, (query, sampled row), of `others`.

    With k rows found and a share p of the sample that scores as high, p times `others` rows were missed: k / (k + p others). None without
    rows found or a sample.
    """
    parts = []
    rows = sampled.shape[1]
    for scores, theirs in zip(found, sampled, strict=True):
        if not len(scores) or not rows:
            return None
        above = int((theirs >= scores.min()).sum())
        low = beta.ppf((1 - _LEVEL) / 2, above, rows - above + 1) if above else 0.0
        high = beta.ppf((1 + _LEVEL) / 2, above + 1, rows - above) if above < rows else 1.0
        parts.append([len(scores) / (len(scores) + share * others) for share in (above / rows, high, low)])
    means = torch.tensor(parts, dtype=torch.float64).mean(0).tolist()
    return Recall(means[0], means[1], means[2])
