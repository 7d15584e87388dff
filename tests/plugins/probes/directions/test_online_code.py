"""The online code: what it counts, what it may not look at, and what it says of labels that mean nothing."""

from __future__ import annotations

import math

import pytest
import torch
from modelscope_probes.directions.linear_probe import scores
from modelscope_probes.directions.logistic import logistic
from modelscope_probes.online_code import PORTIONS, STRENGTHS, online_code, portion_ends, shuffled_groups

from modelscope_app.api import BadInput


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def separated(distance: float, n: int = 200, d: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = generator(seed)
    y = torch.rand(n, generator=random) < 0.5
    x = torch.randn(n, d, dtype=torch.float64, generator=random)
    x[:, 0] += distance * y
    return x, y


def test_the_bits_are_those_of_probes_fitted_on_the_rows_before() -> None:
    x, y = separated(2.0)
    found = online_code(x, y, generator(5))
    order, _ = shuffled_groups(torch.arange(200), generator(5))
    x, y = x[order], y[order]
    bits = [float(found.ends[0])]
    for number, (start, end) in enumerate(zip(found.ends, found.ends[1:], strict=False)):
        before = x[:start]
        C = float(found.strengths[number]) / float((before - before.mean(0)).square().sum(1).mean())
        p = scores(logistic(before, y[:start], C), x[start:end]).sigmoid()
        bits.append(float(-torch.where(y[start:end], p, 1 - p).log2().sum()))
    assert found.portion_bits.tolist() == pytest.approx(bits, abs=1e-3)  # w is exact to 1e-6, for 200 rows some lengths from the origin
    assert float(found.bits) == pytest.approx(sum(bits), abs=1e-3)
    assert found.uniform_bits == 200
    assert float(found.compression) == pytest.approx(200 / sum(bits), rel=1e-4)


def test_the_strength_is_the_one_that_coded_the_rows_before_best() -> None:
    x, y = separated(1.0)
    found = online_code(x, y, generator(5))
    order, _ = shuffled_groups(torch.arange(200), generator(5))
    x, y = x[order], y[order]
    spent = dict.fromkeys(STRENGTHS, 0.0)
    for number, (start, end) in enumerate(zip(found.ends, found.ends[1:], strict=False)):
        assert float(found.strengths[number]) == min(spent, key=lambda strength: spent[strength])
        before = x[:start]
        for strength in STRENGTHS:
            C = strength / float((before - before.mean(0)).square().sum(1).mean())
            p = scores(logistic(before, y[:start], C), x[start:end]).sigmoid()
            spent[strength] += float(-torch.where(y[start:end], p, 1 - p).log2().sum())
    assert len({*found.strengths.tolist()}) > 1


def test_no_portion_is_coded_with_a_look_at_its_own_labels_or_later_ones() -> None:
    x, y = separated(1.0)
    order, _ = shuffled_groups(torch.arange(200), generator(5))
    found = online_code(x, y, generator(5))
    last = order[found.ends[-2] :]
    changed = y.clone()
    changed[last] = ~changed[last]
    again = online_code(x, changed, generator(5))
    assert again.strengths.tolist() == found.strengths.tolist()
    assert again.portion_bits[:-1].tolist() == found.portion_bits[:-1].tolist()
    assert float(again.portion_bits[-1]) > float(found.portion_bits[-1])


def test_random_labels_are_not_compressed() -> None:
    compressions = []
    for seed in range(8):
        x, _ = separated(0.0, seed=seed)
        y = torch.rand(200, generator=generator(100 + seed)) < 0.5
        compressions.append(float(online_code(x, y, generator(seed)).compression))
    mean = sum(compressions) / 8
    assert mean <= 1
    assert mean > 0.85  # an intercept learnt from a handful of rows costs a few bits of 200
    assert max(compressions) < 1.06  # by luck, an unbalanced draw of 200 labels


def test_better_separated_classes_cost_fewer_bits() -> None:
    bits = [float(online_code(*separated(distance), generator()).bits) for distance in (0.0, 1.0, 2.0, 4.0, 8.0)]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] < 60


def test_neither_origin_nor_scale_of_the_activations_matters() -> None:
    x, y = separated(1.5)
    here, there = online_code(x, y, generator()), online_code(50 * x - 300, y, generator())
    assert here.strengths.tolist() == there.strengths.tolist()
    torch.testing.assert_close(here.portion_bits, there.portion_bits, rtol=0, atol=1e-3)


def test_layers_are_coded_as_if_alone_in_the_same_order() -> None:
    near, y = separated(1.0)
    far = near.clone()
    far[:, 0] += 3 * y
    together = online_code(torch.stack((near, far)), y, generator(2))
    for layer, x in enumerate((near, far)):
        alone = online_code(x, y, generator(2))
        assert together.strengths[layer].tolist() == alone.strengths.tolist()
        torch.testing.assert_close(together.portion_bits[layer], alone.portion_bits, rtol=0, atol=1e-3)
    assert float(together.compression[1]) > float(together.compression[0])


def test_portions_end_where_voita_and_titov_end_them() -> None:
    y = torch.arange(1000) % 2 == 0
    ends, is_enlarged = portion_ends(y, torch.arange(1, 1001))
    assert ends == [2, 4, 8, 16, 32, 62, 125, 250, 500, 1000]
    assert is_enlarged  # one row, 0.1 %, holds one class only
    ends, is_enlarged = portion_ends(torch.arange(10_000) % 2 == 0, torch.arange(1, 10_001))
    assert ends == [round(10_000 * share) for share in PORTIONS]
    assert not is_enlarged


def test_portions_end_at_the_nearest_row() -> None:
    ends, _ = portion_ends(torch.arange(300) % 2 == 0, torch.arange(1, 301))
    assert ends == [2, 5, 10, 19, 38, 75, 150, 300]  # 4.8 and 18.75 are rounded up


def test_the_first_portion_grows_until_both_classes_have_come() -> None:
    y = torch.zeros(100, dtype=torch.bool)
    y[40:] = True
    ends, is_enlarged = portion_ends(y, torch.arange(1, 101))
    assert ends == [41, 50, 100]
    assert is_enlarged


def test_groups_come_together_and_end_portions() -> None:
    groups = torch.tensor([7, 3, 7, 3, 5, 5, 5, 9])
    order, ends = shuffled_groups(groups, generator(1))
    assert sorted(order.tolist()) == list(range(8))
    pieces = [groups[order[start:end]].tolist() for start, end in zip([0, *ends.tolist()], ends.tolist(), strict=False)]
    assert sorted(pieces) == [[3, 3], [5, 5, 5], [7, 7], [9]]
    assert order.tolist() != shuffled_groups(groups, generator(2))[0].tolist()

    x, y = separated(2.0, n=90)
    found = online_code(x, y, generator(), torch.arange(90) // 3)
    assert all(end % 3 == 0 for end in found.ends)


def test_one_group_is_one_portion_at_a_bit_a_label() -> None:
    x, y = separated(2.0, n=20)
    found = online_code(x, y, generator(), torch.zeros(20))
    assert found.ends == (20,)
    assert float(found.compression) == 1
    assert found.strengths.shape == (0,)


def test_unequal_classes_of_no_meaning_cost_their_entropy() -> None:
    x = torch.randn(400, 3, dtype=torch.float64, generator=generator(1))
    y = torch.arange(400) % 10 == 0
    entropy = 400 * -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))
    found = online_code(x, y, generator())
    assert entropy < float(found.bits) < entropy + 30  # a few bits for each doubling of the rows


def test_group_numbers_for_other_rows_are_refused() -> None:
    x, y = separated(1.0)
    with pytest.raises(BadInput, match="as many group numbers"):
        online_code(x, y, generator(), torch.arange(3))
