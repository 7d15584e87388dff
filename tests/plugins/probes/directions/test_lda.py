"""LDA against scikit-learn, least squares, and the formula written out with a (d, d) inverse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from modelscope_probes.directions.difference_of_means import difference_of_means
from modelscope_probes.directions.lda import lda
from modelscope_probes.directions.linear_probe import scores
from oracles.probe_inputs import rows


def given(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    found = rows(name)
    return torch.from_numpy(found.x), torch.from_numpy(found.y)


def within_scatter(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    z = np.concatenate((x[y] - x[y].mean(0), x[~y] - x[~y].mean(0)))
    product: np.ndarray = z.T @ z / len(x)
    return product


def test_direction_and_bias_are_those_of_scikit_learn(answers: Any) -> None:
    found = lda(*given("tall"))
    assert not found.is_shrunk
    # both solve a well-conditioned system of five unknowns
    assert found.direction.tolist() == pytest.approx(answers["lda"]["direction"], rel=1e-11)
    assert float(found.bias) == pytest.approx(answers["lda"]["bias"], rel=1e-11)


@pytest.mark.parametrize("name", ["square", "wide"])
def test_the_shrinkage_is_ledoit_wolf_as_scikit_learn_has_it(answers: Any, name: str) -> None:
    found = lda(*given(name))
    assert found.is_shrunk
    assert float(found.shrinkage) == pytest.approx(answers["shrunk"][name]["shrinkage"], rel=1e-11)
    assert found.direction.tolist() == pytest.approx(answers["shrunk"][name]["direction"], rel=1e-10, abs=1e-12)


def test_without_shrinkage_it_is_the_least_squares_direction() -> None:
    x, y = rows("tall")
    least_squares = np.linalg.lstsq(x - x.mean(0), y - y.mean(), rcond=None)[0]
    found = lda(torch.from_numpy(x), torch.from_numpy(y)).direction.numpy()
    assert found @ least_squares / np.linalg.norm(found) / np.linalg.norm(least_squares) == pytest.approx(1, abs=1e-13)


def test_more_features_than_rows_give_what_the_full_matrix_gives() -> None:
    x, y = rows("wide")
    d = x.shape[1]
    found = lda(torch.from_numpy(x), torch.from_numpy(y))
    scatter, rho = within_scatter(x, y), float(found.shrinkage)
    full = (1 - rho) * scatter + rho * np.trace(scatter) / d * np.eye(d)
    assert found.direction.numpy() == pytest.approx(np.linalg.solve(full, x[y].mean(0) - x[~y].mean(0)), rel=1e-10)


def test_scores_are_log_odds_so_the_midpoint_scores_the_log_prior_ratio() -> None:
    x, y = given("tall")
    found = lda(x, y)
    middle = (x[y].mean(0) + x[~y].mean(0)) / 2
    assert found.log_prior_ratio == pytest.approx(math.log(24 / 36))
    assert float(scores(found, middle[None])) == pytest.approx(math.log(24 / 36), abs=1e-12)


def test_without_shrinkage_no_invertible_map_of_the_activations_moves_a_score() -> None:
    x, y = given("tall")
    mixing = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(5)
    torch.testing.assert_close(scores(lda(x @ mixing, y), x @ mixing), scores(lda(x, y), x), rtol=1e-9, atol=1e-9)


def test_a_feature_twice_over_shares_the_weight() -> None:
    x, y = given("tall")
    twice = torch.cat((x, x[:, :1]), dim=1)
    found, single = lda(twice, y), lda(x, y)
    # the Moore-Penrose inverse halves the weight; the cut of singular values costs some digits
    assert found.direction[[0, 5]].tolist() == pytest.approx([float(single.direction[0]) / 2] * 2, rel=1e-8)
    torch.testing.assert_close(scores(found, twice), scores(single, x), rtol=1e-8, atol=1e-8)


def test_a_singular_layer_leaves_the_others_alone() -> None:
    x, y = given("tall")
    singular = x.clone()
    singular[:, 2] = 7.0
    found = lda(torch.stack((x, singular)), y)
    torch.testing.assert_close(found.direction[0], lda(x, y).direction)
    assert abs(float(found.direction[1, 2])) < 1e-9
    rest = [0, 1, 3, 4]
    torch.testing.assert_close(found.direction[1, rest], lda(x[:, rest], y).direction, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the mean of equal float64 numbers is not always that number
@pytest.mark.parametrize("per_class", [1, 3, 20])
def test_rows_that_equal_their_class_mean_give_the_difference_of_means(per_class: int, dtype: torch.dtype) -> None:
    kinds = torch.randn(2, 7, dtype=dtype, generator=torch.Generator().manual_seed(4)) * 10
    y = torch.arange(2 * per_class) % 2 == 1
    found = lda(kinds[y.long()], y)
    torch.testing.assert_close(found.direction, difference_of_means(kinds[y.long()], y).direction)
    assert float(found.shrinkage) == 1


def test_scatter_in_one_direction_only_is_shrunk_a_little_rather_than_divided_by_zero() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 4.0], [-1.0, 4.0]])
    found = lda(x, torch.tensor([False, False, True, True]))
    assert float(found.shrinkage) == pytest.approx(1e-8)
    assert bool(found.direction.isfinite().all())
    assert float(found.direction[1]) > 0
