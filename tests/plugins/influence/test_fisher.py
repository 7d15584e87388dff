"""The curvature itself, against closed forms of softmax regression: which labels it is taken over, and where EK-FAC is no approximation.

For one linear layer with logits z = W a (a ends in 1 for the bias) the Gauss-Newton matrix of the mean cross-entropy is

    G = E[ (diag(p) - p p^T) x a a^T ]

and its gradient for a row is (p - y) x a. EK-FAC takes A = E[a a^T] and S = E[diag(p) - p p^T], and as its eigenvalues the diagonal of
G in the product of their eigenbases; so it has G's trace always, and is G where that basis diagonalises G.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from modelscope_influence.analyses import factors, scores, self_influence
from modelscope_influence.ekfac import eigendecomposition
from modelscope_influence.factor_passes import CovariancePass, Labels
from modelscope_influence.objectives import MOST_CLASSES, ClassifierTask
from modelscope_influence.params import FactorsParams, ScoresParams, SelfParams
from modelscope_influence.weights import chosen_weights
from plugins.influence.dense_reference import relative_error, within
from plugins.probes.score.in_process import run_in_process, written_rows

from modelscope_app.api import BadInput, JobContext
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.job import Job
from modelscope_app.testing import write_checkpoint

FEATURES, CLASSES, ROWS, DAMPING = 4, 3, 25, 0.1
EXACT = 1e-10


class Regression(NamedTuple):
    """A softmax regression and rows for it, with what follows from them."""

    matrix: torch.Tensor
    """(class, feature + 1): the weight, and the bias as its last column."""
    features: torch.Tensor
    """(row, feature), of float32's precision, as files are read."""
    labels: torch.Tensor

    @property
    def inputs(self) -> torch.Tensor:
        """(row, feature + 1)."""
        return torch.cat([self.features, torch.ones(len(self.features), 1, dtype=torch.float64)], 1)

    @property
    def probabilities(self) -> torch.Tensor:
        """(row, class)."""
        return (self.inputs @ self.matrix.T).softmax(-1)

    @property
    def hessians(self) -> torch.Tensor:
        """(row, class, class): of the loss by the logits."""
        return torch.stack([p.diag() - torch.outer(p, p) for p in self.probabilities])

    @property
    def gauss_newton(self) -> torch.Tensor:
        """(class * (feature + 1), the same): the closed form, of the mean loss."""
        terms = [torch.kron(hessian, torch.outer(a, a)) for hessian, a in zip(self.hessians, self.inputs, strict=True)]
        return torch.stack(terms).mean(0)

    def gradients(self, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(row, class, feature + 1) of the loss."""
        residuals = self.probabilities - torch.eye(len(self.matrix), dtype=torch.float64)[self.labels if labels is None else labels]
        return residuals[:, :, None] * self.inputs[:, None, :]

    def saved(self, folder: Path) -> Path:
        tensors = {"layers.0.weight": self.matrix[:, :-1].contiguous(), "layers.0.bias": self.matrix[:, -1].contiguous()}
        sizes = [self.matrix.shape[1] - 1, self.matrix.shape[0]]
        return write_checkpoint(folder, tensors, {"model_type": "mlp", "layer_sizes": sizes, "activation": "relu"})

    def written(self, path: Path) -> str:
        pairs = zip(self.features.tolist(), self.labels.tolist(), strict=True)
        return written_rows(path, [{"features": features, "label": label} for features, label in pairs])


def regression(seed: int = 0, rows: int = ROWS) -> Regression:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(CLASSES, FEATURES + 1, generator=generator, dtype=torch.float64)
    features = torch.randn(rows, FEATURES, generator=generator).double()
    return Regression(matrix, features, torch.randint(CLASSES, (rows,), generator=generator))


def trained(model: Regression) -> Regression:
    """Newton's method on the mean loss from zero to a gradient of zero; the mean of the weights of the classes stays zero."""
    model = model._replace(matrix=torch.zeros_like(model.matrix))
    for _ in range(50):
        gradient = model.gradients().mean(0).flatten()
        step = torch.linalg.lstsq(model.gauss_newton, gradient, driver="gelsd").solution.reshape(model.matrix.shape)
        model = model._replace(matrix=model.matrix - step)
    assert float(model.gradients().mean(0).norm()) < 1e-12
    return model


class Fitted(NamedTuple):
    """The curvature a run left behind."""

    inputs: torch.Tensor
    """Eigenvectors, as columns."""
    outputs: torch.Tensor
    eigenvalues: torch.Tensor
    """(class, feature + 1)."""

    @property
    def matrix(self) -> torch.Tensor:
        """The block, recomposed."""
        both = torch.kron(self.outputs.contiguous(), self.inputs.contiguous())
        return both @ self.eigenvalues.flatten().diag() @ both.T


def fitted(model: Regression, folder: Path, **params: Any) -> Fitted:
    folder.mkdir(exist_ok=True)
    given = FactorsParams(train=model.written(folder / "rows.jsonl"), damping=DAMPING, **params)
    found = run_in_process(factors.run, given, folder / "run", [model.saved(folder / "model")]).run.tensors("curvature")
    return Fitted(*(found[f"{part} layers.0"] for part in ("inputs", "outputs", "eigenvalues")))


def covariances(model: Regression, folder: Path, labels: Any, draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of inputs and of output gradients, as the pass sums them."""
    folder.mkdir(exist_ok=True)
    path = model.written(folder / "rows.jsonl")

    def work(context: JobContext) -> tuple[torch.Tensor, torch.Tensor]:
        task, weights = ClassifierTask(context, context.model(), path, 8), chosen_weights(context.model(), "all")
        labelling = Labels(labels, draws, context.generator)
        found = context.fold("mine", CovariancePass(task, weights, labelling, torch.float64), task.source())
        return found["inputs layers.0"] / found["positions layers.0"], found["outputs layers.0"] / found["positions layers.0"]

    both: tuple[torch.Tensor, torch.Tensor] = within(folder / "sums", model.saved(folder / "model"), work)
    return both


def in_basis(matrix: torch.Tensor, found: Fitted) -> torch.Tensor:
    """(class, feature + 1): the diagonal of a matrix in the basis of what was fitted."""
    both = torch.kron(found.outputs.contiguous(), found.inputs.contiguous())
    return (both.T @ matrix @ both).diagonal().reshape(found.eigenvalues.shape)


# Labels


def test_over_every_label_covariances_and_eigenvalues_are_the_gauss_newton_matrixs(tmp_path: Path) -> None:
    model = regression()
    a, s = covariances(model, tmp_path / "sums", "exact", 1)
    assert relative_error(a, model.inputs.T @ model.inputs / ROWS) < EXACT
    assert relative_error(s, model.hessians.mean(0)) < EXACT
    by_label = torch.zeros_like(s)
    for row, label in ((row, label) for row in range(ROWS) for label in range(CLASSES)):
        residual = model.probabilities[row] - torch.eye(CLASSES, dtype=torch.float64)[label]
        by_label += model.probabilities[row, label] * torch.outer(residual, residual) / ROWS
    assert relative_error(s, by_label) < EXACT  # the two are the same matrix
    found = fitted(model, tmp_path / "fit", fisher="exact")
    assert relative_error(found.eigenvalues, in_basis(model.gauss_newton, found)) < EXACT
    assert float(found.eigenvalues.sum()) == pytest.approx(float(model.gauss_newton.trace()), rel=EXACT)
    assert relative_error(found.matrix, model.gauss_newton) > 0.05  # here it is an approximation


def test_the_basis_is_that_of_the_covariances(tmp_path: Path) -> None:
    model = regression()
    found = fitted(model, tmp_path / "fit", fisher="exact")
    for vectors, covariance in ((found.inputs, model.inputs.T @ model.inputs / ROWS), (found.outputs, model.hessians.mean(0))):
        assert relative_error(vectors.T @ vectors, torch.eye(len(vectors), dtype=torch.float64)) < EXACT
        inside = vectors.T @ covariance @ vectors
        assert relative_error(inside.diagonal().diag(), inside) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("width", "rank"), [(9, 4), (17, 1), (18, 1), (60, 5), (60, 20), (60, 21), (60, 22), (60, 60), (60, 70)])
def test_a_covariance_of_few_vectors_is_decomposed_like_any_other(width: int, rank: int, dtype: torch.dtype) -> None:
    vectors = torch.randn(rank, width, generator=torch.Generator().manual_seed(rank), dtype=torch.float64).to(dtype)
    covariance = vectors.T @ vectors / rank
    values, basis = eigendecomposition(covariance, rank)
    limit = 20 * torch.finfo(dtype).eps
    assert relative_error(basis.T @ basis, torch.eye(width, dtype=torch.float64)) < 1e-12
    assert relative_error(basis @ values.diag() @ basis.T, covariance.double()) < limit
    assert relative_error(values, torch.linalg.eigvalsh(covariance.double()).clamp(min=0)) < limit
    assert float(values.min()) >= 0


@pytest.mark.parametrize("told", [1, 3])
def test_a_covariance_of_more_vectors_than_was_said_is_decomposed_all_the_same(told: int) -> None:
    vectors = torch.randn(40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = vectors.T @ vectors / 40
    values, basis = eigendecomposition(covariance, told)
    assert relative_error(basis @ values.diag() @ basis.T, covariance) < EXACT


def test_kfac_has_no_eigenvalue_below_zero(tmp_path: Path) -> None:
    """Fewer rows than features; what rounding leaves of the eigenvalues that are zero has either sign."""
    for seed in range(5):
        model = regression(seed, rows=4)
        assert float(fitted(model, tmp_path / str(seed), fisher="exact", curvature="kfac").eigenvalues.min()) >= 0


def test_kfac_is_the_product_of_the_covariances(tmp_path: Path) -> None:
    model = regression()
    found = fitted(model, tmp_path / "fit", fisher="exact", curvature="kfac")
    expected = torch.kron(model.hessians.mean(0), model.inputs.T @ model.inputs / ROWS)
    assert relative_error(found.matrix, expected) < EXACT


def test_the_diagonal_is_that_of_the_gauss_newton_matrix(tmp_path: Path) -> None:
    model = regression()
    given = FactorsParams(train=model.written(tmp_path / "rows.jsonl"), fisher="exact", curvature="diagonal")
    found = run_in_process(factors.run, given, tmp_path / "run", [model.saved(tmp_path / "model")]).run.tensors("curvature")
    assert relative_error(found["eigenvalues layers.0"].flatten(), model.gauss_newton.diagonal()) < EXACT
    assert "inputs layers.0" not in found


def test_over_real_labels_it_is_the_mean_square_of_the_gradients(tmp_path: Path) -> None:
    model = regression()
    gradients = model.gradients()
    a, s = covariances(model, tmp_path / "sums", "empirical", 1)
    residuals = gradients[:, :, -1]  # where the input is 1
    assert relative_error(a, model.inputs.T @ model.inputs / ROWS) < EXACT
    assert relative_error(s, residuals.T @ residuals / ROWS) < EXACT
    found = fitted(model, tmp_path / "fit", fisher="empirical")
    empirical = gradients.flatten(1).T @ gradients.flatten(1) / ROWS
    assert relative_error(found.eigenvalues, in_basis(empirical, found)) < EXACT


def test_drawn_labels_come_to_the_expectation_over_them(tmp_path: Path) -> None:
    """Each entry of S is a mean of independent draws, so its error is known."""
    model, draws = regression(), 1000
    _, s = covariances(model, tmp_path / "sums", "true", draws)
    p, one = model.probabilities, torch.eye(CLASSES, dtype=torch.float64)
    squares = torch.zeros_like(s)  # over rows: variance of one draw's outer product
    for row in range(ROWS):
        outer = [torch.outer(p[row] - one[label], p[row] - one[label]) for label in range(CLASSES)]
        squares += sum((p[row, label] * (outer[label] - model.hessians[row]) ** 2 for label in range(CLASSES)), torch.zeros_like(s))
    standard_error = squares.sqrt() / (ROWS * math.sqrt(draws))
    assert float(((s - model.hessians.mean(0)).abs() / standard_error).max()) < 4
    few = covariances(model, tmp_path / "few", "true", 4)[1]
    assert float((few - model.hessians.mean(0)).norm()) > 3 * float((s - model.hessians.mean(0)).norm())  # sqrt(250) is about 16


def test_drawn_eigenvalues_come_to_those_of_the_expectation(tmp_path: Path) -> None:
    model, draws = regression(), 1000
    found = fitted(model, tmp_path / "fit", fisher="true", label_draws=draws)
    expected = in_basis(model.gauss_newton, found)
    one = torch.eye(CLASSES, dtype=torch.float64)
    variance = torch.zeros_like(expected)
    for row in range(ROWS):
        rotated = [
            (found.outputs.T @ torch.outer(model.probabilities[row] - one[label], model.inputs[row]) @ found.inputs) ** 2
            for label in range(CLASSES)
        ]
        mean = sum((model.probabilities[row, label] * rotated[label] for label in range(CLASSES)), torch.zeros_like(expected))
        variance += sum(
            (model.probabilities[row, label] * (rotated[label] - mean) ** 2 for label in range(CLASSES)), torch.zeros_like(expected)
        )
    standard_error = variance.sqrt() / (ROWS * math.sqrt(draws))
    is_known = expected > 1e-9  # along the sum of the logits there is no curvature and no spread
    assert float(((found.eigenvalues - expected).abs() / standard_error)[is_known].max()) < 4.5
    assert float(found.eigenvalues[~is_known].abs().max()) < 1e-12


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_other_seeds_change_drawn_labels_alone(tmp_path: Path, fisher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = regression()
    found = []
    for seed in (0, 0, 1):
        folder = tmp_path / f"run-{len(found)}"
        monkeypatch.setenv("MSCOPE_CACHE_DIR", str(folder / "cache"))
        RunFolder.create(folder, Job("run", "influence.factors", 1, {}, {}, (), (), "cpu", "auto", seed, "2026-01-01T00:00:00Z", "", ""))
        given = FactorsParams(train=model.written(tmp_path / "rows.jsonl"), fisher=fisher)
        ran = run_in_process(factors.run, given, folder, [model.saved(tmp_path / "model")])
        found.append(ran.run.tensors("curvature")["eigenvalues layers.0"])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) is (fisher == "empirical")


def test_too_many_classes_for_every_label_are_refused(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for classes, is_refused in ((MOST_CLASSES, False), (MOST_CLASSES + 1, True)):
        matrix = torch.randn(classes, 3, generator=generator, dtype=torch.float64)
        model = Regression(matrix, torch.randn(4, 2, generator=generator).double(), torch.arange(4))
        if is_refused:
            with pytest.raises(BadInput, match="129 classes here; it is for classifiers of at most 128 classes"):
                fitted(model, tmp_path / str(classes), fisher="exact")
        else:
            assert (
                relative_error(fitted(model, tmp_path / str(classes), fisher="exact").eigenvalues.sum(), model.gauss_newton.trace()) < EXACT
            )


# Closed forms of influence


def score_matrix(model: Regression, folder: Path, queries: Regression, **params: Any) -> torch.Tensor:
    """(query, row)."""
    folder.mkdir(exist_ok=True)
    given = {"train": model.written(folder / "rows.jsonl"), "damping": DAMPING, **params}
    asked = ScoresParams(queries=queries.written(folder / "queries.jsonl"), **given)
    pairs = run_in_process(scores.run, asked, folder / "run", [model.saved(folder / "model")]).table("pairwise")
    found = torch.zeros(len(queries.labels), len(model.labels), dtype=torch.float64)
    found[pairs["query"].to_torch(), pairs["example"].to_torch()] = pairs["score"].to_torch()
    return found


def test_without_curvature_scores_are_dot_products(tmp_path: Path) -> None:
    """Of (p - y) x a: the product of residuals' and of inputs' dot products."""
    model = trained(regression(rows=60))
    queries = regression(seed=5, rows=4)._replace(matrix=model.matrix)
    found = score_matrix(model, tmp_path / "run", queries, curvature="identity")
    one = torch.eye(CLASSES, dtype=torch.float64)
    expected = ((queries.probabilities - one[queries.labels]) @ (model.probabilities - one[model.labels]).T) * (
        queries.inputs @ model.inputs.T
    )
    assert relative_error(found, expected) < EXACT
    assert float(found.sum(1).abs().max()) < 1e-9 * float(found.abs().max()) * ROWS  # a trained model's gradients cancel


@pytest.mark.parametrize("measure", ["loss", "logprob", "margin"])
def test_measures_have_the_gradients_they_should(tmp_path: Path, measure: str) -> None:
    model, queries = regression(), regression(seed=5, rows=4)
    queries = queries._replace(matrix=model.matrix)
    found = score_matrix(model, tmp_path / "run", queries, curvature="identity", measure=measure)
    one = torch.eye(CLASSES, dtype=torch.float64)
    by_logits = {"loss": queries.probabilities - one[queries.labels], "logprob": one[queries.labels] - queries.probabilities}
    if measure == "margin":  # z_y - log sum of the others' exp z: d/dz = y - p without y, normalised
        others = queries.probabilities * (1 - one[queries.labels])
        by_logits["margin"] = one[queries.labels] - others / others.sum(1, keepdim=True)
    gradients = by_logits[measure][:, :, None] * queries.inputs[:, None, :]
    assert relative_error(found, gradients.flatten(1) @ model.gradients().flatten(1).T) < EXACT


def diagonal_design() -> Regression:
    """Logistic regression in which EK-FAC is exact, and its solution.

    With two classes every row's Hessian is p (1 - p) [[1, -1], [-1, 1]], so all share eigenvectors and S's are those. And the inputs
    (feature, 1) come in pairs, opposite in all features and alike in label balance, each pair along one axis: sums of
    p (1 - p) a a^T then have no entry off the diagonal, and neither has A. In such a basis G is diagonal, and EK-FAC's eigenvalues,
    which are G's diagonal there, are all of it. Scales of the axes differ, so that no eigenvalue is there twice.
    """
    features, labels = [], []
    for axis, scale in enumerate((0.5, 1.0, 1.5, 2.5)):
        for sign, count, ones in ((1, 8, 6), (-1, 8, 2)):
            for at in range(count):
                features.append([sign * scale if axis == place else 0.0 for place in range(FEATURES)])
                labels.append(int(at < ones))
    start = Regression(torch.zeros(2, FEATURES + 1, dtype=torch.float64), torch.tensor(features).double(), torch.tensor(labels))
    return trained(start)


def test_a_logistic_regression_on_separate_directions_has_its_closed_form_influence(tmp_path: Path) -> None:
    """The inverse is taken of the whole Gauss-Newton matrix and damping, by a dense solve; nothing is said of bases."""
    model = diagonal_design()
    queries = regression(seed=5, rows=5)._replace(matrix=model.matrix, labels=torch.tensor([0, 1, 1, 0, 1]))
    g = model.gauss_newton
    damped = g + DAMPING * g.trace() / len(g) * torch.eye(len(g), dtype=torch.float64)
    expected = queries.gradients().flatten(1) @ torch.linalg.solve(damped, model.gradients().flatten(1).T)
    assert relative_error(fitted(model, tmp_path / "fit", fisher="exact").matrix, g) < EXACT
    assert relative_error(score_matrix(model, tmp_path / "scores", queries, fisher="exact"), expected) < EXACT
    given = SelfParams(train=model.written(tmp_path / "rows.jsonl"), fisher="exact", damping=DAMPING)
    table = run_in_process(self_influence.run, given, tmp_path / "self", [model.saved(tmp_path / "model")]).table("self")
    own = model.gradients().flatten(1)
    assert relative_error(table["score"].to_torch(), (own * torch.linalg.solve(damped, own.T).T).sum(1)) < EXACT
    assert relative_error(table["gradient_norm"].to_torch(), own.norm(dim=1)) < EXACT


def test_influence_predicts_what_leaving_a_row_out_does(tmp_path: Path) -> None:
    """Many rows, little damping: the change of a query's loss is delta_measure, up to what is of second order in 1 / N."""
    model = diagonal_design()
    model = trained(model._replace(features=model.features.repeat(4, 1), labels=model.labels.repeat(4)))
    queries = regression(seed=5, rows=5)._replace(matrix=model.matrix, labels=torch.tensor([0, 1, 1, 0, 1]))
    predicted = score_matrix(model, tmp_path / "scores", queries, fisher="exact", damping=1e-9) / len(model.labels)

    def losses(fitted: Regression) -> torch.Tensor:
        return -queries._replace(matrix=fitted.matrix).probabilities.log()[torch.arange(5), queries.labels]

    changes, removed = [], [0, 7, 9, 33, 60, 100]
    for row in removed:
        left: Sequence[int] = [at for at in range(len(model.labels)) if at != row]
        changes.append(losses(trained(model._replace(features=model.features[left], labels=model.labels[left]))) - losses(model))
    found = torch.stack(changes, 1)
    assert relative_error(found, predicted[:, removed]) < 0.05


def test_inputs_along_one_direction_make_any_number_of_classes_exact(tmp_path: Path) -> None:
    """With a the same for every row up to its length, and the same p, G = (diag(p) - p p^T) x E[a a^T] is a Kronecker product."""
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(CLASSES, FEATURES + 1, generator=generator, dtype=torch.float64)
    features = torch.randn(1, FEATURES, generator=generator).double().expand(10, -1)
    model = Regression(matrix, features, torch.randint(CLASSES, (10,), generator=generator))
    assert relative_error(fitted(model, tmp_path / "fit", fisher="exact").matrix, model.gauss_newton) < EXACT
    assert relative_error(fitted(model, tmp_path / "kfac", fisher="exact", curvature="kfac").matrix, model.gauss_newton) < EXACT
    g = model.gauss_newton
    damped = g + DAMPING * g.trace() / len(g) * torch.eye(len(g), dtype=torch.float64)
    queries = regression(seed=5, rows=5)._replace(matrix=model.matrix)
    expected = queries.gradients().flatten(1) @ torch.linalg.solve(damped, model.gradients().flatten(1).T)
    assert relative_error(score_matrix(model, tmp_path / "scores", queries, fisher="exact"), expected) < EXACT
