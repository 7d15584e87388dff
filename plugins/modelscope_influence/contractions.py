"""Sums over the gradients of rows, without the gradients where that is possible.

The gradient of row b for a weight is DW_b = sum over uses and positions of g a^T, (out, in). Everything this plugin needs of it is a sum
or a product, and for a layer that has one position by row each of these is cheaper from a and g than from DW:

    sum_b DW_b^2          = (g^2)^T (a^2)
    sum_oi W_oi DW_b^2    = rowsum((g^2 W) * a^2)
    <P, DW_b>             = g^T P a

For sequences DW_b is made, in the basis asked for: rotating a and g first costs B T (in^2 + out^2), rotating DW costs
B out in (in + out); the smaller is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from modelscope_influence.recording import UseOfWeight


class Basis(NamedTuple):
    """Orthonormal bases of inputs and outputs of a weight, as columns."""

    inputs: torch.Tensor
    """(in, in)."""
    outputs: torch.Tensor
    """(out, out)."""

    def rotate(self, gradient: torch.Tensor) -> torch.Tensor:
        """(..., out, in) in this basis."""
        return self.outputs.T @ gradient @ self.inputs

    def rotate_back(self, gradient: torch.Tensor) -> torch.Tensor:
        """(..., out, in) in the parameters' own basis."""
        return self.outputs @ gradient @ self.inputs.T


def row_gradients(uses: Sequence[UseOfWeight], basis: Basis | None = None) -> torch.Tensor:
    """(batch, out, in): the gradient of each row, in a basis if one is given."""
    if basis is None:
        return _outer(uses)
    if _rotating_first_is_cheaper(uses):
        return _outer([_rotated(use, basis) for use in uses])
    return basis.rotate(_outer(uses))


def summed_squares(uses: Sequence[UseOfWeight], basis: Basis | None = None) -> torch.Tensor:
    """(out, in): sum over rows of the squared gradient, element by element in the basis."""
    if _has_one_position(uses):
        use = uses[0] if basis is None else _rotated(uses[0], basis)
        return use.gradients[:, 0].square().T @ use.inputs[:, 0].square()
    return row_gradients(uses, basis).square_().sum(dim=0)


def weighted_squares(uses: Sequence[UseOfWeight], weights: torch.Tensor | None, basis: Basis | None = None) -> torch.Tensor:
    """(batch,): sum of each row's squared gradient in the basis, weighted by (out, in) weights; None for ones."""
    if _has_one_position(uses):
        if weights is None:
            return uses[0].gradients[:, 0].square().sum(-1) * uses[0].inputs[:, 0].square().sum(-1)
        use = uses[0] if basis is None else _rotated(uses[0], basis)
        return ((use.gradients[:, 0].square() @ weights) * use.inputs[:, 0].square()).sum(-1)
    squares = row_gradients(uses, basis if weights is not None else None).square_()
    return squares.sum((-2, -1)) if weights is None else squares.flatten(1) @ weights.flatten()


def products(uses: Sequence[UseOfWeight], directions: torch.Tensor) -> torch.Tensor:
    """(query, batch): inner products of (query, out, in) directions with each row's gradient."""
    if _has_one_position(uses):
        inputs, gradients = uses[0].inputs[:, 0], uses[0].gradients[:, 0]
        applied = (directions.flatten(0, 1) @ inputs.T).reshape(*directions.shape[:2], -1)  # (query, out, batch)
        return torch.einsum("qob,bo->qb", applied, gradients)
    return directions.flatten(1) @ row_gradients(uses).flatten(1).T


def position_products(uses: Sequence[UseOfWeight], directions: torch.Tensor) -> torch.Tensor:
    """(query, batch, position): the same, position by position; sums to `products`.

    It is what the weight's use at a position contributes, which reaches the loss of later positions too.
    """
    parts = [torch.einsum("qoi,bto,bti->qbt", directions, use.gradients, use.inputs) for use in uses]
    return torch.stack(parts).sum(0)


def _outer(uses: Sequence[UseOfWeight]) -> torch.Tensor:
    """(batch, out, in)."""
    total = uses[0].gradients.transpose(1, 2) @ uses[0].inputs
    for use in uses[1:]:
        total += use.gradients.transpose(1, 2) @ use.inputs
    return total


def _rotated(use: UseOfWeight, basis: Basis) -> UseOfWeight:
    return UseOfWeight(use.inputs @ basis.inputs, use.gradients @ basis.outputs)


def _has_one_position(uses: Sequence[UseOfWeight]) -> bool:
    return len(uses) == 1 and uses[0].inputs.shape[1] == 1


def _rotating_first_is_cheaper(uses: Sequence[UseOfWeight]) -> bool:
    positions = sum(use.inputs.shape[1] for use in uses)
    inputs, outputs = uses[0].inputs.shape[-1], uses[0].gradients.shape[-1]
    return positions * (inputs**2 + outputs**2) <= inputs * outputs * (inputs + outputs)
