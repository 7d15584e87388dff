"""Standard errors of AUROCs: against the definition with all pairs, against resampling, and where they say nothing."""

from __future__ import annotations

import math

import pytest
import torch
from modelscope_probes.statistics.cluster_bootstrap import bootstrap_aurocs
from modelscope_probes.statistics.delong import components, delong, paired_difference
from modelscope_probes.statistics.ranks import auroc


def made(seed: int, positives: int, negatives: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal scores rounded to tenths, so that there are ties, and labels in random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(positives + negatives)[torch.randperm(positives + negatives, generator=generator)] < positives
    scores = torch.randn((rows, positives + negatives), generator=generator, dtype=torch.float64) + labels
    return (scores * 10).round() / 10, labels


def kernel(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(..., P, N): what each pair counts."""
    positives, negatives = scores[..., labels][..., :, None], scores[..., ~labels][..., None, :]
    return (positives > negatives).double() + (positives == negatives).double() / 2


def by_pairs(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """var(A) of DeLong's paper, from all pairs."""
    pairs = kernel(scores, labels)
    return pairs.mean(-1).var(-1) / pairs.shape[-2] + pairs.mean(-2).var(-1) / pairs.shape[-1]


def test_components_are_row_and_column_means_of_all_pairs() -> None:
    scores, labels = made(0, 30, 50)
    parts, pairs = components(scores, labels), kernel(scores, labels)
    assert torch.equal(parts.won, pairs.sum(-1))
    assert torch.equal(parts.lost, (1 - pairs).sum(-2))


def test_the_area_is_that_of_the_ranks_to_the_last_bit() -> None:
    scores, labels = made(1, 37, 83, rows=20)
    assert torch.equal(delong(scores, labels).auroc, auroc(scores, labels))


def test_the_standard_error_is_that_of_all_pairs() -> None:
    scores, labels = made(2, 30, 50)
    torch.testing.assert_close(delong(scores, labels).standard_error, by_pairs(scores, labels).sqrt(), rtol=1e-12, atol=0)


def test_the_standard_error_is_within_a_tenth_of_2000_bootstraps() -> None:
    scores, labels = made(3, 80, 120, rows=5)
    resampled = bootstrap_aurocs(scores, labels, draws=2000, generator=torch.Generator().manual_seed(4)).aurocs.std(0)
    torch.testing.assert_close(delong(scores, labels).standard_error, resampled, rtol=0.1, atol=0)


def test_the_paired_difference_is_that_of_all_pairs() -> None:
    first, labels = made(5, 40, 60)
    second = first + torch.randn(first.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64) / 2
    found = paired_difference(first, second, labels)
    pairs = kernel(first, labels) - kernel(second, labels)
    error = (pairs.mean(-1).var(-1) / 40 + pairs.mean(-2).var(-1) / 60).sqrt()
    torch.testing.assert_close(found.difference, pairs.mean((-1, -2)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.standard_error, error, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.z, found.difference / error, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.p, 2 * torch.special.ndtr(-found.z.abs()), rtol=1e-12, atol=0)


def test_the_paired_difference_agrees_with_paired_resamples() -> None:
    first, labels = made(7, 80, 120, rows=1)
    second = first + torch.randn(first.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    drawn = bootstrap_aurocs(torch.stack((first, second)), labels, draws=2000, generator=torch.Generator().manual_seed(9)).aurocs
    error = paired_difference(first, second, labels).standard_error
    torch.testing.assert_close(error, (drawn[:, 0] - drawn[:, 1]).std(0), rtol=0.1, atol=0)


def test_prompts_in_common_narrow_the_difference_of_alike_scores() -> None:
    first, labels = made(10, 80, 120)
    second = first + 0.1 * torch.randn(first.shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    paired, (one, other) = paired_difference(first, second, labels), (delong(each, labels) for each in (first, second))
    assert torch.equal(paired.difference, one.auroc - other.auroc)
    of_different_prompts = (one.standard_error.square() + other.standard_error.square()).sqrt()
    assert (paired.standard_error < of_different_prompts / 3).all()


def test_a_difference_of_one_thing_from_itself_is_0_and_untestable() -> None:
    scores, labels = made(14, 20, 20)
    found = paired_difference(scores, scores, labels)
    assert found.difference.tolist() == found.standard_error.tolist() == [0, 0, 0]
    assert found.z.isnan().all() and found.p.isnan().all()


def test_the_standard_error_is_exactly_0_where_the_data_hold_no_disagreement() -> None:
    labels = torch.tensor([True] * 7 + [False] * 11)
    apart = torch.where(labels, 1.0, -1.0) + torch.rand(18, generator=torch.Generator().manual_seed(15)) / 2
    found = delong(torch.stack((apart, -apart, torch.full((18,), 0.1))), labels)
    assert found.auroc.tolist() == [1, 0, 0.5]
    assert found.standard_error.tolist() == [0, 0, 0]


def test_one_prompt_in_a_class_leaves_the_standard_error_unknown() -> None:
    scores, labels = made(16, 1, 10)
    found = delong(scores, labels)
    assert found.auroc.isfinite().all()
    assert found.standard_error.isnan().all()


def test_unknown_rows_and_absent_classes_stay_unknown() -> None:
    scores, labels = made(17, 10, 10)
    scores[1, 3] = math.inf
    found = delong(scores, labels)
    assert found.auroc.isnan().tolist() == found.standard_error.isnan().tolist() == [False, True, False]
    assert delong(scores, torch.ones(20, dtype=torch.bool)).auroc.isnan().all()


def test_scores_of_other_prompts_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="not of the same prompts"):
        paired_difference(torch.zeros(2, 5), torch.zeros(2, 6), torch.ones(5, dtype=torch.bool))
