"""Permuted labels keep what the design fixes, and the best of many layers is judged as such."""

from __future__ import annotations

import math

import pytest
import torch
from modelscope_probes.statistics import label_permutation
from modelscope_probes.statistics.label_permutation import max_t, permuted_aurocs, permuted_labels
from modelscope_probes.statistics.ranks import auroc


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_prompts_that_stand_alone_exchange_their_labels() -> None:
    labels = torch.arange(30) < 11
    found = permuted_labels(labels, None, 500, seeded(0))
    assert (found.how, found.labellings) == ("between groups", math.comb(30, 11))
    assert found.labels.shape == (500, 30)
    assert (found.labels.sum(-1) == 11).all()
    # each place is positive in 11 of 30 permutations; five standard errors
    torch.testing.assert_close(found.labels.double().mean(0), torch.full((30,), 11 / 30).double(), rtol=0, atol=0.11)


def test_groups_of_one_label_exchange_it_as_groups() -> None:
    groups = torch.tensor([4, 4, 4, 9, 9, 1, 1, 1, 1, 7])
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0, 1]).bool()
    found = permuted_labels(labels, groups, 300, seeded(1))
    assert (found.how, found.labellings) == ("between groups", 6)
    assert len(found.labels.unique(dim=0)) == 6
    for group in groups.unique():
        within = found.labels[:, groups == group]
        assert (within == within[:, :1]).all()
        assert 0.35 < within[:, 0].double().mean() < 0.65  # half, and five standard errors
    assert (sum(found.labels[:, groups == group][:, 0].long() for group in groups.unique()) == 2).all()


def test_twins_exchange_labels_between_themselves_only() -> None:
    groups = torch.tensor([3, 0, 1, 0, 3, 1, 2, 2, 2])
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 1, 1, 0]).bool()
    found = permuted_labels(labels, groups, 400, seeded(2))
    assert (found.how, found.labellings) == ("within groups", 2 * 2 * 2 * 3)
    for group, positives in ((0, 1), (1, 1), (2, 2), (3, 1)):
        assert (found.labels[:, groups == group].sum(-1) == positives).all()
    assert len(found.labels.unique(dim=0)) == 24
    # a place is positive with the share of its group; five standard errors
    share = torch.tensor([1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 2 / 3, 2 / 3, 2 / 3]).double()
    torch.testing.assert_close(found.labels.double().mean(0), share, rtol=0, atol=0.125)


@pytest.mark.parametrize(
    ("labels", "groups", "said"),
    [
        ([1, 0, 1, 0, 0], None, "between groups, 7 drawn of 10 possible labellings"),
        ([1, 0, 1, 0, 0], [0, 0, 1, 1, 1], "within groups, 7 drawn of 6 possible labellings"),
        ([1, 0, 1, 0, 0], [0, 0, 0, 0, 0], "within groups, 7 drawn of 10 possible labellings"),
        ([1] * 40 + [0] * 40, None, "between groups, 7 drawn of more than 10^15 possible labellings"),
        ([1, 0] * 2500, [at // 10 for at in range(5000)], "within groups, 7 drawn of more than 10^15 possible labellings"),
        ([1, 1, 1], None, "between groups, where only one labelling is possible, so nothing can be tested"),
    ],
)
def test_how_many_labellings_there_are_is_exact_or_said_to_be_more(labels: list[int], groups: list[int] | None, said: str) -> None:
    members = None if groups is None else torch.tensor(groups)
    assert permuted_labels(torch.tensor(labels).bool(), members, 7, seeded(12)).in_words == said


def test_the_same_state_gives_the_same_permutations() -> None:
    labels = torch.arange(20) % 3 == 0
    assert torch.equal(permuted_labels(labels, None, 9, seeded(3)).labels, permuted_labels(labels, None, 9, seeded(3)).labels)


def test_one_class_alone_can_be_labelled_in_one_way() -> None:
    found = permuted_labels(torch.ones(6, dtype=torch.bool), None, 4, seeded(4))
    assert found.labellings == 1 and found.labels.all()


def test_areas_under_permuted_labels_are_those_of_one_at_a_time() -> None:
    scores = torch.randint(9, (4, 40), generator=seeded(5)).float()  # ties
    groups = torch.arange(40) // torch.tensor([3, 5]).repeat(20)
    labels = (groups % 2 == 0) & (groups < 9)
    for members in (None, groups, torch.arange(40) // 20):
        permuted = permuted_labels(labels, members, 30, seeded(6)).labels
        assert torch.equal(permuted_aurocs(scores, permuted), torch.stack([auroc(scores, row) for row in permuted]))


def test_unknown_layers_and_draws_of_one_class_are_unknown() -> None:
    scores = torch.randn((2, 5), generator=seeded(7))
    scores[1, 2] = math.inf
    found = permuted_aurocs(scores, torch.tensor([[1, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool())
    assert found.isnan().tolist() == [[False, True], [True, True], [True, True]]


def test_p_counts_the_best_of_all_layers() -> None:
    permuted = torch.tensor([[0.4, 0.6], [0.7, 0.3], [0.5, 0.5], [0.2, 0.9]], dtype=torch.float64)  # best: .6 .7 .5 .9
    found = max_t(torch.tensor([0.65, 0.7], dtype=torch.float64), permuted)
    assert found.p.tolist() == [(1 + 2) / 5, (1 + 2) / 5]
    assert (found.layer, found.best_p) == (1, 0.6)


def test_unknown_layers_take_no_part() -> None:
    permuted = torch.tensor([[0.4, math.nan], [0.7, math.nan]], dtype=torch.float64)
    found = max_t(torch.tensor([0.8, math.nan], dtype=torch.float64), permuted)
    assert found.p[0].item() == pytest.approx(1 / 3) and found.p[1].isnan()
    assert found.layer == 0
    nothing = max_t(torch.tensor([math.nan], dtype=torch.float64), permuted[:, 1:])
    assert nothing.layer is None and math.isnan(nothing.best_p) and nothing.p.isnan().all()


def test_the_best_of_layers_of_noise_is_significant_one_time_in_twenty() -> None:
    labels = torch.arange(40) < 20
    corrected, naive = 0, 0
    for seed in range(200):
        generator = seeded(seed)
        scores = torch.randn((32, 40), generator=generator)
        observed = auroc(scores, labels)
        permuted = permuted_aurocs(scores, permuted_labels(labels, None, 199, generator).labels)
        corrected += max_t(observed, permuted).best_p <= 0.05
        best = int(observed.argmax())
        naive += max_t(observed[best : best + 1], permuted[:, best : best + 1]).best_p <= 0.05
    assert 3 <= corrected <= 19  # 99% of a binomial of 200 and 1/20
    assert naive > 100  # the same layer, as if nobody had looked for it


def test_a_real_effect_is_found_in_its_layer() -> None:
    labels = torch.arange(60) % 2 == 0
    scores = torch.randn((10, 60), generator=seeded(8))
    scores[7] += 1.5 * labels
    permuted = permuted_aurocs(scores, permuted_labels(labels, torch.arange(60) // 2, 499, seeded(9)).labels)
    found = max_t(auroc(scores, labels), permuted)
    assert (found.layer, found.best_p) == (7, 1 / 500)


def test_groups_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(4,\)"):
        permuted_labels(torch.ones(4, dtype=torch.bool), torch.zeros(5, dtype=torch.int64))


def test_blocks_of_draws_keep_the_design(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_permutation, "_VALUES_AT_ONCE", 70)
    labels, twins = torch.arange(20) % 2 == 0, torch.arange(20) // 2
    scores = torch.randn((3, 20), generator=seeded(10))
    for groups in (None, twins):
        permuted = permuted_labels(labels, groups, 50, seeded(11)).labels
        assert permuted.shape == (50, 20) and (permuted.sum(-1) == 10).all()
        assert len(permuted.unique(dim=0)) > 40
        assert torch.equal(permuted_aurocs(scores, permuted), torch.stack([auroc(scores, row) for row in permuted]))
    assert (permuted.reshape(50, 10, 2).sum(-1) == 1).all()
