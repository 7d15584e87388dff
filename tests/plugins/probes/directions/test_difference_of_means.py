"""The difference of means against one matrix product."""

from __future__ import annotations

import torch
from modelscope_probes.directions.difference_of_means import difference_of_means
from modelscope_probes.directions.linear_probe import scores
from oracles.probe_inputs import rows


def test_it_is_a_signed_mean_of_the_rows() -> None:
    given = rows("tall")
    x, y = torch.from_numpy(given.x), torch.from_numpy(given.y)
    signs = torch.where(y, 1.0 / y.sum(), -1.0 / (~y).sum()).double()
    found = difference_of_means(x, y)
    torch.testing.assert_close(found.direction, signs @ x)


def test_the_middle_of_the_means_scores_zero() -> None:
    given = rows("wide")
    x, y = torch.from_numpy(given.x), torch.from_numpy(given.y)
    middle = (x[y].mean(0) + x[~y].mean(0)) / 2
    assert abs(float(scores(difference_of_means(x, y), middle[None]))) < 1e-12  # sums of 40 products of order 10


def test_two_rows_are_enough() -> None:
    found = difference_of_means(torch.tensor([[1.0, 0.0], [3.0, 1.0]]), torch.tensor([False, True]))
    assert found.direction.tolist() == [2.0, 1.0]
    assert float(found.bias) == -4.5
