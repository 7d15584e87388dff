"""Resampled groups: against resamples put together prompt by prompt, and what the interval must and must not notice."""

from __future__ import annotations

import math

import pytest
import torch
from modelscope_probes.statistics import cluster_bootstrap
from modelscope_probes.statistics.cluster_bootstrap import bootstrap_aurocs, cluster_interval, percentile_interval
from modelscope_probes.statistics.ranks import auroc


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(seed: int, groups: int, size: int, rows: int = 3, ties: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores (rows, n) with an effect of the label and one of the group; labels constant in most groups, mixed in some."""
    generator = seeded(seed)
    members = torch.arange(groups).repeat_interleave(size)[torch.randperm(groups * size, generator=generator)]
    labels = (members % 2 == 0) ^ (torch.rand(len(members), generator=generator) < 0.1)
    effect = torch.randn(groups, generator=generator)[members]
    scores = torch.randn((rows, len(members)), generator=generator) + labels + effect
    return (scores * 4).round() / 4 if ties else scores, labels, members * 7 - 3


def one_by_one(scores: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor, draws: int, generator: torch.Generator) -> torch.Tensor:
    """Resample after resample, the prompts of the drawn groups listed one after another; one class only: NaN."""
    members = [torch.nonzero(groups == group).flatten() for group in groups.unique()]
    drawn = torch.randint(len(members), (draws, len(members)), generator=generator)
    rows = [torch.cat([members[group] for group in one.tolist()]) for one in drawn]
    return torch.stack([auroc(scores[..., some], labels[some]) for some in rows])


@pytest.mark.parametrize("ties", [True, False])
def test_a_resample_is_the_area_of_its_prompts_to_the_last_bit(ties: bool) -> None:
    scores, labels, groups = made(0, 15, 6, ties=ties)
    found = bootstrap_aurocs(scores, labels, groups, 60, seeded(1))
    assert torch.equal(found.aurocs, one_by_one(scores, labels, groups, 60, seeded(1)))
    assert (found.redrawn, found.groups, found.refusal) == (0, 15, None)


def test_prompts_that_stand_alone_are_groups_of_one() -> None:
    scores, labels, _ = made(2, 20, 3)
    alone, named = (bootstrap_aurocs(scores, labels, groups, 40, seeded(3)) for groups in (None, torch.arange(60)))
    assert torch.equal(alone.aurocs, named.aurocs)
    assert alone.groups == 60


def test_every_layer_and_both_of_a_pair_see_the_same_resamples() -> None:
    scores, labels, groups = made(4, 12, 5, rows=4)
    together = bootstrap_aurocs(torch.stack((scores, scores + 1)), labels, groups, 50, seeded(5)).aurocs
    assert together.shape == (50, 2, 4)
    assert torch.equal(together[:, 0], together[:, 1])
    assert torch.equal(bootstrap_aurocs(scores[2], labels, groups, 50, seeded(5)).aurocs, together[:, 0, 2])


def test_blocks_of_draws_hold_the_same_kind_of_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels, groups = made(6, 15, 6, ties=False)
    whole = bootstrap_aurocs(scores, labels, groups, 500, seeded(7)).aurocs
    monkeypatch.setattr(cluster_bootstrap, "_WEIGHTS_AT_ONCE", 1)
    parts = bootstrap_aurocs(scores, labels, groups, 500, seeded(7)).aurocs
    assert torch.equal(whole, parts)  # torch draws integers one after another


def test_resamples_of_one_class_are_drawn_again_and_counted() -> None:
    labels = torch.tensor([True, True, False, False])
    scores = torch.tensor([1.0, 4.0, 2.0, 3.0])
    found = bootstrap_aurocs(scores, labels, draws=2000, generator=seeded(8))
    assert found.aurocs.isfinite().all()
    share = 1 / 8  # two in 2^4 resamples hold one class only
    assert found.redrawn / (2000 + found.redrawn) == pytest.approx(share, abs=0.03)  # four standard errors


@pytest.mark.parametrize(
    ("labels", "groups", "sentence"),
    [
        ([1, 1, 1, 1], None, "there are no negatives"),
        ([0, 0, 0, 0], None, "there are no positives"),
        ([1, 0, 0, 0], None, "all positives are in one prompt"),
        ([1, 1, 0, 0], [5, 5, 6, 7], "all positives are in one group"),
        ([1, 0, 1, 0], [5, 5, 5, 5], "all positives are in one group"),
        ([1, 1, 0, 0], [5, 6, 7, 7], "all negatives are in one group"),
    ],
)
def test_a_class_in_one_group_is_refused_in_a_sentence(labels: list[int], groups: list[int] | None, sentence: str) -> None:
    members = None if groups is None else torch.tensor(groups)
    found = bootstrap_aurocs(torch.randn(2, 4), torch.tensor(labels).bool(), members, 10, seeded(9))
    assert found.refusal is not None and sentence in found.refusal
    assert found.aurocs.shape == (10, 2) and found.aurocs.isnan().all()
    assert cluster_interval(0.7, found.aurocs[:, 0], found.independent_pairs).method == "unknown"


def test_an_empty_set_is_refused() -> None:
    found = bootstrap_aurocs(torch.empty(2, 0), torch.empty(0, dtype=torch.bool), None, 3)
    assert found.refusal is not None and found.aurocs.isnan().all()


def test_a_layer_with_a_score_that_is_not_finite_is_unknown_alone() -> None:
    scores, labels, groups = made(10, 12, 4)
    scores[1, 5] = math.nan
    found = bootstrap_aurocs(scores, labels, groups, 20, seeded(11)).aurocs
    assert found.isnan().all(0).tolist() == found.isnan().any(0).tolist() == [False, True, False]


def test_prompts_said_twice_narrow_the_naive_interval_and_not_that_of_the_groups() -> None:
    scores, labels, groups = made(12, 40, 3)
    twice = [torch.cat((part, part), -1) for part in (scores, labels, groups)]
    once_grouped, twice_grouped = (bootstrap_aurocs(*parts, 1000, seeded(13)).aurocs for parts in ((scores, labels, groups), twice))
    assert torch.equal(once_grouped, twice_grouped)
    once_naive, twice_naive = (bootstrap_aurocs(*parts[:2], None, 1000, seeded(13)).aurocs for parts in ((scores, labels), twice))
    torch.testing.assert_close(twice_naive.std(0) / once_naive.std(0), torch.full((3,), 2**-0.5).double(), rtol=0.1, atol=0)
    assert (once_grouped.std(0) > 1.1 * once_naive.std(0)).all()  # the scores have an effect of the group


def test_two_noisy_copies_do_not_differ() -> None:
    covered = 0
    for seed in range(100):
        scores, labels, groups = made(100 + seed, 25, 4, rows=1, ties=False)
        noise = torch.randn((2, 1, 100), generator=seeded(seed)) / 2
        drawn = bootstrap_aurocs(scores + noise, labels, groups, 300, seeded(seed)).aurocs
        low, high = percentile_interval(drawn[:, 0] - drawn[:, 1])
        covered += int(low <= 0 <= high)
    assert 88 <= covered <= 100  # 95 expected of 100, and a percentile interval of 25 groups covers a little less


def test_shuffled_labels_are_covered_19_times_in_20() -> None:
    """Labels shuffled between groups of related prompts; the interval that takes prompts to be independent misses far more often."""
    covered, naive = 0, 0
    for seed in range(200):
        generator = seeded(seed)
        members = torch.arange(60).repeat_interleave(5)
        labels = (torch.randperm(60, generator=generator) < 30)[members]
        scores = torch.randn(60, generator=generator)[members] + torch.randn(300, generator=generator) / 2
        for groups in (members, None):
            low, high = percentile_interval(bootstrap_aurocs(scores, labels, groups, 300, generator).aurocs)
            inside = int(low <= 0.5 <= high)
            covered, naive = (covered + inside, naive) if groups is not None else (covered, naive + inside)
    assert 178 <= covered <= 198
    assert naive < 150


def test_the_percentile_interval_interpolates_between_draws() -> None:
    low, high = percentile_interval(torch.arange(101.0, dtype=torch.float64)[:, None].expand(101, 2) / 100, 0.9)
    assert low.tolist() == pytest.approx([0.05, 0.05]) and high.tolist() == pytest.approx([0.95, 0.95])


def test_the_interval_is_the_bound_in_pairs_of_groups_at_a_perfect_area() -> None:
    labels = torch.tensor([True] * 12 + [False] * 20)
    groups = torch.arange(32) // 4  # three groups of positives, five of negatives
    scores = torch.where(labels, 2.0, 0.0) + torch.rand(32, generator=seeded(14))
    found = bootstrap_aurocs(scores, labels, groups, 100, seeded(15))
    interval = cluster_interval(1.0, found.aurocs, found.independent_pairs)
    assert found.independent_pairs == 3
    assert (interval.low, interval.high, interval.method) == (pytest.approx(0.05 ** (1 / 3)), 1.0, "one-sided")


def test_mixed_groups_give_half_as_many_pairs() -> None:
    groups = torch.arange(20) // 2
    assert bootstrap_aurocs(torch.randn(20), torch.arange(20) % 2 == 0, groups, 5).independent_pairs == 5


def test_an_interval_says_that_it_comes_from_resamples() -> None:
    scores, labels, groups = made(16, 20, 4, rows=1)
    drawn = bootstrap_aurocs(scores[0], labels, groups, 200, seeded(17)).aurocs
    found = cluster_interval(float(auroc(scores[0], labels)), drawn, 10)
    assert found.method == "bootstrap"
    assert [found.low, found.high] == [float(end) for end in percentile_interval(drawn)]
    assert cluster_interval(0.5, torch.full((200,), 0.5, dtype=torch.float64), 10).method == "unknown"  # constant scores


@pytest.mark.parametrize("groups", [torch.zeros(3, dtype=torch.int64), torch.zeros(4), torch.zeros(1, 4, dtype=torch.int64)])
def test_groups_of_another_kind_are_refused(groups: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \(4,\) integers"):
        bootstrap_aurocs(torch.randn(4), torch.tensor([True, True, False, False]), groups)
