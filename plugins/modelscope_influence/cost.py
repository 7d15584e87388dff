"""How long influence takes, told from sizes. Rough: within a factor of three on a processor that nobody else uses. Imports no torch.

With P parameters of the model that multiply, N positions of R rows, weights (out, in), Q queries and T = N / R:

    a pass        4 P N                                    forward, and backward to activations alone
    covariances   2 N (in^2 + out^2)                       by weight
    gradients     2 N out in                               of rows, in sequences; none are made of rows with one position
    rotating      2 in^2 min(N, R out) + 2 out^2 min(N, R in)
    squares       2 R out in, six passes over memory where gradients are made
    products      2 Q R out in
    eigenvectors  in^3 + out^3 by weight, in float64; a quarter where there are fewer than half as many positions as the width

Covariances take one pass; eigenvalues another, with gradients, rotating and squares; scores a third, with products as well.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

_MEMORY_PASSES = 6
_CALLS_BY_WEIGHT = 40
"""Calls into torch for a weight in a batch, the model's own among them."""


class Sizes(NamedTuple):
    """What is computed on."""

    shapes: Sequence[tuple[int, int]]
    """(out, in) of each weight that influence is computed for."""
    parameters: int
    """Of the model, those that multiply: without embedding tables, with the head."""
    rows: int
    positions: int
    """Real positions of all rows; as many as rows where a row has one."""
    positions_at_once: int
    """In a batch."""

    @property
    def is_sequences(self) -> bool:
        """Whether gradients of rows are sums over positions."""
        return self.positions > self.rows

    @property
    def elements(self) -> int:
        """Of all weights."""
        return sum(outputs * inputs for outputs, inputs in self.shapes)


class Speed(NamedTuple):
    """What a device does in a second."""

    operations: float
    """Multiplications and additions in float32, as they are reached in products of the size that occurs."""
    memory_bytes: float
    cubes: float
    """Width^3 of an eigendecomposition in float64."""
    calls: float


def speed(device: str, threads: int | None = None) -> Speed:
    """Of a device of this type, by figures measured once (AVX-512 cores of a server; others may be three times slower)."""
    if device != "cpu":
        return Speed(1e13, 5e11, 2e10, 1e5)
    cores = threads or _cores()
    return Speed(6e10 * cores, 5e9 * cores**0.5, 3.3e9 * cores**0.5, 2.5e5)


def fitting_seconds(sizes: Sizes, method: str, draws: int, at: Speed) -> float:
    """Of curvature by `method`, with so many labels drawn for each position, and as many backward passes."""
    if method == "identity":
        return 0.0
    seconds = 0.0
    if method in ("ekfac", "kfac"):
        products = 2 * sizes.positions * sum(outputs**2 + inputs**2 for outputs, inputs in sizes.shapes)
        cubes = sum(_cube(width, sizes.positions) for shape in sizes.shapes for width in shape)
        seconds += _pass_seconds(sizes, draws, at) + products * (1 + draws) / 2 / at.operations + cubes / at.cubes
    if method in ("ekfac", "diagonal"):
        seconds += _pass_seconds(sizes, draws, at) + draws * _row_seconds(sizes, method == "ekfac", at)
    return seconds


def scoring_seconds(sizes: Sizes, queries: int, method: str, at: Speed, passes: int = 1) -> float:
    """Of every pair's score and every row's self-influence, or of the latter alone where there are no queries.

    `passes` over the rows are made where the queries' gradients are not held at once.
    """
    products = 2 * queries * sizes.rows * sizes.elements / at.operations
    own = _pass_seconds(sizes, 1, at) + _row_seconds(sizes, method in ("ekfac", "kfac"), at)
    return products + passes * own


def _pass_seconds(sizes: Sizes, backwards: int, at: Speed) -> float:
    batches = -(-sizes.positions // sizes.positions_at_once)
    operations = 2 * sizes.parameters * sizes.positions * (1 + backwards)
    return operations / at.operations + batches * len(sizes.shapes) * _CALLS_BY_WEIGHT / at.calls


def _row_seconds(sizes: Sizes, is_rotated: bool, at: Speed) -> float:
    """Of gradients and their squares."""
    rows, positions = sizes.rows, sizes.positions
    operations = 2 * rows * sizes.elements
    if sizes.is_sequences:
        operations += 2 * positions * sizes.elements
    if is_rotated:
        operations += sum(2 * i * i * min(positions, rows * o) + 2 * o * o * min(positions, rows * i) for o, i in sizes.shapes)
    memory = _MEMORY_PASSES * 4 * rows * sizes.elements if sizes.is_sequences else 0
    return operations / at.operations + memory / at.memory_bytes


def _cube(width: int, positions: int) -> float:
    return width**3 / (4 if 2 * positions < width else 1)


def _cores() -> int:
    """That torch would use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else os.cpu_count() or 1
