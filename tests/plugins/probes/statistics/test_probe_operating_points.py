"""Points of a ROC curve: counted threshold by threshold, and given only where the sample can show them."""

from __future__ import annotations

import math

import pytest
import torch
from modelscope_probes.statistics.intervals import clopper_pearson
from modelscope_probes.statistics.operating_points import RocCurve, roc_curve, tpr_at_fpr
from modelscope_probes.statistics.ranks import auroc


def made(seed: int, positives: int = 60, negatives: int = 140, values: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(positives + negatives)[torch.randperm(positives + negatives, generator=generator)] < positives
    return (torch.randn(len(labels), generator=generator) * values / 4 + labels * values / 3).round() / values, labels


def curve_of(scores: torch.Tensor, labels: torch.Tensor) -> RocCurve:
    curve = roc_curve(scores, labels)
    assert curve is not None
    return curve


def test_every_different_score_is_a_point_and_counts_what_it_flags() -> None:
    scores, labels = made(0)
    curve = curve_of(scores, labels)
    assert curve.thresholds.tolist() == [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    for threshold, false, true in zip(curve.thresholds, curve.false_positives, curve.true_positives, strict=True):
        assert (int(false), int(true)) == (int((scores[~labels] >= threshold).sum()), int((scores[labels] >= threshold).sum()))
    assert (curve.positives, curve.negatives) == (60, 140)


def test_the_area_under_the_curve_is_the_share_of_pairs() -> None:
    for seed in range(5):
        scores, labels = made(seed, values=5 + seed * 20)
        curve = curve_of(scores, labels)
        area = torch.trapezoid(curve.true_positive_rates, curve.false_positive_rates)
        assert area.item() == pytest.approx(float(auroc(scores, labels)), rel=1e-12)


def test_constant_scores_have_two_points_and_chance() -> None:
    curve = curve_of(torch.ones(300), torch.arange(300) < 100)
    assert curve.thresholds.tolist() == [math.inf, 1.0]
    point = tpr_at_fpr(curve, 0.05)
    assert point is not None
    assert (point.threshold, point.true_positive_rate, point.false_positive_rate) == (math.inf, 0, 0)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.29])
def test_the_point_for_a_false_positive_rate_does_not_exceed_it(rate: float) -> None:
    for seed in range(20):
        scores, labels = made(seed, negatives=100 + seed)
        curve, point = curve_of(scores, labels), tpr_at_fpr(curve_of(scores, labels), rate)
        assert point is not None
        allowed = [
            (int((scores[labels] >= threshold).sum()), threshold)
            for threshold in curve.thresholds.tolist()
            if int((scores[~labels] >= threshold).sum()) <= rate * (100 + seed) + 1e-9
        ]
        most = max(count for count, _ in allowed)
        assert point.threshold == max(threshold for count, threshold in allowed if count == most)
        assert point.true_positive_rate == most / 60
        assert point.true_positive_interval == clopper_pearson(most, 60)
        false = int((scores[~labels] >= point.threshold).sum())
        assert point.false_positive_rate == false / (100 + seed) <= rate
        assert point.false_positive_interval == clopper_pearson(false, 100 + seed)


def test_a_rate_that_the_negatives_cannot_show_has_no_point() -> None:
    few = curve_of(*made(1, negatives=99))
    assert tpr_at_fpr(few, 0.01) is None and tpr_at_fpr(few, 0.05) is None
    enough = curve_of(*made(1, negatives=100))
    assert tpr_at_fpr(enough, 0.01) is not None
    assert tpr_at_fpr(enough, 0.001) is None


def test_what_has_no_curve_is_none() -> None:
    scores = torch.arange(5.0)
    labels = torch.tensor([True, False, True, False, True])
    assert roc_curve(scores, torch.ones(5, dtype=torch.bool)) is None
    assert roc_curve(scores, torch.zeros(5, dtype=torch.bool)) is None
    for odd in (math.nan, math.inf):
        assert roc_curve(torch.where(scores == 2, odd, scores), labels) is None
