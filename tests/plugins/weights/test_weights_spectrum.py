"""Leading singular values against a full decomposition, and their noise baseline against simulated noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from modelscope_weights import spectrum
from modelscope_weights.bit_patterns import pattern_values
from modelscope_weights.differences import (
    added,
    change_between,
    change_over_rounding,
    cosine,
    difference_sums,
    relative_change,
    rounding_noise,
)
from modelscope_weights.random_matrix import noise_singular_values, noise_stable_rank, noise_top_energy
from modelscope_weights.rounding import coarser, rounding_square
from modelscope_weights.spectrum import LEADING, LeadingSpectrum, lanczos_spectrum, leading_spectrum

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def low_rank(rows: int, columns: int, rank: int) -> torch.Tensor:
    return gaussian(rows, rank, 1) @ gaussian(rank, columns, 2)


def decaying(rows: int, columns: int) -> torch.Tensor:
    side = min(rows, columns)
    left, right = torch.linalg.qr(gaussian(rows, side, 3)).Q, torch.linalg.qr(gaussian(columns, side, 4)).Q
    product: torch.Tensor = left * torch.arange(1, side + 1, dtype=torch.float64) ** -0.7 @ right.T
    return product


def flat(rows: int, columns: int, spread: float) -> torch.Tensor:
    """All singular values within `spread` below 1, and one of 1.03, as an orthogonalised update with one larger direction has them."""
    side = min(rows, columns)
    left, right = torch.linalg.qr(gaussian(rows, side, 3)).Q, torch.linalg.qr(gaussian(columns, side, 4)).Q
    values = 1 - spread * torch.rand(side, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    values[0] = 1.03
    product: torch.Tensor = left * values @ right.T
    return product


MATRICES: dict[str, Callable[[int, int], torch.Tensor]] = {
    "noise": gaussian,
    "rank 1": lambda rows, columns: low_rank(rows, columns, 1),
    "rank 40": lambda rows, columns: low_rank(rows, columns, 40),
    "rank 5 in noise": lambda rows, columns: low_rank(rows, columns, 5) + gaussian(rows, columns),
    "slow decay": decaying,
    "flat with a spike": lambda rows, columns: flat(rows, columns, 0.0),
    "nearly flat with a spike": lambda rows, columns: flat(rows, columns, 2e-3),
}


def leading(matrix: torch.Tensor, block: int = 37) -> LeadingSpectrum:
    generator = torch.Generator().manual_seed(5)
    rows, columns = matrix.shape
    return leading_spectrum(lambda: torch.split(matrix, block), rows, columns, generator)


@pytest.mark.parametrize("shape", [(120, 70), (70, 120), (64, 64), (300, 5), (5, 300), (1, 9), (9, 1)], ids=str)
@pytest.mark.parametrize("kind", MATRICES)
def test_small_matrices_get_their_exact_singular_values(kind: str, shape: tuple[int, int]) -> None:
    matrix = MATRICES[kind](*shape)
    found = leading(matrix)
    true = torch.linalg.svdvals(matrix)[:LEADING]
    assert found.singular_values.shape == true.shape
    assert (found.sigma_error, found.energy_error) == (0, 0)
    # The Gram matrix knows a singular value to the square root of rounding, relative to the largest.
    torch.testing.assert_close(found.singular_values, true, rtol=1e-10, atol=float(true[0]) * 1e-7)
    assert float(found.singular_values[0]) == pytest.approx(float(true[0]), rel=1e-13)
    assert float((found.singular_values**2).sum()) == pytest.approx(float((true**2).sum()), rel=1e-13)


@pytest.mark.parametrize("shape", [(700, 300), (300, 700), (420, 420)], ids=str)
@pytest.mark.parametrize("kind", MATRICES)
def test_lanczos_stays_below_the_truth_and_within_the_error_it_states(
    kind: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrum, "GRAM_SIDE", 10)
    monkeypatch.setattr(spectrum, "BLOCK", 20)
    monkeypatch.setattr(spectrum, "MAXIMUM_BLOCKS", 6)
    matrix = MATRICES[kind](*shape)
    found = leading(matrix)
    true = torch.linalg.svdvals(matrix)[:LEADING]
    rounding = 1e-12
    assert bool((found.singular_values <= true * (1 + rounding) + 1e-7 * true[0]).all())
    assert 1 - float(found.singular_values[0] / true[0]) <= found.sigma_error + rounding
    energy, true_energy = float((found.singular_values**2).sum()), float((true**2).sum())
    assert 1 - energy / true_energy <= found.energy_error + rounding
    assert found.energy_error < 0.4


def test_lanczos_meets_its_tolerance_on_a_large_matrix_of_noise() -> None:
    matrix = gaussian(1300, 1100)
    found = leading(matrix, block=256)
    true = torch.linalg.svdvals(matrix)[:LEADING]
    assert max(found.sigma_error, found.energy_error) <= spectrum.TOLERANCE
    assert float((found.singular_values**2).sum()) == pytest.approx(float((true**2).sum()), rel=spectrum.TOLERANCE)
    assert float(found.singular_values[0]) == pytest.approx(float(true[0]), rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spread", [0.0, 2e-3])
def test_a_direction_that_stands_out_of_a_flat_spectrum_is_found_within_the_error_stated(seed: int, spread: float) -> None:
    """Lanczos from a Gaussian block does not know the basis, so a diagonal matrix stands for all with its singular values."""
    values = 1 - spread * torch.rand(1500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values[0] = 1.03
    found = lanczos_spectrum(lambda block: values**2 * block, 1500, torch.Generator().manual_seed(90 + seed))
    true = values.flatten().sort(descending=True).values[:LEADING]
    assert 1 - float(found.singular_values[0] / true[0]) <= found.sigma_error + 1e-12
    assert 1 - float((found.singular_values**2).sum() / (true**2).sum()) <= found.energy_error + 1e-12


@pytest.mark.parametrize("scale", [1e-145, 1e150])
def test_the_errors_stated_do_not_depend_on_the_size_of_the_numbers(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "GRAM_SIDE", 10)
    plain, scaled = leading(gaussian(500, 450)), leading(gaussian(500, 450) * scale)
    torch.testing.assert_close(scaled.singular_values / scale, plain.singular_values, rtol=1e-10, atol=0)
    assert plain.sigma_error > 0
    assert scaled[1:] == pytest.approx(plain[1:], rel=1e-3)


def test_lanczos_takes_a_basis_as_large_as_the_matrix_if_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "GRAM_SIDE", 10)
    monkeypatch.setattr(spectrum, "TOLERANCE", 0.0)
    matrix = gaussian(90, 75)
    true = torch.linalg.svdvals(matrix)[:LEADING]
    torch.testing.assert_close(leading(matrix).singular_values, true, rtol=1e-10, atol=0)


def test_the_same_generator_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "GRAM_SIDE", 10)
    matrix = gaussian(300, 200)
    assert torch.equal(leading(matrix).singular_values, leading(matrix).singular_values)


def test_a_matrix_of_zeros_has_zero_singular_values(monkeypatch: pytest.MonkeyPatch) -> None:
    assert leading(torch.zeros(30, 20, dtype=torch.float64)).singular_values.tolist() == [0.0] * LEADING
    monkeypatch.setattr(spectrum, "GRAM_SIDE", 10)
    assert leading(torch.zeros(60, 50, dtype=torch.float64)).singular_values.tolist() == [0.0] * LEADING


@pytest.mark.parametrize("shape", [(400, 400), (300, 900), (2000, 150)], ids=str)
def test_the_noise_baseline_is_what_noise_measures(shape: tuple[int, int]) -> None:
    """Marchenko-Pastur against simulated matrices; at these sizes it is good to some percent."""
    squares = torch.stack([torch.linalg.svdvals(gaussian(*shape, seed=seed)) ** 2 for seed in range(3)])
    totals = squares.sum(dim=1, keepdim=True)
    energy = float((squares[:, :LEADING] / totals).sum(dim=1).mean())
    assert noise_top_energy(*shape, LEADING) == pytest.approx(energy, rel=0.02)
    assert noise_stable_rank(*shape) == pytest.approx(float((totals[:, 0] / squares[:, 0]).mean()), rel=0.05)
    torch.testing.assert_close(noise_singular_values(*shape, LEADING), (squares / totals).sqrt().mean(dim=0)[:LEADING], rtol=0.03, atol=0)


def test_the_noise_baseline_of_a_matrix_with_few_rows_holds_all_energy() -> None:
    assert noise_top_energy(16, 500, LEADING) == 1.0
    assert noise_top_energy(1, 1, LEADING) == 1.0
    assert noise_stable_rank(1, 1) == 1.0
    assert len(noise_singular_values(3, 500, LEADING)) == 3


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)], ids=str)
def test_one_row_or_column_has_one_singular_value_which_is_its_norm(shape: tuple[int, int]) -> None:
    assert noise_singular_values(*shape, LEADING).tolist() == [1.0]
    assert (noise_stable_rank(*shape), noise_top_energy(*shape, LEADING)) == (1.0, 1.0)


@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (15, 15), (2, 500), (500, 15)], ids=str)
def test_matrices_too_small_for_the_law_have_no_noise_baseline(shape: tuple[int, int]) -> None:
    assert math.isnan(noise_stable_rank(*shape))
    assert bool(noise_singular_values(*shape, LEADING).isnan().all())


@pytest.mark.parametrize("shape", [(16, 16), (17, 40), (20, 20), (40, 16)], ids=str)
def test_from_sixteen_on_the_noise_baseline_is_as_rough_as_the_docs_say(shape: tuple[int, int]) -> None:
    squares = torch.stack([torch.linalg.svdvals(gaussian(*shape, seed=seed)) ** 2 for seed in range(200)])
    totals = squares.sum(dim=1, keepdim=True)
    assert noise_stable_rank(*shape) == pytest.approx(float((totals[:, 0] / squares[:, 0]).mean()), rel=1 / 6)
    true = (squares / totals).sqrt().mean(dim=0)[:LEADING]
    torch.testing.assert_close(noise_singular_values(*shape, LEADING)[:12], true[:12], rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"), [(torch.float16, np.float16), (torch.float32, np.float32), (torch.float64, np.float64)], ids=str
)
def test_the_distance_between_neighbours_is_numpys(dtype: torch.dtype, numpy_dtype: type) -> None:
    values: np.ndarray = np.array([1.0, -1.5, 1.9990234375, 2.0, -0.3333, 1e-3, 6.1e-5, 3e-6, 0.0, 60000.0], dtype=numpy_dtype)
    for value in values:
        single = torch.tensor([float(value)], dtype=torch.float64)
        assert math.sqrt(rounding_square(single, dtype) * 12) == pytest.approx(abs(float(np.spacing(value))), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FLOAT8], ids=str)
def test_the_distance_between_neighbours_is_that_of_the_bit_patterns(dtype: torch.dtype) -> None:
    values = pattern_values(dtype)
    ascending = sorted(set(values[torch.isfinite(values) & (values >= 0)].tolist()))
    for value, following in list(pairwise(ascending))[:: max(1, len(ascending) // 300)]:
        single = torch.tensor([value], dtype=torch.float64)
        assert math.sqrt(rounding_square(single, dtype) * 12) == pytest.approx(following - value, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FLOAT8[:4]], ids=str)
def test_rounding_moves_a_tensor_as_far_as_predicted(dtype: torch.dtype) -> None:
    values = gaussian(400, 500)
    error = values.to(torch.float32).to(dtype).to(torch.float64) - values
    # 200,000 errors: their mean square is known to about 0.2 %, and at float8's few digits they are not quite evenly spread.
    assert math.sqrt(rounding_square(values, dtype)) == pytest.approx(float(error.norm()), rel=0.02)


def test_integers_have_no_rounding_floor_and_the_coarser_of_two_dtypes_decides() -> None:
    assert rounding_square(gaussian(2, 2), torch.int32) == 0
    assert coarser(torch.float32, torch.bfloat16) == coarser(torch.bfloat16, torch.float16) == torch.bfloat16
    assert coarser(torch.int8, torch.float32) == torch.float32


def test_difference_sums_add_up_over_parts_and_are_numpys() -> None:
    before, after = gaussian(40, 30), gaussian(40, 30, seed=1)
    after[:5] = before[:5]
    whole = difference_sums(before, after, torch.float32)
    parts = added(difference_sums(before[:7], after[:7], torch.float32), difference_sums(before[7:], after[7:], torch.float32))
    assert parts == pytest.approx(whole, rel=1e-13)
    a, b = before.numpy(), after.numpy()
    assert relative_change(whole) == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-13)
    assert cosine(whole) == pytest.approx(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-13)
    assert (whole.largest_change, whole.changed) == (np.abs(b - a).max(), (a != b).sum())
    assert change_over_rounding(whole) == pytest.approx(relative_change(whole) / rounding_noise(whole), rel=1e-13)


def test_something_grown_from_zeros_has_an_unknown_relative_change() -> None:
    zeros, ones = torch.zeros(3, 3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)
    assert math.isnan(relative_change(difference_sums(zeros, ones, torch.float32)))
    assert relative_change(difference_sums(zeros, zeros, torch.float32)) == 0
    assert math.isnan(cosine(difference_sums(zeros, ones, torch.float32)))
    assert math.isnan(cosine(difference_sums(ones, zeros, torch.float32)))


@pytest.mark.parametrize("scale", [1e-170, 1e-155, 1e160])
def test_sizes_that_float64_cannot_square_are_unknown_and_neither_zero_nor_infinite(scale: float) -> None:
    before = gaussian(6, 5) * scale
    sums = difference_sums(before, 3 * before, torch.float64)
    assert all(math.isnan(measure(sums)) for measure in (relative_change, cosine, rounding_noise, change_over_rounding))
    assert sums.changed == 30
    one_side = difference_sums(gaussian(6, 5), before, torch.float64)
    assert math.isnan(cosine(one_side))


@pytest.mark.parametrize("scale", [1e-140, 1e140])
def test_sizes_that_it_can_square_are_exact(scale: float) -> None:
    plain = difference_sums(gaussian(6, 5), gaussian(6, 5, seed=1), torch.float64)
    scaled = difference_sums(gaussian(6, 5) * scale, gaussian(6, 5, seed=1) * scale, torch.float64)
    assert relative_change(scaled) == pytest.approx(relative_change(plain), rel=1e-13)
    assert cosine(scaled) == pytest.approx(cosine(plain), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_the_change_of_integers_is_exact(dtype: torch.dtype) -> None:
    extremes = {
        torch.int64: [-(2**63), 2**63 - 1, 2**53, 2**53 + 1, -1, 0],
        torch.uint64: [2**64 - 1, 2**64 - 2, 2**63, 2**53 + 1, 2**53, 0],
    }
    values = extremes.get(dtype, [0, 1, 1, 0, 1, 0])
    other = values[1:] + values[:1]
    found = change_between(*(torch.from_numpy(np.array(side, dtype=str(dtype).removeprefix("torch."))) for side in (values, other)))
    assert found.tolist() == [float(b - a) for a, b in zip(values, other, strict=True)]
