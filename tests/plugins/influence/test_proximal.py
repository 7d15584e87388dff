"""The proximal Bregman response: its formula, its derivative, the Gauss-Newton matrix, and that the two agree for little weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modelscope_influence.ekfac import Curvature
from modelscope_influence.gauss_newton import conjugate_gradients, exact_preconditioned, gauss_newton_products
from modelscope_influence.objectives import Scored
from modelscope_influence.proximal import (
    Coordinates,
    Matrices,
    Replaced,
    Rows,
    divergence,
    measures,
    minimised,
    proximal_objective,
    trained_anew,
    training_objective,
    untrained,
)
from modelscope_influence.validate_report import agreement, lds, rank_correlation, top_overlap
from modelscope_influence.weights import chosen_weights
from plugins.probes.score.in_process import saved_llama

from modelscope_app.api import TokenBatch
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.models import build_model
from modelscope_app.testing import items_source

ROWS, QUERIES, CLASSES = 30, 6, 3
DAMPINGS = {"layers.0": 0.02, "layers.1": 0.03}
DOUBLE = torch.float64


class Classified:
    """Random features and labels, as a task of a model."""

    def __init__(self, model: Any, count: int, seed: int, at_once: int = 7) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.features = torch.randn(count, 4, generator=generator, dtype=DOUBLE)
        self.labels = torch.randint(CLASSES, (count,), generator=generator)
        self.model, self.ids, self.at_once = model, range(count), at_once

    def source(self, ids: Any = None) -> Any:
        return items_source(list(self.ids if ids is None else ids), self.at_once)

    def forward(self, batch: Any) -> Scored:
        logits = self.model.module(self.features[list(batch)])
        return Scored(logits, self.labels[list(batch)], torch.arange(len(batch)), tuple(batch), None)

    def positions(self, id: int) -> int:
        return 1


class Toy:
    """A tiny classifier in float64 with everything that is asked of it."""

    def __init__(self, folder: Path, is_kept: torch.Tensor | None = None) -> None:
        from safetensors.torch import save_file

        generator = torch.Generator().manual_seed(0)
        shapes = {"layers.0.weight": (5, 4), "layers.0.bias": (5,), "layers.1.weight": (CLASSES, 5), "layers.1.bias": (CLASSES,)}
        folder.mkdir(parents=True)
        save_file({name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "mlp", "layer_sizes": [4, 5, CLASSES], "activation": "tanh"}))
        self.model = build_model(open_checkpoint(folder), "cpu", "float64")
        self.weights = chosen_weights(self.model, "all")
        self.train, self.queries = Classified(self.model, ROWS, 1), Classified(self.model, QUERIES, 2)
        self.replaced = Replaced(self.model, self.weights, DOUBLE)
        self.is_kept = torch.ones(ROWS, dtype=torch.bool) if is_kept is None else is_kept
        self.rows = Rows(self.replaced, self.train, self.is_kept, lambda: None)
        plain = {weight.name: Curvature(None, None, ROWS, ROWS) for weight in self.weights}
        self.coordinates = Coordinates(plain, 0.1, self.replaced.start)

    def random_change(self, size: float = 0.3, seed: int = 3) -> Matrices:
        generator = torch.Generator().manual_seed(seed)
        return {name: size * torch.randn(start.shape, generator=generator, dtype=DOUBLE) for name, start in self.replaced.start.items()}

    def logits(self, flat: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """(row, class), written out; `flat` holds both matrices with their biases as last column."""
        first, last = flat[:25].view(5, 5), flat[25:].view(CLASSES, 6)
        return torch.tanh(features @ first[:, :4].T + first[:, 4]) @ last[:, :5].T + last[:, 5]

    def flat(self, matrices: Matrices) -> torch.Tensor:
        return torch.cat([matrix.flatten() for matrix in matrices.values()])

    def brute(self, flat: torch.Tensor, removed: int, epsilon: float) -> torch.Tensor:
        """The objective, a row at a time."""
        start = self.flat(self.replaced.start)
        total = torch.zeros((), dtype=DOUBLE)
        for row in self.is_kept.nonzero()[:, 0].tolist():
            before, after = (self.logits(at, self.train.features[row : row + 1])[0].log_softmax(0) for at in (start, flat))
            total = total + sum(before[c].exp() * (before[c] - after[c]) for c in range(CLASSES)) / int(self.is_kept.sum())
            if row == removed:
                total = total - epsilon * (after[self.train.labels[row]] - before[self.train.labels[row]])
        for damping, part in zip(DAMPINGS.values(), (slice(0, 25), slice(25, None)), strict=True):
            total = total + damping / 2 * (flat - start)[part].square().sum()
        return total


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "toy")


@pytest.mark.parametrize("leaves_out", [False, True])
def test_the_objective_and_its_gradient_are_those_of_the_formula(tmp_path: Path, leaves_out: bool) -> None:
    is_kept = torch.ones(ROWS, dtype=torch.bool)
    is_kept[[4, 9]] = not leaves_out
    toy = Toy(tmp_path / "toy", is_kept)
    change = toy.random_change()
    value, gradient = proximal_objective(toy.rows, DAMPINGS, removed=3, epsilon=-1 / ROWS)(change)
    flat = (toy.flat(toy.replaced.start) + toy.flat(change)).requires_grad_()
    expected = toy.brute(flat, 3, -1 / ROWS)
    expected.backward()  # type: ignore[no-untyped-call]
    assert value == pytest.approx(float(expected.detach()), rel=1e-10)
    torch.testing.assert_close(toy.flat(gradient), flat.grad, rtol=1e-9, atol=1e-13)


def test_a_gradient_that_is_not_finite_is_no_solution(toy: Toy) -> None:
    def objective(change: Any) -> Any:
        return float("nan"), {name: torch.full_like(matrix, torch.nan) for name, matrix in change.items()}

    found = minimised(objective, toy.coordinates, toy.replaced.unmoved(), 100, 1e-6)
    assert not found.has_converged and found.last_norm == float("inf")


def test_with_no_weight_removed_the_checkpoint_is_the_optimum(toy: Toy) -> None:
    objective = proximal_objective(toy.rows, DAMPINGS, removed=3, epsilon=0.0)
    found = minimised(objective, toy.coordinates, toy.replaced.unmoved(), 100, 1e-6)
    assert found.has_converged and float(toy.flat(found.change).abs().max()) < 1e-12
    away = objective(toy.random_change(0.01))[0]
    assert objective(toy.replaced.unmoved())[0] == pytest.approx(0, abs=1e-15) and away > 0


def test_a_solved_removal_is_a_stationary_point_of_the_formula(toy: Toy) -> None:
    found = minimised(proximal_objective(toy.rows, DAMPINGS, 3, -1 / ROWS), toy.coordinates, toy.replaced.unmoved(), 2000, 1e-8)
    assert found.has_converged and found.last_norm <= 1e-8 * found.first_norm and found.steps > 3
    flat = (toy.flat(toy.replaced.start) + toy.flat(found.change)).requires_grad_()
    toy.brute(flat, 3, -1 / ROWS).backward()  # type: ignore[no-untyped-call]
    assert flat.grad is not None and float(flat.grad.norm()) < 2e-8 * found.first_norm


def test_one_that_runs_out_of_steps_says_so(toy: Toy) -> None:
    found = minimised(proximal_objective(toy.rows, DAMPINGS, 3, -1 / ROWS), toy.coordinates, toy.replaced.unmoved(), 2, 1e-10)
    assert not found.has_converged and found.steps == 2 and found.last_norm > 1e-10 * found.first_norm


def dense_gauss_newton(toy: Toy) -> torch.Tensor:
    start = toy.flat(toy.replaced.start)
    jacobian = torch.autograd.functional.jacobian(lambda flat: toy.logits(flat, toy.train.features), start)  # (row, class, parameter)
    chances = toy.logits(start, toy.train.features).softmax(-1)
    curved = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    return torch.einsum("ncp,ncd,ndq->pq", jacobian, curved, jacobian) / ROWS


def stacked(*directions: Matrices) -> Matrices:
    return {name: torch.stack([direction[name] for direction in directions]) for name in directions[0]}


def solved(toy: Toy, right: Matrices, tolerance: float) -> tuple[Matrices, float]:
    found, told = exact_preconditioned(toy.rows, toy.replaced.start, toy.coordinates, DAMPINGS, stacked(right), 500, tolerance)
    return {name: matrices[0] for name, matrices in found.items()}, float(told.residual)


def test_gauss_newton_products_are_those_of_the_dense_matrix(toy: Toy) -> None:
    one, other = toy.random_change(), toy.random_change(seed=4)
    found = gauss_newton_products(toy.rows, toy.replaced.start, stacked(one, other))
    for at, direction in enumerate((one, other)):
        product = toy.flat({name: matrices[at] for name, matrices in found.items()})
        torch.testing.assert_close(product, dense_gauss_newton(toy) @ toy.flat(direction), rtol=1e-10, atol=1e-13)


def test_the_exact_solve_is_that_of_the_dense_matrix(toy: Toy) -> None:
    damped = dense_gauss_newton(toy) + torch.diag(torch.tensor([0.02] * 25 + [0.03] * 18, dtype=DOUBLE))
    right = toy.random_change(seed=5)
    found, residual = solved(toy, right, 1e-12)
    assert residual <= 1e-12
    torch.testing.assert_close(toy.flat(found), torch.linalg.solve(damped, toy.flat(right)), rtol=1e-8, atol=1e-10)


def test_for_little_weight_the_exact_solve_predicts_the_response(toy: Toy) -> None:
    """Slope 1 within 0.05 and r at least 0.95 at a hundredth of a row's weight; at the whole weight it need not be."""
    epsilon = -1 / ROWS / 100
    before = measures(toy.replaced, toy.queries, "loss", toy.replaced.unmoved())
    predicted, found = [], []
    for removed in range(12):
        objective = proximal_objective(toy.rows, DAMPINGS, removed, epsilon)
        response = minimised(objective, toy.coordinates, toy.replaced.unmoved(), 2000, 1e-6)
        assert response.has_converged
        found.append(measures(toy.replaced, toy.queries, "loss", response.change) - before)
        _, gradient = toy.rows.value_and_gradient(toy.replaced.unmoved(), lambda s, b, ids, m=removed: s.losses()[ids == m].sum())
        direction, _ = solved(toy, gradient, 1e-10)
        small = {name: -epsilon * 1e-4 * matrix for name, matrix in direction.items()}  # a difference quotient along the solution
        predicted.append((measures(toy.replaced, toy.queries, "loss", small) - before) * 1e4)
    told = agreement(torch.stack(predicted).flatten().numpy(), torch.stack(found).flatten().numpy())
    assert told.slope == pytest.approx(1, abs=0.05) and told.r >= 0.95, told


def test_coordinates_transform_gradients_by_the_chain_rule(toy: Toy) -> None:
    generator = torch.Generator().manual_seed(4)
    curvatures = {}
    for weight in toy.weights:
        from modelscope_influence.contractions import Basis

        orthogonal = [torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=DOUBLE))[0] for n in (weight.inputs, weight.outputs)]
        curvatures[weight.name] = Curvature(
            Basis(*orthogonal), torch.rand(weight.outputs, weight.inputs, generator=generator, dtype=DOUBLE), ROWS, ROWS
        )
    coordinates = Coordinates(curvatures, 0.1, toy.replaced.start)
    gradient = toy.random_change(seed=6)
    x = torch.randn(43, generator=generator, dtype=DOUBLE)
    assert float(coordinates.gradient(gradient) @ x) == pytest.approx(
        float(toy.flat(gradient) @ toy.flat(coordinates.change(x))), rel=1e-10
    )
    twice = coordinates.change(coordinates.gradient(gradient))
    for name, curvature in curvatures.items():
        torch.testing.assert_close(twice[name], curvature.precondition(gradient[name], 0.1), rtol=1e-9, atol=1e-12)


def test_the_divergence_is_kullback_and_leiblers_and_exact_for_tiny_changes() -> None:
    generator = torch.Generator().manual_seed(0)
    before, change = (torch.randn(20, 5, generator=generator, dtype=DOUBLE) for _ in range(2))
    chances = before.softmax(-1)
    plain = (chances * (before.log_softmax(-1) - (before + change).log_softmax(-1))).sum(-1)
    torch.testing.assert_close(divergence(before, before + change), plain, rtol=1e-10, atol=1e-14)
    tiny = divergence(before, before + 1e-5 * change)
    second_order = 0.5e-10 * ((chances * change**2).sum(-1) - (chances * change).sum(-1) ** 2)
    torch.testing.assert_close(tiny, second_order, rtol=1e-4, atol=0)


def test_training_anew_ends_where_the_training_objective_is_small(toy: Toy) -> None:
    weighting = torch.full((ROWS,), 1 / ROWS, dtype=DOUBLE)
    objective = training_objective(toy.rows, toy.replaced.start, weighting, 0.05)
    first = untrained(toy.replaced.start, toy.weights, torch.Generator().manual_seed(0))
    begin = objective({name: first[name] - start for name, start in toy.replaced.start.items()})[0]
    change = trained_anew(objective, first, toy.replaced.start, 1500, 0.02)
    end, gradient = objective(change)
    assert end < 0.8 * begin and float(toy.flat(gradient).norm()) < 1e-3
    again = minimised(objective, toy.coordinates, change, 1, 1e-4)
    assert again.first_norm < 1e-2


def test_calls_leave_the_models_parameters_as_they_are(toy: Toy) -> None:
    before = {name: (id(parameter), parameter.clone()) for name, parameter in toy.model.module.named_parameters()}
    toy.rows.value_and_gradient(toy.random_change(), lambda s, b, ids: s.losses().sum())
    with pytest.raises(ZeroDivisionError):
        toy.replaced.call(toy.replaced.moved(toy.random_change()), lambda: 1 // 0)
    for name, parameter in toy.model.module.named_parameters():
        assert id(parameter) == before[name][0] and torch.equal(parameter, before[name][1])
        assert not parameter.requires_grad and parameter.grad is None


def test_other_weights_answer_as_a_model_that_has_them(tmp_path: Path) -> None:
    """Tied head and all: the embedding is replaced with it."""
    model = build_model(open_checkpoint(saved_llama(tmp_path / "tied", tie_word_embeddings=True)), "cpu", "float32")
    weights = chosen_weights(model, "mlp,lm_head")
    replaced = Replaced(model, weights, DOUBLE)
    batch = TokenBatch((0,), torch.tensor([[2, 7, 9, 11]]), torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool))
    change = {
        name: 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(1)).double() for name, start in replaced.start.items()
    }
    with torch.no_grad():
        plain = model.logits(batch).double()
        same = replaced.call(replaced.start, lambda: model.logits(batch))
        other = replaced.call(replaced.moved(change), lambda: model.logits(batch))
        for weight in weights:
            weight.uses[0].module.weight += change[weight.name].float()
        expected = model.logits(batch).double()
    assert same.dtype == DOUBLE
    torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-5)
    assert float((other - same).abs().max()) > 0.01


def test_language_models_are_computed_in_double_throughout(tmp_path: Path) -> None:
    """A difference quotient agrees with the gradient to more digits than float32 norms would leave it."""
    model = build_model(open_checkpoint(saved_llama(tmp_path / "llama")), "cpu", "float32")
    replaced = Replaced(model, chosen_weights(model, "mlp"), DOUBLE)
    batch = TokenBatch((0,), torch.tensor([[2, 7, 9, 11]]), torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool))
    generator = torch.Generator().manual_seed(1)
    along = {name: torch.randn(start.shape, generator=generator).double() for name, start in replaced.start.items()}

    def loss(step: float) -> torch.Tensor:
        moved = replaced.moved({name: step * matrix for name, matrix in along.items()})
        return replaced.call(moved, lambda: model.logits(batch)).log_softmax(-1)[0, -1, 5]

    leaves = {name: start.clone().requires_grad_() for name, start in replaced.start.items()}
    replaced.call(leaves, lambda: model.logits(batch)).log_softmax(-1)[0, -1, 5].backward()  # type: ignore[no-untyped-call]
    slope = sum(float((leaf.grad * along[name]).sum()) for name, leaf in leaves.items() if leaf.grad is not None)
    assert float(loss(1e-6) - loss(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-7)


def test_conjugate_gradients_solve_for_each_right_side_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator, dtype=DOUBLE)
    matrix, right = root @ root.T + torch.eye(12, dtype=DOUBLE), torch.randn(3, 12, generator=generator, dtype=DOUBLE)
    right[1] = 0
    right[2] = torch.linalg.eigh(matrix).eigenvectors[:, 0]
    found = conjugate_gradients(lambda x: x @ matrix, right, 100, 1e-12)
    torch.testing.assert_close(found.x, torch.linalg.solve(matrix, right.T).T, rtol=1e-8, atol=1e-10)
    assert found.steps[1:].tolist() == [0, 1] and found.steps[0] > 5


def test_agreement_by_hand() -> None:
    told = agreement(np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.0, 4.0, 9.0, 5.0]))
    assert told.spearman == pytest.approx(1) and told.slope == pytest.approx(36 / 14)
    assert told.r == pytest.approx(float(np.corrcoef([1, 2, 3], [1, 4, 9])[0, 1]))
    constant = agreement(np.ones(4), np.arange(4.0))
    assert np.isnan(constant.r) and np.isnan(constant.spearman) and constant.slope == pytest.approx(1.5)


def test_rankings_and_subsets_by_hand() -> None:
    one = torch.arange(30.0, dtype=DOUBLE)[None]
    assert top_overlap(one, one) == 1 and top_overlap(one, -one) == pytest.approx(10 / 20)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    kept = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=DOUBLE)
    scores = torch.tensor([[3.0, 2.0, -1.0]], dtype=DOUBLE)  # removing row 0 raises the loss most, so having it lowers it
    assert lds(kept, scores, -(kept @ scores.T)).tolist() == pytest.approx([1.0])
