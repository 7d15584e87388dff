"""The checksum of a tensor against its formula in plain Python, and what it has to tell apart."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_app.jobs.worker import checksum
from modelscope_app.jobs.worker.checksum import PIECE_BYTES, checksum_of_pieces, checksums

CPU = torch.device("cpu")
WORDS = PIECE_BYTES // 4


def by_the_formula(content: bytes) -> int:
    """The head of the module, one word at a time; as a signed 64-bit number."""
    coefficients = checksum._coefficients(CPU).tolist()
    total = 0
    for start in range(0, len(content), PIECE_BYTES):
        piece = content[start : start + PIECE_BYTES]
        piece += bytes(-len(piece) % 4)
        words = struct.unpack(f"<{len(piece) // 4}i", piece)
        total = total * checksum._STEP + sum(c * w for c, w in zip(coefficients, words, strict=False))
    return (total + 2**63) % 2**64 - 2**63


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(checksum, "PIECE_BYTES", 64)
    monkeypatch.setitem(globals(), "PIECE_BYTES", 64)
    for made in (checksum._coefficients, checksum._products):
        made.cache_clear()
    yield
    for made in (checksum._coefficients, checksum._products):
        made.cache_clear()


def test_the_coefficients_are_odd_and_use_all_bits() -> None:
    coefficients = checksum._coefficients(CPU)
    assert bool((coefficients & 1).all())
    assert coefficients.unique().numel() == len(coefficients) == WORDS
    assert 0.45 < float((coefficients < 0).double().mean()) < 0.55


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 63, 64, 65, 127, 128, 129, 1000])
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_it_is_the_formula_for_any_length_and_place(length: int, offset: int) -> None:
    content = torch.randint(0, 256, (offset + length,), generator=torch.Generator().manual_seed(length), dtype=torch.uint8)
    assert checksums([content[offset:]]) == [by_the_formula(bytes(content[offset:].tolist()))]


@pytest.mark.parametrize("extra", [-4, 0, 4, 6])
def test_it_is_the_formula_where_a_real_piece_ends(extra: int) -> None:
    content = torch.randint(0, 256, (PIECE_BYTES + extra,), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert checksums([content]) == [by_the_formula(content.numpy().tobytes())]


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.bool)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_of_the_elements_whatever_their_type(dtype: torch.dtype) -> None:
    whole = (torch.randn(6, 10, 7, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    for tensor in (whole, whole[1:5], whole[2, 4], whole[0, 0, 0], whole[:0]):
        assert checksums([tensor]) == [by_the_formula(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_that_lie_apart_are_all_looked_at(dtype: torch.dtype) -> None:
    whole = (torch.randn(6, 10, 7, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    for view in (lambda t: t[1:5, 2:9], lambda t: t.transpose(0, 2), lambda t: t[:, 3], lambda t: t[..., 0].T, lambda t: t[:, :, ::3]):
        before = checksums([view(whole)])
        assert checksums([view(whole)]) == before
        for at in ((0, 0, 0), (-1, -1, -1), (1, 2, 2)):
            changed = whole.clone()
            part = view(changed)
            place = tuple(at[: part.dim()])
            part[place] = ~part[place] if dtype == torch.bool else part[place] + 1
            assert checksums([part]) != before


def test_pieces_read_from_elsewhere_have_the_same_checksum_as_the_tensor() -> None:
    tensor = torch.randn(3 * PIECE_BYTES // 4 + 5, generator=torch.Generator().manual_seed(0))
    content = tensor.view(torch.uint8)
    pieces = [content[start : start + PIECE_BYTES].clone() for start in range(0, len(content), PIECE_BYTES)]
    assert int(checksum_of_pieces(iter(pieces), CPU)) == checksums([tensor])[0]


@settings(deadline=None)
@given(length=st.integers(2, 300), data=st.data())
def test_any_single_change_and_any_exchange_shows(length: int, data: st.DataObject) -> None:
    content = torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length), dtype=torch.uint8)
    changed, at = content.clone(), data.draw(st.integers(0, length - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    exchanged, one, other = content.clone(), *data.draw(st.tuples(st.integers(0, length - 1), st.integers(0, length - 1)))
    exchanged[one], exchanged[other] = content[other], content[one]
    before, after, swapped = checksums([content, changed, exchanged])
    assert before != after
    assert (before == swapped) == bool(content[one] == content[other])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [3, 64])
def test_what_leaves_every_sum_alone_shows(dtype: torch.dtype, rows: int) -> None:
    """Negated values differ in top bits alone, which a sum of products that forgets carries would not see; and exchanged rows in places."""
    weight = torch.randn(rows, 32, generator=torch.Generator().manual_seed(rows)).to(dtype)
    swapped = weight.clone()
    swapped[[0, 1]] = weight[[1, 0]]
    found = checksums([weight, -weight, swapped, weight.flip(0), weight.roll(1, 1), weight * 2, torch.zeros_like(weight)])
    assert len(set(found)) == len(found)
