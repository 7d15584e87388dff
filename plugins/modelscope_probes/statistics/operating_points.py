"""A score as an alarm: how many positives are flagged at how many false alarms.

A prompt is flagged where its score is at or above a threshold. Only the observed scores are worth trying, and tied scores are flagged
together, so the ROC curve has one point for each different score. A point for a wanted false positive rate is the best one that does
not exceed it: no point between two thresholds is made up.

A rate of 1% cannot be seen on fewer than 100 negatives, where one false alarm is more than that already; there is no such point then.
And a threshold chosen on the very negatives it is judged on is somewhat too low for others: one to be used later is set by
`modelscope_probes.conformal`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from modelscope_probes.statistics.intervals import Interval, clopper_pearson
from modelscope_probes.statistics.ranks import checked_labels, finite_rows

FEWEST_NEGATIVES = 100
"""With fewer, one false alarm is more than 1%, and the threshold for 5% rests on fewer than five scores."""


class RocCurve(NamedTuple):
    """Points of a ROC curve, from flagging nothing to flagging everything; k is one more than the number of different scores."""

    thresholds: torch.Tensor
    """(k,) float64, descending; the first is infinity."""

    false_positives: torch.Tensor
    """(k,) int64: negatives at or above the threshold."""

    true_positives: torch.Tensor
    """(k,) int64: positives at or above the threshold."""

    @property
    def negatives(self) -> int:
        """All of them: the last point flags everything."""
        return int(self.false_positives[-1])

    @property
    def positives(self) -> int:
        """All of them."""
        return int(self.true_positives[-1])

    @property
    def false_positive_rates(self) -> torch.Tensor:
        """(k,) float64."""
        return self.false_positives.to(torch.float64) / self.negatives

    @property
    def true_positive_rates(self) -> torch.Tensor:
        """(k,) float64."""
        return self.true_positives.to(torch.float64) / self.positives


class OperatingPoint(NamedTuple):
    """A point of the curve, with exact intervals (Clopper & Pearson) of its two rates at the threshold taken as given."""

    threshold: float
    """Flag scores at or above this; infinity flags nothing."""

    true_positive_rate: float
    """Share of the positives that are flagged."""

    true_positive_interval: Interval
    """Of that rate."""

    false_positive_rate: float
    """Share of the negatives that are flagged, which may be less than what was allowed."""

    false_positive_interval: Interval
    """Of that rate."""


def roc_curve(scores: torch.Tensor, labels: torch.Tensor) -> RocCurve | None:
    """The ROC curve of `scores` (n,) under `labels` (n,) bool; None where a class is absent or a score is not finite."""
    checked_labels(labels, scores.shape[-1])
    scores, labels = scores.detach().cpu().to(torch.float64), labels.cpu()
    if not labels.any() or labels.all() or not finite_rows(scores):
        return None
    descending, order = scores.sort(descending=True)
    true_positives = labels[order].cumsum(0)
    last_of_ties = torch.cat((descending[1:] != descending[:-1], torch.tensor([True])))
    flagged = torch.arange(1, len(scores) + 1)
    start = torch.zeros(1, dtype=torch.int64)
    return RocCurve(
        thresholds=torch.cat((torch.tensor([torch.inf], dtype=torch.float64), descending[last_of_ties])),
        false_positives=torch.cat((start, (flagged - true_positives)[last_of_ties])),
        true_positives=torch.cat((start, true_positives[last_of_ties])),
    )


def tpr_at_fpr(curve: RocCurve, rate: float, level: float = 0.95) -> OperatingPoint | None:
    """The point with the most true positives among those with a false positive rate of at most `rate`, the highest threshold of equals.

    None with fewer negatives than `FEWEST_NEGATIVES`, or than 1 / `rate`.
    """
    if curve.negatives < FEWEST_NEGATIVES or curve.negatives * rate < 1:
        return None
    allowed = curve.true_positives[curve.false_positive_rates <= rate]
    return _point(curve, int((curve.true_positives == allowed[-1]).nonzero()[0]), level)


def _point(curve: RocCurve, index: int, level: float) -> OperatingPoint:
    true, false = int(curve.true_positives[index]), int(curve.false_positives[index])
    return OperatingPoint(
        threshold=float(curve.thresholds[index]),
        true_positive_rate=true / curve.positives,
        true_positive_interval=clopper_pearson(true, curve.positives, level),
        false_positive_rate=false / curve.negatives,
        false_positive_interval=clopper_pearson(false, curve.negatives, level),
    )
