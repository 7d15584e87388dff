"""Sums over the gradients of rows, against the gradients themselves: loops over rows, uses and positions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from modelscope_influence import contractions
from modelscope_influence.contractions import Basis, RowGradients, position_products
from modelscope_influence.recording import UseOfWeight

INPUTS, OUTPUTS, BATCH, QUERIES = 5, 4, 6, 3
USES = {
    "one position": [1],
    "one position, used twice": [1, 1],
    "a sequence": [7],
    "a short sequence": [2],
    "sequences, used three times": [3, 3, 3],
    "as many positions as make rotating first and last cost the same": [90],
}
"""Positions of each use."""
each_case = pytest.mark.parametrize("name", USES)
with_and_without_basis = pytest.mark.parametrize("is_rotated", [False, True], ids=["parameters", "basis"])


@pytest.fixture(
    params=[(True, True), (True, False), (False, True), (False, False), None], ids=["both", "inputs", "outputs", "none", "cheaper"]
)
def rotated_first(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is rotated before it is multiplied, all give the same."""
    if request.param is not None:
        monkeypatch.setattr(contractions, "_sides_rotated_first", lambda uses: request.param)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uses_of(name: str) -> list[UseOfWeight]:
    return [
        UseOfWeight(drawn(BATCH, positions, INPUTS, seed=10 + at), drawn(BATCH, positions, OUTPUTS, seed=20 + at))
        for at, positions in enumerate(USES[name])
    ]


def a_basis() -> Basis:
    return Basis(torch.linalg.qr(drawn(INPUTS, INPUTS, seed=1)).Q, torch.linalg.qr(drawn(OUTPUTS, OUTPUTS, seed=2)).Q)


def slow_gradient(uses: Sequence[UseOfWeight], row: int, basis: Basis | None) -> torch.Tensor:
    """(out, in) of one row, one product of two numbers after another."""
    gradient = torch.zeros(OUTPUTS, INPUTS, dtype=torch.float64)
    for use in uses:
        for at in range(use.inputs.shape[1]):
            for o, i in product(range(OUTPUTS), range(INPUTS)):
                gradient[o, i] += use.gradients[row, at, o] * use.inputs[row, at, i]
    if basis is None:
        return gradient
    rotated = torch.zeros_like(gradient)
    for o, i in product(range(OUTPUTS), range(INPUTS)):
        rotated[o, i] = basis.outputs[:, o] @ gradient @ basis.inputs[:, i]
    return rotated


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@each_case
@with_and_without_basis
@pytest.mark.usefixtures("rotated_first")
def test_row_gradients_are_sums_of_outer_products(name: str, is_rotated: bool) -> None:
    basis, uses = a_basis() if is_rotated else None, uses_of(name)
    assert_same(RowGradients(uses, basis).dense, torch.stack([slow_gradient(uses, row, basis) for row in range(BATCH)]))


@each_case
@with_and_without_basis
@pytest.mark.usefixtures("rotated_first")
def test_summed_squares_are_those_of_the_gradients(name: str, is_rotated: bool) -> None:
    basis, uses = a_basis() if is_rotated else None, uses_of(name)
    assert_same(
        RowGradients(uses, basis).summed_squares(), sum((slow_gradient(uses, row, basis) ** 2 for row in range(BATCH)), torch.zeros(1))
    )


@each_case
@with_and_without_basis
@pytest.mark.usefixtures("rotated_first")
def test_weighted_squares_are_those_of_the_gradients(name: str, is_rotated: bool) -> None:
    basis, uses = a_basis() if is_rotated else None, uses_of(name)
    weights = drawn(OUTPUTS, INPUTS, seed=3).square()
    assert_same(
        RowGradients(uses, basis).weighted_squares(weights),
        torch.stack([(weights * slow_gradient(uses, row, basis) ** 2).sum() for row in range(BATCH)]),
    )
    norms = torch.stack([(slow_gradient(uses, row, None) ** 2).sum() for row in range(BATCH)])
    assert_same(RowGradients(uses, basis).weighted_squares(None), norms)  # which no rotation changes


@each_case
def test_products_are_those_with_the_gradients(name: str) -> None:
    uses, directions = uses_of(name), drawn(QUERIES, OUTPUTS, INPUTS, seed=4)
    expected = torch.zeros(QUERIES, BATCH, dtype=torch.float64)
    for query, row in product(range(QUERIES), range(BATCH)):
        expected[query, row] = (directions[query] * slow_gradient(uses, row, None)).sum()
    assert_same(RowGradients(uses).products(directions), expected)


@each_case
def test_products_of_positions_add_up(name: str) -> None:
    uses, directions = uses_of(name), drawn(QUERIES, OUTPUTS, INPUTS, seed=4)
    found = position_products(uses, directions)
    positions = USES[name][0]
    expected = torch.zeros(QUERIES, BATCH, positions, dtype=torch.float64)
    for query, row, at in product(range(QUERIES), range(BATCH), range(positions)):
        alone = [UseOfWeight(use.inputs[:, at : at + 1], use.gradients[:, at : at + 1]) for use in uses]
        expected[query, row, at] = (directions[query] * slow_gradient(alone, row, None)).sum()
    assert_same(found, expected)
    assert_same(found.sum(-1), RowGradients(uses).products(directions))


@each_case
@with_and_without_basis
def test_products_with_other_rows_are_those_of_both_gradients_in_any_basis(name: str, is_rotated: bool) -> None:
    basis, uses = a_basis() if is_rotated else None, uses_of(name)
    for others in ("one position", "a sequence"):
        expected = torch.zeros(BATCH, BATCH, dtype=torch.float64)
        for other, row in product(range(BATCH), range(BATCH)):
            expected[other, row] = (slow_gradient(uses_of(others), other, None) * slow_gradient(uses, row, None)).sum()
        assert_same(RowGradients(uses, basis).products_with(RowGradients(uses_of(others), basis)), expected)


@each_case
def test_products_with_directions_of_a_basis(name: str) -> None:
    basis, uses, directions = a_basis(), uses_of(name), drawn(QUERIES, OUTPUTS, INPUTS, seed=4)
    expected = RowGradients(uses).products(basis.rotate_back(directions))
    assert_same(RowGradients(uses, basis).products(directions), expected)
    assert_same(position_products(uses, directions, basis).sum(-1), expected)


@pytest.mark.parametrize("name", ["one position", "a sequence"])
def test_nothing_that_was_recorded_is_changed(name: str) -> None:
    uses, basis = uses_of(name), a_basis()
    before = [(use.inputs.clone(), use.gradients.clone()) for use in uses]
    (
        RowGradients(uses).dense,
        RowGradients(uses).summed_squares(),
        RowGradients(uses).weighted_squares(None),
        RowGradients(uses, basis).weighted_squares(torch.ones(OUTPUTS, INPUTS).double()),
    )
    for use, (inputs, gradients) in zip(uses, before, strict=True):
        assert torch.equal(use.inputs, inputs)
        assert torch.equal(use.gradients, gradients)


def test_a_basis_takes_gradients_there_and_back() -> None:
    basis, gradient = a_basis(), drawn(2, OUTPUTS, INPUTS, seed=5)
    expected = torch.stack([basis.outputs.T @ one @ basis.inputs for one in gradient])
    assert_same(basis.rotate(gradient), expected)
    assert_same(basis.rotate_back(basis.rotate(gradient)), gradient)


@pytest.mark.parametrize("positions", [[1], [4], [2, 2], [5], [3, 3], [50]])
def test_each_side_is_rotated_where_that_takes_fewer_multiplications(positions: Sequence[int]) -> None:
    """Beside what both cost (the sum over positions of outer products)."""
    uses = [UseOfWeight(torch.zeros(BATCH, count, INPUTS), torch.zeros(BATCH, count, OUTPUTS)) for count in positions]
    inputs_first, outputs_first = contractions._sides_rotated_first(uses)
    assert inputs_first is (sum(positions) * INPUTS**2 <= INPUTS**2 * OUTPUTS)
    assert outputs_first is (sum(positions) * OUTPUTS**2 <= OUTPUTS**2 * INPUTS)
