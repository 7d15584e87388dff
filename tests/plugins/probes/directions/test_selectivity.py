"""Control labels belong to types, and selectivity tells a property from a lookup table."""

from __future__ import annotations

import pytest
import torch
from modelscope_probes.directions.logistic import logistic
from modelscope_probes.selectivity import accuracy, control_labels, selectivity, spread_folds

from modelscope_app.api import BadInput


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def typed_rows(d: int, types: int = 20, rows: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows that carry their type, of `d` features, and a property of the row itself along the first."""
    random = generator(1)
    groups = torch.arange(types).repeat_interleave(rows)
    y = torch.rand(types * rows, generator=random) < 0.5
    embedding = torch.randn(types, d, dtype=torch.float64, generator=random)
    x = embedding[groups] + 0.3 * torch.randn(types * rows, d, dtype=torch.float64, generator=random)
    x[:, 0] = torch.where(y, 2.0, -2.0) + 0.3 * x[:, 0]
    return x, y, groups


@pytest.mark.parametrize("sizes", [[1] * 30, [4] * 11, [1, 2, 3, 4, 5, 6, 20], [9, 1]])
def test_all_rows_of_a_type_have_one_label_and_the_classes_are_balanced(sizes: list[int]) -> None:
    groups = torch.repeat_interleave(torch.arange(len(sizes)) * 3 + 5, torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=generator(9))]
    for seed in range(20):
        labels = control_labels(groups, generator(seed))
        for kind in groups.unique():
            assert len(labels[groups == kind].unique()) == 1
        assert abs(int(labels.sum()) - int((~labels).sum())) <= max(sizes)
        assert len(labels.unique()) == 2


def test_the_label_of_a_type_is_a_fair_coin() -> None:
    groups = torch.arange(3)
    ones = sum(control_labels(groups, generator(seed)).double() for seed in range(600))
    assert float((ones / 600 - 0.5).abs().max()) < 0.1  # five standard errors of 600 coins


def test_the_same_seed_gives_the_same_labels() -> None:
    groups = torch.arange(50) // 2
    assert control_labels(groups, generator(3)).tolist() == control_labels(groups, generator(3)).tolist()
    assert control_labels(groups, generator(3)).tolist() != control_labels(groups, generator(4)).tolist()


def test_the_rows_of_a_type_are_spread_over_the_folds() -> None:
    groups = (torch.arange(60) // 6)[torch.randperm(60, generator=generator(5))]
    fold = spread_folds(groups, 3, generator())
    for kind in range(10):
        assert fold[groups == kind].bincount(minlength=3).tolist() == [2, 2, 2]


def test_a_property_of_rows_is_selective_for_a_probe_too_small_to_memorise() -> None:
    found = selectivity(*typed_rows(3), lambda x, y: logistic(x, y), generator())
    assert float(found.task) > 0.98
    assert float(found.control) < 0.8
    assert float(found.selectivity) == pytest.approx(float(found.task) - float(found.control))


def test_a_probe_that_can_store_a_label_for_each_type_is_not_selective() -> None:
    found = selectivity(*typed_rows(60), lambda x, y: logistic(x, y), generator())
    assert float(found.task) > 0.98
    assert float(found.control) > 0.98
    assert abs(float(found.selectivity)) < 0.03


def test_layers_are_judged_as_if_alone() -> None:
    x, y, groups = typed_rows(3)
    noise = torch.randn(x.shape, dtype=torch.float64, generator=generator(7))
    together = selectivity(torch.stack((x, noise)), y, groups, lambda x, y: logistic(x, y), generator())
    alone = selectivity(x, y, groups, lambda x, y: logistic(x, y), generator())
    assert float(together.task[0]) == float(alone.task)
    assert float(together.control[0]) == float(alone.control)
    assert 0.35 < float(together.task[1]) < 0.65


def test_types_seen_once_are_refused() -> None:
    x, y, _ = typed_rows(3)
    with pytest.raises(BadInput, match="two rows or more"):
        selectivity(x, y, torch.arange(len(y)), lambda x, y: logistic(x, y), generator())


def test_a_single_type_is_refused() -> None:
    with pytest.raises(BadInput, match="two input types"):
        control_labels(torch.zeros(9), generator())


def test_a_score_of_zero_is_half_right() -> None:
    labels = torch.tensor([True, True, False, False])
    assert float(accuracy(torch.tensor([1.0, 0.0, -2.0, 3.0]), labels)) == (1 + 0.5 + 1 + 0) / 4
    assert accuracy(torch.zeros(3, 4), labels).tolist() == [0.5] * 3
