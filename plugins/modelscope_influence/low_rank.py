"""Gradients of queries, divided by curvature, as products of thin matrices: many fit where few would as they are.

    P_q (out, in)  ~  left_q (out, rank) right_q (rank, in)
    <P_q, DW_b>    ~  sum over positions and ranks of (g left_q) (right_q a)

It is an approximation: a scan with it finds candidates, which are then scored exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from modelscope_influence.contractions import RowGradients

_MORE_PROBES, _ITERATIONS = 8, 2
"""Of the randomised singular value decomposition."""
_REBUILT_BYTES = 64 * 2**20
"""Of matrices that are multiplied out at once."""


class LowRank(NamedTuple):
    """Directions of a weight, by query."""

    left: torch.Tensor
    """(query, out, rank)."""
    right: torch.Tensor
    """(query, rank, in)."""


Directions = torch.Tensor | LowRank
"""(query, out, in), as they are or as products."""


def multiplied_out(directions: Directions) -> torch.Tensor:
    """(query, out, in), multiplied out."""
    return directions.left @ directions.right if isinstance(directions, LowRank) else directions


def taken(directions: Directions, queries: torch.Tensor) -> Directions:
    """These queries, in that order."""
    if isinstance(directions, LowRank):
        queries = queries.to(directions.left.device)
        return LowRank(directions.left[queries], directions.right[queries])
    return directions[queries.to(directions.device)]


def is_smaller(outputs: int, inputs: int, rank: int) -> bool:
    """Whether thin matrices take less room."""
    return rank * (outputs + inputs) < outputs * inputs


def compressed(directions: torch.Tensor, rank: int) -> Directions:
    """The nearest directions of that rank, by a randomised singular value decomposition (Halko, Martinsson and Tropp 2011), seeded.

    As they are where thin matrices would take no less room.
    """
    outputs, inputs = directions.shape[1:]
    if not is_smaller(outputs, inputs, rank):
        return directions
    probes = torch.randn(inputs, min(rank + _MORE_PROBES, inputs, outputs), generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(directions @ probes.to(directions)).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(directions.mT @ basis).Q
        basis = torch.linalg.qr(directions @ basis).Q
    left, values, right = torch.linalg.svd(basis.mT @ directions, full_matrices=False)
    rank = min(rank, values.shape[-1])
    return LowRank(basis @ (left[..., :rank] * values[:, None, :rank]), right[:, :rank].contiguous())


def concatenated(parts: list[Directions]) -> Directions:
    """Queries of several batches; all parts are of one kind."""
    thin = [part for part in parts if isinstance(part, LowRank)]
    if thin:
        return LowRank(torch.cat([part.left for part in thin]), torch.cat([part.right for part in thin]))
    return torch.cat([part for part in parts if isinstance(part, torch.Tensor)])


def squared_norms(directions: Directions) -> torch.Tensor:
    """(query,) float64."""
    if isinstance(directions, LowRank):
        return ((directions.left.mT @ directions.left) * (directions.right @ directions.right.mT)).double().sum((1, 2))
    return directions.double().square().sum((1, 2))


def products(rows: RowGradients, directions: Directions) -> torch.Tensor:
    """(query, row): inner products, in whichever way takes fewer multiplications."""
    if isinstance(directions, torch.Tensor):
        return rows.products(directions)
    _, outputs, rank = directions.left.shape
    inputs = directions.right.shape[-1]
    positions = sum(use.inputs.shape[0] * use.inputs.shape[1] for use in rows.in_basis)
    batch = rows.in_basis[0].inputs.shape[0]
    directly = positions * rank * (outputs + inputs)
    rebuilt = (rank + batch) * outputs * inputs
    size = directions.left.element_size()
    if directly <= rebuilt:
        at_once = max(1, _REBUILT_BYTES // (positions * rank * size))
        parts = zip(torch.split(directions.left, at_once), torch.split(directions.right, at_once), strict=True)
        return torch.cat([_directly(rows, LowRank(left, right)) for left, right in parts])
    at_once = max(1, _REBUILT_BYTES // (outputs * inputs * size))
    return torch.cat(
        [
            rows.products(directions.left[at : at + at_once] @ directions.right[at : at + at_once])
            for at in range(0, len(directions.left), at_once)
        ]
    )


def _directly(rows: RowGradients, directions: LowRank) -> torch.Tensor:
    queries, _, rank = directions.left.shape
    left = directions.left.permute(1, 0, 2).flatten(1)  # (out, query rank)
    right = directions.right.permute(2, 0, 1).flatten(1)  # (in, query rank)
    total = rows.in_basis[0].inputs.new_zeros(queries, rows.in_basis[0].inputs.shape[0])
    for use in rows.in_basis:
        by_position = (use.gradients @ left).mul_(use.inputs @ right)  # (batch, position, query rank)
        total += by_position.sum(1).reshape(-1, queries, rank).sum(-1).T
    return total
