"""Logistic regression against scikit-learn, autograd, and itself one problem at a time."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from modelscope_probes.directions.linear_probe import scores
from modelscope_probes.directions.logistic import logistic
from oracles.probe_inputs import SHAPES, row_weights, rows
from torch.nn.functional import softplus

from modelscope_app.api import BadInput, JobFailed

FITTED = 2e-6
"""F is 1-strongly convex in w, so that a gradient norm of 1e-6 puts w within 1e-6 of the minimum; the oracle was asked for 1e-12."""


def given(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    found = rows(name)
    return torch.from_numpy(found.x), torch.from_numpy(found.y)


def gradient_norm(x: torch.Tensor, y: torch.Tensor, C: float, w: torch.Tensor, b: torch.Tensor) -> float:
    """Of F as the module states it, by autograd, in the coordinates of x."""
    w, b = w.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
    loss = w.square().sum() / 2 + C * softplus(-torch.where(y, 1.0, -1.0) * (x @ w + b)).sum()
    loss.backward()
    assert w.grad is not None and b.grad is not None
    return float(torch.cat((w.grad, b.grad[None])).norm())


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("name", SHAPES)
def test_direction_and_bias_are_those_of_scikit_learn(answers: Any, name: str, C: float) -> None:
    found, answer = logistic(*given(name), C), answers["logistic"][name][str(C)]
    assert found.direction.tolist() == pytest.approx(answer["direction"], abs=FITTED)
    assert float(found.bias) == pytest.approx(answer["bias"], abs=30 * FITTED)  # rows are up to 3 sqrt(d) from the origin
    assert float(found.gradient_norm) <= 1e-6


def test_row_weights_are_those_of_scikit_learn(answers: Any) -> None:
    x, y = given("tall")
    found = logistic(x, y, 1.0, torch.from_numpy(row_weights(len(y))))
    assert found.direction.tolist() == pytest.approx(answers["weighted"]["direction"], abs=FITTED)
    assert float(found.bias) == pytest.approx(answers["weighted"]["bias"], abs=30 * FITTED)


@pytest.mark.parametrize("C", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("name", SHAPES)
def test_the_gradient_is_as_small_as_it_says(name: str, C: float) -> None:
    x, y = given(name)
    x[:, 1] = 3000 + 300 * x[:, 1]  # a massive activation, as language models have them
    found = logistic(x, y, C)
    rounding = 1e-14 * C * float(x.norm())  # of the sum that autograd forms over uncentred rows
    assert gradient_norm(x, y, C, found.direction, found.bias) <= float(found.gradient_norm) + rounding
    assert float(found.gradient_norm) <= 1e-6


def test_separable_rows_have_a_finite_fit() -> None:
    x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    found = logistic(x, torch.tensor([False, False, True, True]), 1e6)
    assert float(found.gradient_norm) <= 1e-6
    assert 1 < float(found.direction) < 30
    assert abs(float(found.bias)) < 1e-6


def test_rows_of_very_different_sizes_converge() -> None:
    """Without the line search two of these diverge, and without its allowance for rounding one gets stuck."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(210):
        n, d = int(torch.randint(4, 30, (1,), generator=generator)), int(torch.randint(1, 4, (1,), generator=generator))
        x = torch.randn(n, d, generator=generator).double() * torch.exp(2 * torch.randn(n, 1, generator=generator).double())
        y = torch.rand(n, generator=generator) < 0.3
        if 0 < int(y.sum()) < n:
            C = float(10 ** (torch.rand(1, generator=generator) * 8 - 2))
            assert float(logistic(x, y, C).gradient_norm) <= 1e-6


def test_a_weight_of_zero_leaves_a_row_out() -> None:
    x, y = given("tall")
    folds = torch.arange(60) % 5
    weights = (folds != torch.arange(5)[:, None]).double()
    together = logistic(x, y, 0.5, weights)
    assert together.direction.shape == (5, 5)
    for fold in range(5):
        alone = logistic(x[folds != fold], y[folds != fold], 0.5)
        torch.testing.assert_close(together.direction[fold], alone.direction, rtol=0, atol=FITTED)
        torch.testing.assert_close(together.bias[fold], alone.bias, rtol=0, atol=30 * FITTED)


def test_a_weight_of_two_is_the_row_twice() -> None:
    x, y = given("wide")
    weights = torch.ones(20)
    weights[3] = 2
    twice = logistic(torch.cat((x, x[3:4])), torch.cat((y, y[3:4])))
    torch.testing.assert_close(logistic(x, y, 1.0, weights).direction, twice.direction, rtol=0, atol=FITTED)


@pytest.mark.parametrize("features", [4, 90])
@pytest.mark.parametrize("elements", [1, 2**25])
def test_folds_strengths_and_layers_are_one_call(monkeypatch: pytest.MonkeyPatch, features: int, elements: int) -> None:
    module = importlib.import_module("modelscope_probes.directions.logistic")
    monkeypatch.setattr(module, "_ELEMENTS", elements)  # 1: every problem in a part of its own
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(3, 40, features, dtype=torch.float64, generator=generator) * 2 + 1
    y = torch.rand(40, generator=generator) < 0.5
    weights = (torch.rand(5, 1, 1, 40, generator=generator) < 0.8).double()
    C = torch.tensor([0.01, 1.0])[:, None]
    together = logistic(x, y, C, weights)
    assert together.direction.shape == (5, 2, 3, features)
    for fold in range(5):
        for strength in range(2):
            for layer in range(3):
                alone = logistic(x[layer], y, float(C[strength, 0]), weights[fold, 0, 0])
                torch.testing.assert_close(together.direction[fold, strength, layer], alone.direction, rtol=0, atol=FITTED)
                torch.testing.assert_close(together.bias[fold, strength, layer], alone.bias, rtol=0, atol=10 * FITTED)


def test_permuted_labels_are_one_call_as_well() -> None:
    x, y = given("tall")
    labels = torch.stack([y[torch.randperm(60, generator=torch.Generator().manual_seed(seed))] for seed in range(4)])
    together = logistic(x, labels)
    for row, direction in zip(labels, together.direction, strict=True):
        torch.testing.assert_close(direction, logistic(x, row).direction, rtol=0, atol=FITTED)


def test_each_problem_stops_by_itself() -> None:
    x, y = given("tall")
    together = logistic(x, y, torch.tensor([1e-6, 1e4]))
    assert together.iterations.tolist() == [int(logistic(x, y, C).iterations) for C in (1e-6, 1e4)]
    assert int(together.iterations[0]) < int(together.iterations[1])


def test_the_direction_lies_in_the_span_of_the_centred_rows() -> None:
    x, y = given("wide")
    direction = logistic(x, y).direction
    centred = x - x.mean(0)
    inside = torch.linalg.lstsq(centred.T, direction[:, None]).solution  # coefficients of the rows
    torch.testing.assert_close((centred.T @ inside)[:, 0], direction, rtol=0, atol=1e-12)


def test_the_free_intercept_makes_mean_probability_the_base_rate() -> None:
    x, y = given("square")
    probability = scores(logistic(x, y, 0.1), x).sigmoid()
    assert float(probability.mean()) == pytest.approx(float(y.double().mean()), abs=1e-6)  # g_b = 0, times 1 / (C n) = 1/3


def test_equal_rows_give_no_direction_and_the_base_rate() -> None:
    found = logistic(torch.full((10, 3), 7.0), torch.arange(10) < 3)
    assert found.direction.tolist() == [0.0, 0.0, 0.0]
    assert float(found.bias.sigmoid()) == pytest.approx(0.3, abs=1e-6)


def test_a_fit_that_runs_out_of_steps_fails() -> None:
    with pytest.raises(JobFailed, match=r"1 of 2 fits had a gradient norm above 1e-06, at worst .* after up to 4 Newton steps"):
        logistic(*given("tall"), torch.tensor([1e-4, 1e4]), most_steps=4)


def test_a_fold_that_leaves_one_class_is_refused() -> None:
    x, y = given("tall")
    with pytest.raises(BadInput, match="in every problem"):
        logistic(x, y, 1.0, torch.stack((torch.ones(60), y.double())))


@pytest.mark.parametrize(("C", "weight"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_no_strength_and_negative_weights_are_refused(C: float, weight: float) -> None:
    with pytest.raises(BadInput, match="must be positive"):
        logistic(*given("tall"), C, torch.full((60,), weight))
