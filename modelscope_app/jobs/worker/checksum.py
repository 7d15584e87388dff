"""A number that stands for the content of a tensor, computed where the tensor is, in bounded memory.

The bytes are read as 32-bit words w_0, w_1 ... in pieces of n words. With odd 64-bit coefficients c_i, drawn once,

    piece = sum_i c_i w_i  mod 2^64            content = sum_j K^(m-j) piece_j  mod 2^64

for the pieces j = 1 ... m and an odd K. Every word counts by its position, so exchanged rows show, and a change of one word always
does, because an odd coefficient has an inverse. Any other change goes unnoticed with a probability of about 2^-32 (multilinear
hashing; the top bit of a 64-bit word would be weaker, which is why the words have 32). Not meant to withstand an adversary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import torch

PIECE_BYTES = 4 << 20
_WORD_BYTES = 4
_STEP = 0x5851F42D4C957F2D


def checksums(tensors: Sequence[torch.Tensor]) -> list[int]:
    """One for each tensor. A device is waited for once, at the end."""
    found = [checksum_of_pieces(_pieces(tensor.detach()), tensor.device) for tensor in tensors]
    return [int(value) for value in torch.stack([value.to(found[0].device) for value in found]).tolist()] if found else []


def checksum_of_pieces(pieces: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """(): of bytes that come in pieces of PIECE_BYTES, the last one shorter."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    coefficients, products = _coefficients(device), _products(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # where cores are busy, threads that wait for one another at every piece take fifty times as long
    try:
        for piece in pieces:
            words = _words(piece)
            product = torch.mul(words, coefficients[: len(words)], out=products[: len(words)])
            total.mul_(_STEP).add_(product.sum())
    finally:
        torch.set_num_threads(threads)
    return total


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The bytes of a tensor in the order of its elements; of one that is not contiguous, a few rows at a time are copied."""
    if tensor.numel() == 0:
        return
    if not tensor.is_contiguous():
        rows = max(1, PIECE_BYTES * len(tensor) // tensor.nbytes)
        for start in range(0, len(tensor), rows):
            yield from _pieces(tensor[start : start + rows].contiguous())
        return
    flat = tensor.view(-1).view(torch.uint8)
    for start in range(0, len(flat), PIECE_BYTES):
        yield flat[start : start + PIECE_BYTES]


def _words(piece: torch.Tensor) -> torch.Tensor:
    """Bytes as 32-bit words, padded with zeros; in place where they lie as words do."""
    padding = -len(piece) % _WORD_BYTES
    if padding or piece.data_ptr() % _WORD_BYTES or piece.storage_offset() % _WORD_BYTES:
        piece = torch.nn.functional.pad(piece, (0, padding)) if padding else piece.clone()
    return piece.view(torch.int32)


@cache
def _coefficients(device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(-(2**63), 2**63 - 1, (PIECE_BYTES // _WORD_BYTES,), generator=generator, dtype=torch.int64)
    return (drawn | 1).to(device)


@cache
def _products(device: torch.device) -> torch.Tensor:
    return torch.empty(PIECE_BYTES // _WORD_BYTES, dtype=torch.int64, device=device)
