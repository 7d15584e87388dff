"""Linear regression, where everything has a closed form: curvature, scores, and what refitting without a row does.

With squared loss L_n = |W x_n - y_n|^2 / 2 and residual e_n = W x_n - y_n, the gradient of a row is e_n x_n^T. Under the model's own
Gaussian the covariance of output gradients is the identity, so the Fisher is a Kronecker product, I x A with A = X^T X / N: K-FAC is
exact.
"""

from __future__ import annotations

import pytest
import torch
from modelscope_influence.contractions import Basis, RowGradients
from modelscope_influence.ekfac import Curvature, eigendecomposition, gradient_sums, input_sums, kfac_eigenvalues
from modelscope_influence.recording import UseOfWeight

ROWS, QUERIES, INPUTS, OUTPUTS = 40, 6, 7, 3
DOUBLE = torch.float64
FRACTION = 0.1
EXACT = {"rtol": 1e-10, "atol": 1e-12}


class Regression:
    """Ridge regression with its closed-form optimum, and rows it is asked about."""

    def __init__(self, ridge: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ridge = ridge
        self.inputs = torch.randn(ROWS, INPUTS, generator=generator, dtype=DOUBLE)
        self.targets = torch.randn(ROWS, OUTPUTS, generator=generator, dtype=DOUBLE)
        self.asked = torch.randn(QUERIES, INPUTS, generator=generator, dtype=DOUBLE)
        self.wanted = torch.randn(QUERIES, OUTPUTS, generator=generator, dtype=DOUBLE)
        self.matrix = self.fitted(torch.ones(ROWS, dtype=DOUBLE))

    @property
    def covariance(self) -> torch.Tensor:
        """A."""
        return self.inputs.T @ self.inputs / ROWS

    def fitted(self, weighting: torch.Tensor) -> torch.Tensor:
        """(out, in): the minimum of 1/N sum_n weighting_n L_n + ridge/2 |W|^2."""
        gram = (self.inputs.T * weighting) @ self.inputs / ROWS + self.ridge * torch.eye(INPUTS, dtype=DOUBLE)
        return torch.linalg.solve(gram, (self.inputs.T * weighting) @ self.targets / ROWS).T

    def residuals(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(row, out)."""
        return inputs @ self.matrix.T - targets

    @property
    def train_residuals(self) -> torch.Tensor:
        return self.residuals(self.inputs, self.targets)

    @property
    def query_residuals(self) -> torch.Tensor:
        return self.residuals(self.asked, self.wanted)

    def rows(self, basis: Basis | None = None) -> RowGradients:
        return RowGradients([UseOfWeight(self.inputs[:, None], self.train_residuals[:, None])], basis)

    @property
    def query_gradients(self) -> torch.Tensor:
        """(query, out, in)."""
        return self.query_residuals[:, :, None] * self.asked[:, None, :]

    def curvature(self) -> Curvature:
        """K-FAC from the sums the passes make; every unit vector with equal weight stands for Gaussian labels."""
        units = torch.eye(OUTPUTS, dtype=DOUBLE).repeat(ROWS, 1) * OUTPUTS**0.5
        uses = [UseOfWeight(self.inputs.repeat_interleave(OUTPUTS, 0)[:, None], units[:, None])]
        count = ROWS * OUTPUTS
        inputs, outputs = (eigendecomposition(sums(uses) / count) for sums in (input_sums, gradient_sums))
        return Curvature(Basis(inputs[1], outputs[1]), kfac_eigenvalues(outputs[0], inputs[0]), ROWS, ROWS)

    def scores(self) -> torch.Tensor:
        """(query, row), as the passes make them: gradients divided by curvature, then products with rows."""
        return self.rows().products(self.curvature().precondition(self.query_gradients, FRACTION))

    @property
    def damping(self) -> float:
        return FRACTION * float(self.covariance.trace()) / INPUTS


@pytest.fixture
def regression() -> Regression:
    return Regression(ridge=0.3)


def test_kfac_is_the_fisher_of_linear_regression(regression: Regression) -> None:
    """The Hessian of the mean loss, by autograd."""
    curvature = regression.curvature()
    assert curvature.basis is not None
    assert curvature.eigenvalues is not None
    both = torch.kron(curvature.basis.outputs.contiguous(), curvature.basis.inputs.contiguous())
    found = both @ curvature.eigenvalues.flatten().diag() @ both.T

    def mean_loss(flat: torch.Tensor) -> torch.Tensor:
        return (regression.inputs @ flat.view(OUTPUTS, INPUTS).T - regression.targets).square().sum() / 2 / ROWS

    hessian = torch.autograd.functional.hessian(mean_loss, regression.matrix.flatten())
    torch.testing.assert_close(found, hessian, **EXACT)
    torch.testing.assert_close(found, torch.kron(torch.eye(OUTPUTS, dtype=DOUBLE), regression.covariance), **EXACT)
    assert curvature.mean_eigenvalue == pytest.approx(float(regression.covariance.trace()) / INPUTS, rel=1e-12)


def test_dividing_by_it_is_solving_with_the_damped_covariance(regression: Regression) -> None:
    damped = regression.covariance + regression.damping * torch.eye(INPUTS, dtype=DOUBLE)
    found = regression.curvature().precondition(regression.query_gradients, FRACTION)
    torch.testing.assert_close(found, torch.linalg.solve(damped, regression.query_gradients.transpose(1, 2)).transpose(1, 2), **EXACT)


def test_scores_have_the_closed_form(regression: Regression) -> None:
    """(e_q . e_n) x_q^T (X^T X / N + damping)^-1 x_n."""
    damped = regression.covariance + regression.damping * torch.eye(INPUTS, dtype=DOUBLE)
    expected = (regression.query_residuals @ regression.train_residuals.T) * (
        regression.asked @ torch.linalg.solve(damped, regression.inputs.T)
    )
    torch.testing.assert_close(regression.scores(), expected, **EXACT)


def test_in_the_basis_and_factored_they_are_the_same(regression: Regression) -> None:
    curvature = regression.curvature()
    inverse, basis = curvature.inverse(FRACTION), curvature.basis
    assert inverse is not None
    assert basis is not None
    rows = regression.rows(basis)
    found = rows.products(basis.rotate(regression.query_gradients) * inverse)
    torch.testing.assert_close(found, regression.scores(), **EXACT)
    own = regression.train_residuals.square().sum(1) * leverages(regression, regression.damping) * ROWS
    torch.testing.assert_close(rows.weighted_squares(inverse), own, **EXACT)


def leverages(regression: Regression, ridge: float) -> torch.Tensor:
    """(row,): h_n = x_n^T (X^T X / N + ridge)^-1 x_n / N."""
    damped = regression.covariance + ridge * torch.eye(INPUTS, dtype=DOUBLE)
    return (regression.inputs * torch.linalg.solve(damped, regression.inputs.T).T).sum(1) / ROWS


def refitted(regression: Regression, removed: int) -> torch.Tensor:
    """(query,): the query's outputs' change, projected on its residual: f to first order, when the row is removed."""
    weighting = torch.ones(ROWS, dtype=DOUBLE)
    weighting[removed] = 0
    change = regression.fitted(weighting) - regression.matrix
    return (regression.asked @ change.T * regression.query_residuals).sum(1)


def test_refitting_without_a_row_is_the_score_over_n_once_it_is_corrected_by_leverage() -> None:
    """With the ridge as damping, W without row n is W + (A + ridge)^-1 x_n e_n^T / N / (1 - h_n): exact leave-one-out."""
    ridge = FRACTION * float(Regression(0.0).covariance.trace()) / INPUTS
    regression = Regression(ridge)
    assert regression.damping == pytest.approx(ridge, rel=1e-14)
    found = torch.stack([refitted(regression, row) for row in range(ROWS)], dim=1)
    corrected = regression.scores() / ROWS / (1 - leverages(regression, ridge))
    torch.testing.assert_close(found, corrected, **EXACT)
    assert float((found - regression.scores() / ROWS).norm() / found.norm()) > 0.02  # so without the correction it is not exact


def test_the_change_of_the_loss_itself_has_a_second_order_that_the_score_leaves_out() -> None:
    """f(W + D) - f(W) = <grad f, D> + |D x_q|^2 / 2."""
    regression = Regression(FRACTION * float(Regression(0.0).covariance.trace()) / INPUTS)
    corrected = regression.scores() / ROWS / (1 - leverages(regression, regression.ridge))
    before = regression.query_residuals.square().sum(1) / 2
    for row in range(ROWS):
        weighting = torch.ones(ROWS, dtype=DOUBLE)
        weighting[row] = 0
        matrix = regression.fitted(weighting)
        after = (regression.asked @ matrix.T - regression.wanted).square().sum(1) / 2
        second = (regression.asked @ (matrix - regression.matrix).T).square().sum(1) / 2
        torch.testing.assert_close(after - before, corrected[:, row] + second, **EXACT)


def test_for_little_weight_the_score_is_the_derivative() -> None:
    """A row that keeps all but epsilon of its weight: leverage counts only in the second order, so halving epsilon halves the error."""
    regression = Regression(FRACTION * float(Regression(0.0).covariance.trace()) / INPUTS)
    errors = []
    for epsilon in (1e-3, 5e-4):
        weighting = torch.ones(ROWS, dtype=DOUBLE)
        weighting[3] -= epsilon
        change = (regression.fitted(weighting) - regression.matrix) / epsilon
        found = (regression.asked @ change.T * regression.query_residuals).sum(1)
        errors.append(float((found - regression.scores()[:, 3] / ROWS).norm() / found.norm()))
    assert errors[0] < 1e-3
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.01)
