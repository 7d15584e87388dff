"""The headline is the worst set of negatives, with an interval that allows for having picked it."""

from __future__ import annotations

import math

import pytest
import torch
from modelscope_probes.statistics.delong import delong
from modelscope_probes.statistics.intervals import auroc_interval
from modelscope_probes.statistics.ranks import auroc
from modelscope_probes.statistics.worst_cell import worst_cell


def made(seed: int, shifts: tuple[float, ...] = (0.0, 0.5, -1.0), each: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two layers; 50 positives at 1.5 (in a cell of no meaning), `each` negatives at each shift in cells 10, 20, ..."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.cat((torch.full((50,), 99), torch.arange(len(shifts)).repeat_interleave(each) * 10 + 10))
    middle = torch.cat((torch.full((50,), 1.5), torch.tensor(shifts).repeat_interleave(each)))
    order = torch.randperm(len(places), generator=generator)
    scores = torch.randn((2, len(places)), generator=generator) + middle
    scores[1] = -scores[1]
    return scores[:, order], (places == 99)[order], places[order]


def test_each_cell_is_compared_with_all_positives() -> None:
    scores, positives, cells = made(0)
    found = worst_cell(scores, positives, cells)
    assert (found.cells.tolist(), found.negatives.tolist()) == ([10, 20, 30], [40, 40, 40])
    for place, cell in enumerate(found.cells):
        chosen = positives | (cells == cell)
        told = delong(scores[:, chosen], positives[chosen])
        assert torch.equal(found.aurocs[place], told.auroc) and torch.equal(found.standard_errors[place], told.standard_error)
    assert torch.equal(found.auroc, found.aurocs.amin(0))
    assert found.cells[found.worst].tolist() == [20, 30]  # the second layer's scores are mirrored


def test_the_interval_is_that_of_all_cells_together() -> None:
    scores, positives, cells = made(1)
    found = worst_cell(scores, positives, cells, 0.9)
    for layer in range(2):
        intervals = [
            auroc_interval(float(area), float(error), 50, 40, 1 - 0.1 / 3)
            for area, error in zip(found.aurocs[:, layer], found.standard_errors[:, layer], strict=True)
        ]
        assert found.low[layer] == min(one.low for one in intervals)
        assert found.high[layer] == min(one.high for one in intervals)


def test_the_worst_of_equal_cells_is_low_by_luck_and_its_interval_knows() -> None:
    true = 0.5 * (1 + math.erf(1.5 / 2))  # normal scores 1.5 apart
    covered, below = 0, 0
    for seed in range(200):
        scores, positives, cells = made(seed, (0.0,) * 6, 20)
        found = worst_cell(scores[:1], positives, cells)
        covered += int(found.low[0] <= true <= found.high[0])
        below += int(found.auroc[0] < true)
    assert below > 170
    assert covered >= 188  # Bonferroni: at least 95%, less 1.3 standard errors of 200


def test_a_mixture_hides_what_one_cell_shows() -> None:
    scores, positives, cells = made(2, (1.5, -3.0, -3.0, -3.0, -3.0))
    found = worst_cell(scores[:1], positives, cells)
    assert auroc(scores[0], positives) > 0.85
    assert found.auroc[0] < 0.65 and found.cells[found.worst[0]] == 10


def test_of_equal_cells_the_one_with_fewest_negatives_is_named_then_the_lowest_number() -> None:
    positives = torch.tensor([True] * 4 + [False] * 11)
    cells = torch.tensor([9] * 4 + [1] * 4 + [4] * 3 + [2] * 3 + [3])
    scores = torch.where(positives, 1.0, 0.0).repeat(3, 1)
    scores[1, 14] = 1.0  # the one of cell 3 is tied with the positives: lowest without an equal
    scores[2] = torch.nan
    assert worst_cell(scores[:1, :14], positives[:14], cells[:14]).worst.tolist() == [1]  # 4, 3 and 3 negatives in cells 1, 2 and 4
    found = worst_cell(scores, positives, cells)
    assert found.cells[found.worst].tolist() == [3, 3, 3]
    found = worst_cell(scores[:, :14], positives[:14], cells[:14])
    assert found.cells[found.worst].tolist() == [2, 2, 2]


def test_one_cell_is_the_plain_area() -> None:
    scores, positives, cells = made(3, (0.0,))
    found = worst_cell(scores, positives, cells)
    assert torch.equal(found.auroc, auroc(scores, positives))


def test_an_unknown_layer_is_unknown_alone() -> None:
    scores, positives, cells = made(4)
    scores[0, int(positives.nonzero()[0])] = math.nan
    found = worst_cell(scores, positives, cells)
    assert found.auroc.isnan().tolist() == found.low.isnan().tolist() == found.high.isnan().tolist() == [True, False]


def test_a_single_negative_leaves_the_interval_unknown_unless_it_is_below_all() -> None:
    positives = torch.tensor([True] * 9 + [False])
    cells = torch.zeros(10, dtype=torch.int64)
    scores = torch.stack((torch.arange(10.0), -torch.arange(10.0) + torch.tensor([0.0] * 9 + [4.5])))
    found = worst_cell(scores, positives, cells)
    assert found.auroc.tolist() == [0.0, pytest.approx(5 / 9)]
    assert (found.low[0], found.high[0].item()) == (0, pytest.approx(0.95))
    assert found.low[1].isnan() and found.high[1].isnan()


def test_further_dimensions_are_kept() -> None:
    scores, positives, cells = made(5)
    found = worst_cell(scores.reshape(2, 1, -1), positives, cells)
    assert found.aurocs.shape == (3, 2, 1) and found.worst.shape == found.low.shape == (2, 1)


def test_input_without_negatives_or_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="every prompt is a positive"):
        worst_cell(torch.randn(2, 3), torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"of shape \(3,\)"):
        worst_cell(torch.randn(2, 3), torch.ones(3, dtype=torch.bool), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"of shape \(3,\)"):
        worst_cell(torch.randn(2, 3), torch.ones(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
