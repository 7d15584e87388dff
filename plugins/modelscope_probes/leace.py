"""Least-squares concept erasure (LEACE; Belrose et al. 2023, theorem 4.3): the smallest change after which no linear probe works.

With labels z, a column for two classes and one-hot columns for more, S_xx and S_xz the covariances with x (ddof 1), and W the
Moore-Penrose inverse of the square root of S_xx,

    r(x) = x - P (x - mean),    P = W^+ U U^T W,    U an orthonormal basis of the columns of W S_xz

P is a projection, P^2 = P, of rank at most classes - 1. Of all affine maps after which x and z do not covary, r moves x least in the mean
square. On the fitting rows all class means are then equal, and the best logistic probe is the constant. Taking away one direction,
x - (x . w) w, does neither.

Nothing is shrunk and the trace of the covariance is not constrained. Singular values of W S_xz below `tolerance` are not erased: for two
classes the one there is equals sqrt(q (1 - q)) R, q the share of True and R the correlation of z with its least-squares fit. So with
0.01, and one True row in a thousand, a relation up to R = 0.3 stays; `rank` says what was erased.

The sums behind it merge (Chan, Golub & LeVeque 1983), so that rows can be read in parts. Fitted directly, rows fewer than features are
handled in their own span, without a (d, d) array.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from modelscope_app.api import BadInput
from modelscope_probes.directions.linear_probe import checked_rows

TOLERANCE = 0.01


class Leace(NamedTuple):
    """The eraser r, with P = left @ right."""

    left: torch.Tensor
    """(..., d, k) float64: W^+ U. Columns of what is not erased are 0."""
    right: torch.Tensor
    """(..., k, d) float64: U^T W."""
    mean: torch.Tensor
    """(..., d) float64: mean of the fitting rows, which r leaves where it is."""
    rank: torch.Tensor
    """(...) int64: of P; 0 if no relation was above the tolerance, and r(x) = x."""

    @property
    def projection(self) -> torch.Tensor:
        """(..., d, d): P, what is taken away."""
        return self.left @ self.right

    def erase(self, x: torch.Tensor) -> torch.Tensor:
        """(..., n, d) float64: r of rows x."""
        x = x.double()
        return x - (x - self.mean[..., None, :]) @ self.right.mT @ self.left.mT


class LeaceSums(NamedTuple):
    """What is known of n rows; plain tensors, as a fold's state wants them (`_asdict()`)."""

    rows: torch.Tensor
    """() int64: n."""
    mean_x: torch.Tensor
    """(..., d)."""
    mean_z: torch.Tensor
    """(k,)."""
    xx: torch.Tensor
    """(..., d, d): sum of (x - mean)(x - mean)^T."""
    xz: torch.Tensor
    """(..., d, k): sum of (x - mean)(z - mean)^T."""


def label_columns(y: torch.Tensor, classes: int = 2) -> torch.Tensor:
    """(n, 1) float64 for two classes, (n, classes) one-hot for more, of labels y (n,): bool, or 0 ... classes - 1."""
    if classes == 2:
        return y.double()[:, None]
    return torch.nn.functional.one_hot(y.long(), classes).double()


def leace(x: torch.Tensor, y: torch.Tensor, *, tolerance: float = TOLERANCE) -> Leace:
    """Fitted on rows x (..., n, d) with labels y (n,), bool or 0 ... classes - 1. BadInput for fewer than two rows."""
    x = checked_rows(x)
    n, d = x.shape[-2:]
    if n < 2 or y.shape != (n,):
        raise BadInput(f"erasing a concept needs two rows or more and a label for each, not {n} rows and labels of shape {tuple(y.shape)}")
    z = label_columns(y, max(2, int(y.max()) + 1))
    if d <= n:
        return leace_of(leace_sums(x, z), tolerance=tolerance)
    mean = x.mean(-2)
    basis, triangle = torch.linalg.qr((x - mean[..., None, :]).mT)  # (..., d, n): the span of the centred rows
    inner = leace_of(leace_sums(triangle.mT, z), tolerance=tolerance)
    return Leace(basis @ inner.left, inner.right @ basis.mT, mean, inner.rank)


def leace_sums(x: torch.Tensor, z: torch.Tensor) -> LeaceSums:
    """Of rows x (..., n, d) with label columns z (n, k)."""
    x, z = checked_rows(x), z.double()
    n, d = x.shape[-2:]
    count = torch.tensor(n, dtype=torch.int64, device=x.device)
    if n == 0:
        zero = x.new_zeros
        lead = x.shape[:-2]
        return LeaceSums(count, zero(*lead, d), zero(z.shape[1]), zero(*lead, d, d), zero(*lead, d, z.shape[1]))
    mean_x, mean_z = x.mean(-2), z.mean(0)
    x, z = x - mean_x[..., None, :], z - mean_z
    return LeaceSums(count, mean_x, mean_z, x.mT @ x, x.mT @ z)


def merged(a: LeaceSums, b: LeaceSums) -> LeaceSums:
    """The sums of the rows of both."""
    count = a.rows + b.rows
    share = b.rows.double() / count.clamp(min=1)  # int64 by int64 would be float32
    to_x, to_z = b.mean_x - a.mean_x, b.mean_z - a.mean_z
    weight = a.rows * share
    xx = a.xx + b.xx + weight * to_x[..., :, None] * to_x[..., None, :]
    xz = a.xz + b.xz + weight * to_x[..., :, None] * to_z
    return LeaceSums(count, a.mean_x + share * to_x, a.mean_z + share * to_z, xx, xz)


def leace_of(sums: LeaceSums, *, tolerance: float = TOLERANCE) -> Leace:
    """The eraser of rows whose sums these are, two rows or more."""
    values, vectors = torch.linalg.eigh(sums.xx / (sums.rows - 1))
    d = values.shape[-1]
    is_there = values > values[..., -1:] * d * torch.finfo(values.dtype).eps  # the cut of torch.linalg.pinv
    root = torch.where(is_there, values.clamp(min=0).sqrt(), 0.0)
    inverse_root = torch.where(is_there, root.reciprocal(), 0.0)
    # W S_xz in the eigenbasis, where W is diagonal
    relation = inverse_root[..., None] * (vectors.mT @ sums.xz) / (sums.rows - 1)
    u, sizes, _ = torch.linalg.svd(relation, full_matrices=False)  # (..., d, k)
    u = u * (sizes > tolerance)[..., None, :]
    left, right = vectors @ (root[..., None] * u), (inverse_root[..., None] * u).mT @ vectors.mT
    return Leace(left, right, sums.mean_x, (sizes > tolerance).sum(-1))
