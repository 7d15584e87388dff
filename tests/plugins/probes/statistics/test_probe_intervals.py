"""Intervals of rates and AUROCs: scipy's, their coverage, and which method answered."""

from __future__ import annotations

import math

import pytest
import torch
from modelscope_probes.statistics.delong import delong
from modelscope_probes.statistics.intervals import Interval, auroc_interval, clopper_pearson, one_sided_bound
from modelscope_probes.statistics.sample_size import more_prompts
from scipy import stats


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 40), (3, 40), (20, 40), (40, 40), (999, 1000)])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_an_interval_of_a_rate_is_that_of_scipy(successes: int, trials: int, level: float) -> None:
    told = stats.binomtest(successes, trials).proportion_ci(level, "exact")
    found = clopper_pearson(successes, trials, level)
    assert (found.low, found.high) == pytest.approx((told.low, told.high), rel=1e-9)
    assert (found.level, found.method) == (level, "clopper-pearson")


def test_no_trial_says_nothing() -> None:
    assert clopper_pearson(0, 0)[:2] == (0, 1)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5)])
def test_an_impossible_count_is_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 5"):
        clopper_pearson(successes, trials)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_outside_0_and_1_is_refused(level: float) -> None:
    for interval in (lambda: clopper_pearson(1, 2, level), lambda: auroc_interval(0.7, 0.1, 5, 5, level)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            interval()


def test_the_interval_of_an_area_is_normal_on_the_logit_scale() -> None:
    found = auroc_interval(0.9, 0.02, 80, 120)
    ends = [math.log(0.9 / 0.1) + sign * stats.norm.ppf(0.975) * 0.02 / 0.09 for sign in (-1, 1)]
    assert [found.low, found.high] == pytest.approx([1 / (1 + math.exp(-end)) for end in ends], rel=1e-12)
    assert found.method == "logit"
    mirrored = auroc_interval(0.1, 0.02, 80, 120)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low), rel=1e-12)


def test_a_large_error_stays_within_0_and_1() -> None:
    found = auroc_interval(0.999999, 0.4, 2, 2)
    assert 0 <= found.low < 0.999999 < found.high <= 1


def test_a_perfect_area_gets_the_one_sided_bound_of_the_rarer_class() -> None:
    for positives, negatives in ((12, 300), (300, 12)):
        found = auroc_interval(1.0, 0.0, positives, negatives)
        assert found.method == "one-sided"
        assert found.high == 1
        assert found.low == pytest.approx(stats.beta.ppf(0.05, 12, 1), rel=1e-12)  # Clopper & Pearson, 12 of 12, one-sided
        mirrored = auroc_interval(0.0, 0.0, positives, negatives)
        assert (mirrored.low, mirrored.high) == (0, pytest.approx(1 - found.low))


def test_a_perfect_area_is_bounded_even_where_the_error_is_unknown() -> None:
    assert auroc_interval(1.0, math.nan, 1, 50)[:2] == (pytest.approx(0.05), 1)


def test_the_one_sided_bound_is_kept_by_areas_at_it() -> None:
    """Normal scores whose true area is the bound are told apart without a mistake at most one time in twenty."""
    pairs = 6
    bound = one_sided_bound(1.0, pairs).low
    shift = math.sqrt(2) * float(stats.norm.ppf(bound))
    scores = torch.randn(4000, 2 * pairs, generator=torch.Generator().manual_seed(0))
    perfect = (scores[:, :pairs] + shift).amin(-1) > scores[:, pairs:].amax(-1)
    assert perfect.double().mean() < 0.05


@pytest.mark.parametrize(("area", "error"), [(0.5, 0.0), (math.nan, 0.1), (0.7, math.nan), (0.7, math.inf), (1.5, 0.1)])
def test_what_says_nothing_is_unknown(area: float, error: float) -> None:
    found = auroc_interval(area, error, 10, 10)
    assert math.isnan(found.low) and math.isnan(found.high)
    assert found.method == "unknown"


def test_shuffled_labels_are_covered_19_times_in_20() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(100) < 40
    found = delong(torch.randn(200, 100, generator=generator), labels)  # rows in random order: labels that say nothing of them
    pairs = zip(found.auroc.tolist(), found.standard_error.tolist(), strict=True)
    covered = sum(one.low <= 0.5 <= one.high for one in (auroc_interval(area, error, 40, 60) for area, error in pairs))
    assert 180 <= covered <= 198  # 99.8% of a binomial of 200 and 0.95


def test_half_the_width_needs_four_times_the_prompts() -> None:
    assert more_prompts(0.1, 0.05, 40, 60) == 300
    assert more_prompts(0.1, 0.1, 40, 60) == 0
    assert more_prompts(0.05, 0.1, 40, 60) == 0
    assert more_prompts(0.1, 0.09, 3, 7) == 1 + 2  # 3 x 1.235 and 7 x 1.235, each rounded up


def test_what_a_class_lacks_of_the_least_is_asked_for_however_narrow_the_interval() -> None:
    assert more_prompts(0.05, 0.1, 4, 60, lacking=(6, 0)) == 6
    assert more_prompts(0.1, 0.05, 4, 60, lacking=(6, 0)) == 12 + 180  # four times as many is more than the least
    assert more_prompts(0.05, 0.1, 4, 60, lacking=(-50, -50)) == 0
    assert more_prompts(math.nan, 0.1, 4, 60, lacking=(6, 0)) is None


@pytest.mark.parametrize(
    ("half_width", "target", "positives"),
    [
        *((math.nan, 0.1, 5), (math.inf, 0.1, 5), (0.0, 0.1, 5), (-0.1, 0.1, 5)),
        *((0.1, math.nan, 5), (0.1, 0.0, 5), (0.1, 0.05, 0), (1e300, 1e-300, 5)),
    ],
)
def test_nothing_follows_from_a_degenerate_interval(half_width: float, target: float, positives: int) -> None:
    assert more_prompts(half_width, target, positives, 5) is None


def test_more_prompts_do_narrow_the_interval_as_promised() -> None:
    """Areas of the same normal scores with 100 prompts and with as many as are asked for."""
    generator = torch.Generator().manual_seed(2)

    def usual_interval(positives: int, negatives: int) -> Interval:
        labels = torch.arange(positives + negatives) < positives
        scores = torch.randn(50, positives + negatives, generator=generator) + labels
        found = delong(scores, labels)
        return auroc_interval(float(found.auroc.mean()), float(found.standard_error.mean()), positives, negatives)

    before = usual_interval(40, 60)
    width = (before.high - before.low) / 2
    more = more_prompts(width, width / 3, 40, 60)
    assert more == 800
    after = usual_interval(360, 540)
    assert (after.high - after.low) / 2 == pytest.approx(width / 3, rel=0.05)  # 50 repetitions of each
