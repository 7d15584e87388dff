"""Sums over the gradients of rows, without the gradients where that is possible.

The gradient of row b for a weight is DW_b = sum over uses and positions of g a^T, (out, in). Everything this plugin needs of it is a sum
or a product, and for a layer that has one position by row each of these is cheaper from a and g than from DW:

    sum_b DW_b^2          = (g^2)^T (a^2)
    sum_oi W_oi DW_b^2    = rowsum((g^2 W) * a^2)
    <P, DW_b>             = g^T P a

For sequences DW_b is made, in the basis asked for. Each side of it is rotated where that costs less: before, as a or g, which costs
B T n^2 for a side of width n, or in DW, which costs B n^2 m with m the width of the other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
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


class RowGradients:
    """Gradients of the rows of a batch for one weight, in a basis if one is given, made only where that is needed."""

    def __init__(self, uses: Sequence[UseOfWeight], basis: Basis | None = None) -> None:
        self.one_position: UseOfWeight | None = None
        """In the basis, where there is one use with one position by row; then no gradient is ever made."""
        self._uses, self._basis = uses, basis
        if len(uses) == 1 and uses[0].inputs.shape[1] == 1:
            self.one_position = uses[0] if basis is None else _rotated(uses[0], basis)

    @cached_property
    def dense(self) -> torch.Tensor:
        """(batch, out, in)."""
        if self.one_position is not None:
            return _outer([self.one_position])
        if self._basis is None:
            return _outer(self._uses)
        inputs_first, outputs_first = _sides_rotated_first(self._uses)
        found = _outer(
            [
                UseOfWeight(
                    use.inputs @ self._basis.inputs if inputs_first else use.inputs,
                    use.gradients @ self._basis.outputs if outputs_first else use.gradients,
                )
                for use in self._uses
            ]
        )
        found = found if inputs_first else found @ self._basis.inputs
        return found if outputs_first else self._basis.outputs.T @ found

    @cached_property
    def in_basis(self) -> Sequence[UseOfWeight]:
        """The uses, in the basis."""
        if self.one_position is not None:
            return [self.one_position]
        return self._uses if self._basis is None else [_rotated(use, self._basis) for use in self._uses]

    def summed_squares(self) -> torch.Tensor:
        """(out, in): sum over rows of the squared gradient, element by element."""
        if self.one_position is not None:
            return self.one_position.gradients[:, 0].square().T @ self.one_position.inputs[:, 0].square()
        # Row by row, so that a square is added while its row is in the processor's cache.
        total = self.dense[0].square()
        for row in self.dense[1:]:
            total.addcmul_(row, row)
        return total

    def weighted_squares(self, weights: torch.Tensor | None) -> torch.Tensor:
        """(batch,): sum of each row's squared gradient, weighted by (out, in) weights; None for ones."""
        if self.one_position is not None:
            outputs, inputs = self.one_position.gradients[:, 0].square(), self.one_position.inputs[:, 0].square()
            return outputs.sum(-1) * inputs.sum(-1) if weights is None else ((outputs @ weights) * inputs).sum(-1)
        if weights is None:
            norms: torch.Tensor = torch.linalg.vector_norm(self.dense, dim=(-2, -1))
            return norms.square()
        weighted = torch.empty_like(weights)
        return torch.stack([torch.mul(row, weights, out=weighted).flatten().dot(row.flatten()) for row in self.dense])

    def products(self, directions: torch.Tensor) -> torch.Tensor:
        """(query, batch): inner products with (query, out, in) directions of the same basis."""
        if self.one_position is None:
            return directions.flatten(1) @ self.dense.flatten(1).T
        inputs, gradients = self.one_position.inputs[:, 0].T, self.one_position.gradients[:, 0].T  # (in, batch), (out, batch)
        # A query at a time: (query, out, batch) would leave the processor's cache.
        return torch.stack([(direction @ inputs).mul_(gradients).sum(0) for direction in directions])

    def products_with(self, others: RowGradients) -> torch.Tensor:
        """(other row, row): inner products with the gradients of other rows in the same basis."""
        one, other = self.one_position, others.one_position
        if one is None or other is None:
            return self.products(others.dense)
        return (other.gradients[:, 0] @ one.gradients[:, 0].T) * (other.inputs[:, 0] @ one.inputs[:, 0].T)


def position_products(uses: Sequence[UseOfWeight], directions: torch.Tensor, basis: Basis | None = None) -> torch.Tensor:
    """(query, batch, position): inner products position by position, with directions in the basis; sums to `RowGradients.products`.

    It is what the weight's use at a position contributes, which reaches the loss of later positions too.
    """
    uses = uses if basis is None else [_rotated(use, basis) for use in uses]
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


def _sides_rotated_first(uses: Sequence[UseOfWeight]) -> tuple[bool, bool]:
    """Whether inputs, and gradients, are rotated before they are multiplied."""
    positions = sum(use.inputs.shape[1] for use in uses)
    return positions <= uses[0].gradients.shape[-1], positions <= uses[0].inputs.shape[-1]
