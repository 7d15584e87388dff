"""Conjugate gradients on the whole Gauss-Newton matrix: the dense matrix is made by autograd, a logit at a time, and solved with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from modelscope_influence import proximal
from modelscope_influence.fitting import Fitted, Settings, fit
from modelscope_influence.gauss_newton import Solution, gauss_newton_directions
from modelscope_influence.objectives import ClassifierTask, LanguageTask, Task
from modelscope_influence.score_passes import Block, query_gradients
from modelscope_influence.weights import Weight, chosen_weights
from plugins.influence.dense_reference import EXACT, NoParams, gpt2, llama, loaded, relative_error, token_rows
from plugins.influence.test_bad_input import FAR, labelled, mlp
from plugins.probes.score.in_process import run_in_process, written_rows
from torch import nn

from modelscope_app.api import JobCancelled, JobContext, JobFailed
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.models import build_model

pytest_plugins = ["modelscope_app.testing"]

FRACTION = 1.0
QUERIES = [1, 4, 5]
SHORT = (5, 4, 6, 3, 5, 4)
LINEAR = (4, 3)


class Found(NamedTuple):
    """What the plugin says."""

    solution: Solution
    weights: Sequence[Weight]
    fitted: Fitted
    gradients: dict[str, torch.Tensor]
    """(query, out, in) by weight."""
    warnings: list[str]

    def flat(self, matrices: dict[str, torch.Tensor]) -> torch.Tensor:
        """(query, parameter)."""
        return torch.cat([matrices[weight.name].flatten(1) for weight in self.weights], dim=1)

    @property
    def damping(self) -> torch.Tensor:
        """(parameter,)."""
        return torch.cat(
            [
                torch.full((weight.size,), FRACTION * self.fitted.curvatures[weight.name].mean_eigenvalue, dtype=torch.float64)
                for weight in self.weights
            ]
        )


def task_of(context: JobContext, path: str) -> Task:
    if (context.checkpoints[0].config or {}).get("model_type") == "mlp":
        return ClassifierTask(context, context.model(), path, 7)
    return LanguageTask(context, context.model(), path, 16)


def found_by_plugin(
    folder: Path,
    checkpoint: Path,
    train: str,
    modules: str,
    check_cancelled: Callable[[], None] = lambda: None,
    fitted_on: str = "",
    **given: Any,
) -> Found:
    kept: list[Any] = []

    def work(context: JobContext, params: Any) -> None:
        model = context.model()
        weights, task = chosen_weights(model, modules), task_of(context, train)
        whole = task_of(context, fitted_on or train)
        fitted = fit(context, whole, weights, Settings("ekfac", "empirical", 1), fitted_on or train)
        asked = query_gradients(task, weights, "loss", QUERIES, {weight.name: Block(None, None) for weight in weights})
        solution = gauss_newton_directions(context, task, model, weights, fitted, FRACTION, asked.ids, dict(asked.ready), **given)
        kept.extend([solution, weights, fitted, dict(asked.ready)])

    ran = run_in_process(work, NoParams(), folder, [checkpoint], check_cancelled=check_cancelled)
    return Found(*kept, ran.warnings)


def dense_gauss_newton(
    module: nn.Module, weights: Sequence[Weight], logits: Callable[[nn.Module, int], torch.Tensor], rows: Sequence[int]
) -> torch.Tensor:
    """(parameter, parameter); `logits` are those (position, class) of one row."""
    module.requires_grad_(True)
    size = sum(weight.size for weight in weights)
    total = torch.zeros(size, size, dtype=torch.float64)
    for row in rows:
        found = logits(module, row)
        jacobian = flat_gradients(module, weights, found.flatten()).unflatten(0, found.shape)  # (position, class, parameter)
        for at, chances in enumerate(found.detach().softmax(-1)):
            total += jacobian[at].T @ (chances.diag() - chances[:, None] * chances) @ jacobian[at] / len(rows)
    return total


def flat_gradients(module: nn.Module, weights: Sequence[Weight], values: torch.Tensor) -> torch.Tensor:
    """(value, parameter)."""
    parts = []
    for weight in weights:
        main = module.get_submodule(weight.name)
        parameters = [main.weight, *([main.bias] if weight.has_bias else [])]
        each = torch.eye(len(values), dtype=torch.float64)
        found = torch.autograd.grad(
            values,
            parameters,
            each,
            retain_graph=True,
            is_grads_batched=True,
            materialize_grads=True,  # type: ignore[arg-type]
        )
        matrix = found[0] if isinstance(main, nn.Linear) else found[0].transpose(1, 2)
        parts.append((torch.cat([matrix, found[1][:, :, None]], 2) if weight.has_bias else matrix).flatten(1))
    return torch.cat(parts, dim=1)


def dense_directions(found: Found, curvature: torch.Tensor) -> torch.Tensor:
    """(query, parameter)."""
    return torch.linalg.solve(curvature + found.damping.diag(), found.flat(found.gradients).T).T


def next_token_logits(rows: Sequence[Sequence[int]]) -> Callable[[nn.Module, int], torch.Tensor]:
    def logits(module: nn.Module, row: int) -> torch.Tensor:
        with proximal._KeepsDouble():  # without it a Llama's norms are float32
            found: torch.Tensor = module(input_ids=torch.tensor([rows[row]]), use_cache=False).logits[0, :-1]
        return found

    return logits


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return mlp(tmp_path / "mlp", activation="tanh", dtype=torch.float64)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return written_rows(tmp_path / "rows.jsonl", labelled())


def features_of(path: str) -> torch.Tensor:
    return torch.tensor([json.loads(line)["features"] for line in Path(path).read_text().splitlines()], dtype=torch.float64)


def test_on_a_classifier_it_is_the_dense_solution(tmp_path: Path, classifier: Path, rows: str) -> None:
    found = found_by_plugin(tmp_path / "run", classifier, rows, "all", tolerance=1e-11)
    features, module = features_of(rows), build_model(open_checkpoint(classifier), "cpu", "float64").module
    dense = dense_gauss_newton(module, found.weights, lambda module, row: module(features[row : row + 1]), range(len(features)))
    assert relative_error(found.flat(found.solution.directions), dense_directions(found, dense)) < EXACT
    assert all(found.solution.has_converged) and max(found.solution.residuals) <= 1e-11 and not found.warnings
    blocks = torch.block_diag(*[dense[part, part] for part in (slice(0, 25), slice(25, None))])
    assert relative_error(dense_directions(found, blocks), dense_directions(found, dense)) > 0.05  # products between weights matter


def test_on_gpt2_with_its_tied_head_it_is_the_dense_solution(tmp_path: Path) -> None:
    """Layers stored transposed, with biases, and a weight that is used at both ends."""
    assert_language_model_agrees(tmp_path, gpt2(tmp_path / "gpt2"), "mlp,attention,lm_head")


def test_on_a_llama_with_a_tied_head_it_is_the_dense_solution(tmp_path: Path) -> None:
    assert_language_model_agrees(tmp_path, llama(tmp_path / "llama", tied=True), "mlp,lm_head")


def assert_language_model_agrees(tmp_path: Path, checkpoint: Path, modules: str) -> None:
    texts = token_rows(SHORT)
    train = written_rows(tmp_path / "rows.jsonl", [{"input_ids": text} for text in texts])
    found = found_by_plugin(tmp_path / "run", checkpoint, train, modules, tolerance=1e-11)
    dense = dense_gauss_newton(loaded(checkpoint), found.weights, next_token_logits(texts), range(len(texts)))
    assert all(found.solution.has_converged)
    assert relative_error(found.flat(found.solution.directions), dense_directions(found, dense)) < EXACT


def test_logistic_regression_has_a_closed_form(tmp_path: Path, rows: str) -> None:
    """G = 1/N sum (diag(p) - p p^T) x a a^T; the gradient of a row is (p - y) a^T."""
    found = found_by_plugin(tmp_path / "run", mlp(tmp_path / "mlp", sizes=LINEAR, dtype=torch.float64), rows, "all", tolerance=1e-12)
    features = features_of(rows)
    inputs = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    stored = open_checkpoint(tmp_path / "mlp")
    matrix = torch.cat([stored.tensor("layers.0.weight"), stored.tensor("layers.0.bias")[:, None]], 1)
    chances = (inputs @ matrix.T).softmax(-1)
    curved = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    curvature = torch.stack([torch.kron(c, torch.outer(a, a)) for c, a in zip(curved, inputs, strict=True)]).mean(0)
    labels = nn.functional.one_hot(torch.tensor([row["label"] for row in labelled()]), 3).double()
    gradients = ((chances - labels)[QUERIES, :, None] * inputs[QUERIES, None, :]).flatten(1)
    expected = torch.linalg.solve(curvature + found.damping.diag(), gradients.T).T
    assert relative_error(found.flat(found.solution.directions), expected) < EXACT


def test_one_that_runs_out_of_steps_is_warned_of_with_its_residual(tmp_path: Path, classifier: Path, rows: str) -> None:
    found = found_by_plugin(tmp_path / "run", classifier, rows, "all", tolerance=1e-9, most_steps=2)
    assert not any(found.solution.has_converged) and found.solution.steps == [2, 2, 2]
    for at, query in enumerate(QUERIES):
        said = f"query {query}: the residual is {found.solution.residuals[at]:.1e} of the right side after 2 steps, and 1e-09 was asked for"
        assert found.warnings[at].startswith(said)
    assert all(1e-9 < residual < 1 for residual in found.solution.residuals)


def test_residuals_are_those_of_the_solution_that_is_given_back(tmp_path: Path, classifier: Path, rows: str) -> None:
    """In the norm of H^-1, H being the curvature that is preconditioned with."""
    found = found_by_plugin(tmp_path / "run", classifier, rows, "all", most_steps=3)
    features, module = features_of(rows), build_model(open_checkpoint(classifier), "cpu", "float64").module
    dense = dense_gauss_newton(module, found.weights, lambda module, row: module(features[row : row + 1]), range(len(features)))
    left = found.flat(found.gradients) - found.flat(found.solution.directions) @ (dense + found.damping.diag())

    def length(vectors: torch.Tensor) -> torch.Tensor:
        parts, total = vectors.split([weight.size for weight in found.weights], dim=1), torch.zeros(len(vectors), dtype=torch.float64)
        for weight, part in zip(found.weights, parts, strict=True):
            matrices = part.view(-1, weight.outputs, weight.inputs)
            total += (matrices * found.fitted.curvatures[weight.name].precondition(matrices, FRACTION)).sum((1, 2))
        return total.sqrt()

    assert found.solution.residuals == pytest.approx((length(left) / length(found.flat(found.gradients))).tolist(), rel=1e-8)


def test_a_row_that_was_set_aside_is_left_out(tmp_path: Path) -> None:
    checkpoint = mlp(tmp_path / "mlp", activation="relu", dtype=torch.float32)
    told = labelled(12)
    without = written_rows(tmp_path / "without.jsonl", told)
    with_one = written_rows(tmp_path / "with.jsonl", [*told, {"features": FAR, "label": 0}])
    one, other = (found_by_plugin(tmp_path / name, checkpoint, path, "all") for name, path in (("a", without), ("b", with_one)))
    assert list(other.fitted.aside) == [12]
    torch.testing.assert_close(one.flat(one.solution.directions), other.flat(other.solution.directions), rtol=1e-4, atol=1e-6)


def test_a_row_that_ought_to_be_set_aside_fails_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where curvature comes from other rows, nobody has looked at it. In float64 its loss would be finite."""
    monkeypatch.setattr(proximal, "MOST_DOUBLE", 0)
    checkpoint = mlp(tmp_path / "mlp", activation="relu", dtype=torch.float32)
    train = written_rows(tmp_path / "with.jsonl", [*labelled(12), {"features": FAR, "label": 0}])
    with pytest.raises(JobFailed, match="a product with the Gauss-Newton matrix is not finite: some training row's loss"):
        found_by_plugin(tmp_path / "run", checkpoint, train, "all", fitted_on=written_rows(tmp_path / "rows.jsonl", labelled(12)))


def test_a_cancelled_solve_goes_on_with_the_step_it_was_at(tmp_path: Path, classifier: Path, rows: str) -> None:
    whole = found_by_plugin(tmp_path / "whole", classifier, rows, "all")
    stage, looked = tmp_path / "run" / "stages" / "gauss-newton", []

    def cancel() -> None:
        if (stage / "plan.json").exists():
            looked.append(1)
        if len(looked) == 14:  # between steps: one look there, and one for each of three batches
            raise JobCancelled("stopped")

    with pytest.raises(JobCancelled):
        found_by_plugin(tmp_path / "run", classifier, rows, "all", check_cancelled=cancel)
    again = found_by_plugin(tmp_path / "run", classifier, rows, "all", check_cancelled=lambda: looked.append(2))
    assert again.solution.steps == whole.solution.steps
    assert torch.equal(again.flat(again.solution.directions), whole.flat(whole.solution.directions))


def test_activations_that_do_not_fit_at_once_are_taken_in_parts(
    tmp_path: Path, classifier: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelscope_influence import gauss_newton

    whole = found_by_plugin(tmp_path / "whole", classifier, rows, "all")
    monkeypatch.setattr(gauss_newton, "_MOST_NUMBERS", 1)
    parts = found_by_plugin(tmp_path / "parts", classifier, rows, "all")
    torch.testing.assert_close(whole.flat(whole.solution.directions), parts.flat(parts.solution.directions), rtol=1e-9, atol=1e-12)


def test_a_large_model_is_solved_in_float32_to_a_ten_thousandth(
    tmp_path: Path, classifier: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = mlp(tmp_path / "single", activation="tanh", dtype=torch.float32)
    double = found_by_plugin(tmp_path / "double", checkpoint, rows, "all")
    monkeypatch.setattr(proximal, "MOST_DOUBLE", 0)
    single = found_by_plugin(tmp_path / "single-run", checkpoint, rows, "all")
    assert (double.solution.dtype, double.solution.tolerance) == (torch.float64, 1e-6)
    assert (single.solution.dtype, single.solution.tolerance) == (torch.float32, 1e-4)
    assert all(single.solution.has_converged)
    a, b = double.flat(double.solution.directions), single.flat(single.solution.directions)
    assert a.dtype == b.dtype == torch.float32
    assert float((a - b).norm() / a.norm()) < 1e-2
