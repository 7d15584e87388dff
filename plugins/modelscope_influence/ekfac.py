"""EK-FAC and its relatives: a Gauss-Newton Hessian that can be inverted, one block for each weight. Pure tensors.

With a the inputs and g the output gradients of a weight (out, in) over real positions, uncentred covariances A = E[a a^T] and
S = E[g g^T], eigenvectors Q_A and Q_S, and D_b the gradient of row b in that basis, the block is

    H = (Q_S x Q_A) diag(eigenvalues) (Q_S x Q_A)^T
    eigenvalues = mean over rows of D_b^2        EK-FAC (George et al. 2018): one row is one sample, whatever its length
                  lambda_S lambda_A^T            K-FAC (Martens and Grosse 2015): positions are samples, so its scale is another
    H = diag(mean over rows of DW_b^2)           diagonal
    H = I                                        identity: gradient dot product, undamped

and (H + damping I)^-1 V = Q_S [ (Q_S^T V Q_A) / (eigenvalues + damping) ] Q_A^T, with damping a fraction of the block's mean eigenvalue
(Grosse et al. 2023 take 0.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from modelscope_app.api import JobFailed
from modelscope_influence.contractions import Basis
from modelscope_influence.recording import UseOfWeight

Method = Literal["ekfac", "kfac", "diagonal", "identity"]
_MORE_PROBES = 8
"""Random directions beyond the rank, so that none of its range is missed."""


class Curvature(NamedTuple):
    """The block of one weight."""

    basis: Basis | None
    """None where the block is diagonal in the parameters themselves."""
    eigenvalues: torch.Tensor | None
    """(out, in), not negative; None for the identity."""
    rows: int
    """Training rows that went into it."""
    positions: int
    """Real positions of them."""

    @property
    def mean_eigenvalue(self) -> float:
        """What damping is a fraction of; 1 for the identity."""
        return 1.0 if self.eigenvalues is None else float(self.eigenvalues.double().mean())

    def inverse(self, fraction: float) -> torch.Tensor | None:
        """(out, in) float64: 1 / (eigenvalue + damping), in the basis; None for the identity.

        Raises JobFailed where all eigenvalues are zero, and where one is, but for rounding, and nothing damps it.
        """
        if self.eigenvalues is None:
            return None
        eigenvalues = self.eigenvalues.double()
        if not self.mean_eigenvalue > 0:
            raise JobFailed("the curvature of a module is zero everywhere: no training row has a gradient there; leave it out of --modules")
        # A square of a gradient that is rounding alone.
        rounding = torch.finfo(self.eigenvalues.dtype).eps ** 2 * self.eigenvalues.numel() * float(eigenvalues.max())
        if not fraction and float(eigenvalues.min()) <= rounding:
            raise JobFailed("the curvature is singular (an eigenvalue is zero, and damping is too); raise --damping above 0")
        return (eigenvalues + fraction * self.mean_eigenvalue).reciprocal_()

    def precondition(self, gradient: torch.Tensor, fraction: float) -> torch.Tensor:
        """(..., out, in): (H + damping)^-1 applied to gradients, in their dtype."""
        inverse = self.inverse(fraction)
        if inverse is None:
            return gradient
        inverse = inverse.to(gradient)
        if self.basis is None:
            return gradient * inverse
        basis = Basis(self.basis.inputs.to(gradient), self.basis.outputs.to(gradient))
        return basis.rotate_back(basis.rotate(gradient) * inverse)


def input_sums(uses: Sequence[UseOfWeight], onto: torch.Tensor | None = None) -> torch.Tensor:
    """(in, in): sum of a a^T over all positions of all uses, added `onto` earlier sums in place."""
    return _sums([use.inputs for use in uses], onto)


def gradient_sums(uses: Sequence[UseOfWeight], onto: torch.Tensor | None = None) -> torch.Tensor:
    """(out, out): sum of g g^T over all positions of all uses, added `onto` earlier sums in place."""
    return _sums([use.gradients for use in uses], onto)


def _sums(parts: Sequence[torch.Tensor], onto: torch.Tensor | None) -> torch.Tensor:
    total = parts[0].new_zeros(parts[0].shape[-1], parts[0].shape[-1]) if onto is None else onto
    for part in parts:
        flat = part.flatten(0, 1)
        if total.device == flat.device and total.dtype == flat.dtype:
            total.addmm_(flat.T, flat)  # a temporary of this size would cost as much as the product of a small batch
        else:
            total += (flat.T @ flat).to(total)
    return total


def eigendecomposition(covariance: torch.Tensor, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (n,) ascending and eigenvectors (n, n) as columns of a covariance, both in float64.

    Where it is a sum over fewer than half as many positions as it is wide, `rank` of them, its range is found first and only that is
    decomposed, which takes a quarter of the time; the rest of the basis is any that completes it, as all of it has eigenvalue zero.
    Eigenvalues that are smaller than the covariance's own rounding are zero.
    """
    symmetric = covariance.double()
    symmetric = (symmetric + symmetric.T) / 2
    rounding = torch.finfo(covariance.dtype).eps
    found = None
    if rank is not None and 2 * (rank + _MORE_PROBES) < len(symmetric):
        found = _of_low_rank(symmetric, rank + _MORE_PROBES, max(100 * rounding, 1e-12))
    values, vectors = torch.linalg.eigh(symmetric) if found is None else found
    return values.masked_fill(values <= rounding * values[-1], 0), vectors


def _of_low_rank(symmetric: torch.Tensor, probed: int, rounding: float) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The same by way of a random projection on `probed` directions (Halko, Martinsson and Tropp 2011).

    None where that misses more of the matrix than the rounding of its sums, relative to its norm.
    """
    width = len(symmetric)
    probes = torch.randn(width, probed, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(symmetric.device)
    basis, _ = torch.linalg.qr(symmetric @ probes, mode="complete")
    basis = basis.contiguous()
    inside = basis[:, :probed]
    projected = inside.T @ symmetric @ inside
    missed = float((symmetric - inside @ projected @ inside.T).norm())
    if missed > rounding * float(symmetric.norm()):
        return None
    values, vectors = torch.linalg.eigh(projected)
    outside = basis[:, probed:]
    return torch.cat([values.new_zeros(width - probed), values]), torch.cat([outside, inside @ vectors], dim=1)


def kfac_eigenvalues(outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """(out, in) from the eigenvalues of both covariances."""
    return outputs[:, None] * inputs
