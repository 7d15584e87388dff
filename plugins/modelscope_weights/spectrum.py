"""Leading singular values of a matrix D, (m, n), that is read a block of rows at a time.

Two ways, both through G = D^T D (or D D^T, whichever is smaller) in float64:

- Smaller side at most `GRAM_SIDE`: G is summed over the row blocks and its eigenvalues are taken. Squaring D squares its
  condition number, so sigma_i is known to about 1e-16 (sigma_1 / sigma_i)^2 of its own size: exact for the largest singular
  values and the energy they hold, meaningless for those below 1e-8 sigma_1.

- Else: randomised block Lanczos. From a Gaussian block Omega of `BLOCK` columns, the Krylov space [Omega, G Omega, ...,
  G^(q-1) Omega] (Halko, Martinsson & Tropp 2011; Musco & Musco 2015) gets an orthonormal basis Q, and the eigenvalues theta_i
  of T = Q^T G Q stand for those of G. By Cauchy interlacing theta_i never exceeds lambda_i. With Ritz vectors Y and
  R = G Y - Y diag(theta), k eigenvalues of G lie within ||R||_2 of theta_1 ... theta_k (Kahan; Parlett 1998, theorem 11.5.1), and
  their distances sum to at most 2 ||R||_* (Lidskii). Those are the errors stated. The theorems promise some k eigenvalues, not
  the leading ones: where a spectrum is nearly flat, almost any vector has a small residual, the random block itself among them.
  So nothing is believed before `LEAST_BLOCKS` blocks, in which a leading direction that stands out of a flat spectrum has been
  multiplied into view. That is experience, not proof: a direction that the random block all but misses can still be missed.
  The space grows until both errors are below `TOLERANCE` or `MAXIMUM_BLOCKS` blocks are used.

Memory of the second way: two arrays of (smaller side) x `BLOCK` x `MAXIMUM_BLOCKS` float64 and a copy of one of them as it
grows, and (larger side) x `BLOCK` where D is wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

GRAM_SIDE = 1024
BLOCK = 32
LEAST_BLOCKS = 3
MAXIMUM_BLOCKS = 12
TOLERANCE = 5e-3
LEADING = 16

RowBlocks = Callable[[], Iterable[torch.Tensor]]
"""D, block of rows after block of rows, each (rows, n) float64, read anew at every call."""


class LeadingSpectrum(NamedTuple):
    """The largest singular values of a matrix."""

    singular_values: torch.Tensor
    """(min(LEADING, m, n),) float64, descending. Never above the true ones but for rounding."""
    sigma_error: float
    """Relative error of the largest one: 0 where eigenvalues were taken in full, else as the residual says, which is no bound."""
    energy_error: float
    """The same for the sum of squares of all of them."""


def leading_spectrum(blocks: RowBlocks, rows: int, columns: int, generator: torch.Generator) -> LeadingSpectrum:
    """Leading singular values of the (rows, columns) matrix that `blocks` reads. Read once if `columns` is at most `GRAM_SIDE`."""
    if columns <= GRAM_SIDE:
        return gram_spectrum(gram_matrix(blocks, columns), min(rows, columns))
    if columns <= rows:
        return lanczos_spectrum(lambda basis: _column_product(blocks, basis), columns, generator)
    return lanczos_spectrum(lambda basis: _row_product(blocks, basis, columns), rows, generator)


def gram_matrix(blocks: RowBlocks, columns: int) -> torch.Tensor:
    """(columns, columns): D^T D, summed over the row blocks."""
    gram = torch.zeros(columns, columns, dtype=torch.float64)
    for block in blocks():
        gram.addmm_(block.T, block)
    return gram


def gram_spectrum(gram: torch.Tensor, rank: int) -> LeadingSpectrum:
    """Leading singular values of D from D^T D or D D^T, whose rank is at most `rank`."""
    values = torch.linalg.eigvalsh(gram).flip(0)[: min(LEADING, rank)]
    return LeadingSpectrum(values.clamp_(min=0).sqrt_(), 0.0, 0.0)


def lanczos_spectrum(product: Callable[[torch.Tensor], torch.Tensor], side: int, generator: torch.Generator) -> LeadingSpectrum:
    """Leading singular values from `product`, which multiplies a (side, k) block by G; see above."""
    start = torch.randn(side, min(BLOCK, side), dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(start).Q
    images = product(basis)
    while True:
        spectrum = _ritz_values(basis, images)
        room = min(side, BLOCK * MAXIMUM_BLOCKS) - basis.shape[1]
        is_settled = basis.shape[1] >= LEAST_BLOCKS * BLOCK and max(spectrum.sigma_error, spectrum.energy_error) <= TOLERANCE
        if is_settled or room <= 0:
            return spectrum
        following = _orthonormal_beside(images[:, -BLOCK:][:, :room], basis)
        basis = torch.cat((basis, following), dim=1)
        images = torch.cat((images, product(following)), dim=1)


def _ritz_values(basis: torch.Tensor, images: torch.Tensor) -> LeadingSpectrum:
    """Rayleigh-Ritz on an orthonormal `basis`, (side, k), whose `images` are G basis."""
    projected = basis.T @ images
    thetas, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    thetas = thetas.flip(0)[:LEADING].clamp(min=0)
    vectors = vectors.flip(1)[:, :LEADING]
    residuals = images @ vectors - (basis @ vectors) * thetas
    largest = float(thetas[0])
    if largest == 0:
        return LeadingSpectrum(thetas, 0.0, 0.0)
    residuals /= largest  # so that squares of residuals neither overflow nor vanish
    sigma_error = float(torch.linalg.vector_norm(residuals[:, 0])) / 2
    sizes = torch.linalg.svdvals(residuals)
    energy_error = min(len(thetas) * float(sizes[0]), 2 * float(sizes.sum())) / float((thetas / largest).sum())
    return LeadingSpectrum(thetas.sqrt(), sigma_error, energy_error)


def _orthonormal_beside(block: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span `block` beside `basis`. Done twice: once leaves rounding of the size of what was removed."""
    for _ in range(2):
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
    return block


def _column_product(blocks: RowBlocks, basis: torch.Tensor) -> torch.Tensor:
    """D^T D times `basis`, (columns, k): one reading of D."""
    result = torch.zeros_like(basis)
    for block in blocks():
        result.addmm_(block.T, block @ basis)
    return result


def _row_product(blocks: RowBlocks, basis: torch.Tensor, columns: int) -> torch.Tensor:
    """D D^T times `basis`, (rows, k): two readings of D."""
    inner = torch.zeros(columns, basis.shape[1], dtype=torch.float64)  # D^T basis
    start = 0
    for block in blocks():
        inner.addmm_(block.T, basis[start : start + block.shape[0]])
        start += block.shape[0]
    return torch.cat([block @ inner for block in blocks()])
