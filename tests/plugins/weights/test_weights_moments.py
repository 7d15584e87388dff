"""Moments, histograms and bit-pattern counts against numpy, and every fast path against the slow one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from modelscope_weights.bit_patterns import pattern_counts, pattern_values
from modelscope_weights.histograms import bin_counts, bin_edges
from modelscope_weights.moments import Moments, euclidean_norm, kurtosis, merged, moments, standard_deviation
from modelscope_weights.row_chunks import row_ranges
from modelscope_weights.tensor_statistics import by_pattern, by_value, tensor_statistics

NARROW = [
    *(torch.bfloat16, torch.float16, torch.int16, torch.uint16, torch.int8, torch.uint8),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]


def numpy_moments(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, standard deviation and kurtosis in extended precision."""
    wide = values.astype(np.longdouble)
    deviations = wide - wide.mean()
    variance = (deviations**2).mean()
    return float(wide.mean()), float(np.sqrt(variance)), float((deviations**4).mean() / variance**2)


def in_parts(values: torch.Tensor, size: int) -> Moments:
    whole = Moments()
    for part in torch.split(values, size):
        whole = merged(whole, moments(part))
    return whole


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1e8, 1e-3), (-1e12, 1.0), (3.0, 1e-9)], ids=str)
@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
def test_a_large_mean_beside_a_small_deviation_costs_no_digits_however_the_values_are_cut(mean: float, deviation: float, size: int) -> None:
    values = mean + deviation * np.random.default_rng(0).standard_normal(5000)
    found = in_parts(torch.from_numpy(values), size)
    expected = numpy_moments(values)
    assert found.mean == pytest.approx(expected[0], rel=1e-15)
    assert standard_deviation(found) == pytest.approx(expected[1], rel=1e-9)
    assert kurtosis(found) == pytest.approx(expected[2], rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)), st.integers(1, 39))
def test_moments_of_parts_merge_into_those_of_the_whole_with_nan_and_infinity_set_apart(values: np.ndarray, cut: int) -> None:
    wide = torch.from_numpy(values.astype(np.float64))
    whole, parts = moments(wide), in_parts(wide, cut)
    finite = values[np.isfinite(values)].astype(np.float64)
    assert whole[:7] == parts[:7]
    assert whole.finite == finite.size
    assert (whole.nan, whole.positive_infinite, whole.negative_infinite) == (
        np.isnan(values).sum(),
        np.isposinf(values).sum(),
        np.isneginf(values).sum(),
    )
    assert whole.zeros == (finite == 0).sum()
    if finite.size:
        scale = np.abs(finite).max()
        assert (whole.minimum, whole.maximum) == (finite.min(), finite.max())
        assert whole.mean == pytest.approx(finite.mean(), rel=1e-12, abs=1e-12 * scale)
        for found in (whole, parts):
            assert standard_deviation(found) == pytest.approx(finite.std(), rel=1e-9, abs=1e-12 * scale)
            assert euclidean_norm(found) == pytest.approx(np.linalg.norm(finite), rel=1e-12, abs=1e-300)


def test_negative_zero_is_a_zero_and_denormals_are_not() -> None:
    found = moments(torch.tensor([0.0, -0.0, 1e-320, -1e-45], dtype=torch.float64))
    assert found.zeros == 2
    assert (found.minimum, found.maximum) == (-1e-45, 1e-320)


def test_equal_values_have_no_deviation_and_no_kurtosis() -> None:
    found = in_parts(torch.full((1000,), 0.1, dtype=torch.float64), 7)
    assert (found.mean, standard_deviation(found)) == (0.1, 0.0)
    assert math.isnan(kurtosis(found))


def test_kurtosis_is_three_for_a_gaussian_and_nine_fifths_for_a_uniform_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    count = 400_000
    tolerance = 5 * math.sqrt(24 / count)  # five standard errors of a Gaussian's kurtosis
    assert kurtosis(moments(torch.randn(count, generator=generator, dtype=torch.float64))) == pytest.approx(3, abs=tolerance)
    assert kurtosis(moments(torch.rand(count, generator=generator, dtype=torch.float64))) == pytest.approx(1.8, abs=tolerance)


@pytest.mark.parametrize("scale", [1e-170, 1e-155, 1e160])
def test_moments_that_float64_cannot_hold_are_unknown_and_neither_zero_nor_infinite(scale: float) -> None:
    values = (torch.arange(1, 17, dtype=torch.float64) * scale).reshape(4, 4)
    statistics, _ = tensor_statistics(lambda: [values], 4, has_rows=True)
    unknown = (statistics.norm, statistics.rms, statistics.std, statistics.kurtosis, statistics.outliers)
    assert all(math.isnan(value) for value in unknown)
    assert (statistics.maximum, statistics.zeros, statistics.zero_rows) == (16 * scale, 0, 0)


def test_a_fourth_moment_that_vanishes_leaves_the_rest_known() -> None:
    found = moments(torch.arange(16, dtype=torch.float64) * 1e-90)
    assert standard_deviation(found) == pytest.approx(np.arange(16).std() * 1e-90, rel=1e-13)
    assert math.isnan(kurtosis(found))


def test_without_a_finite_value_the_norm_is_unknown_and_without_any_value_it_is_zero() -> None:
    assert math.isnan(euclidean_norm(moments(torch.full((3,), math.nan, dtype=torch.float64))))
    assert math.isnan(euclidean_norm(moments(torch.tensor([math.inf, -math.inf], dtype=torch.float64))))
    assert euclidean_norm(moments(torch.zeros(0, dtype=torch.float64))) == 0


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_pattern_values_are_what_torch_reads_from_the_bits(dtype: torch.dtype) -> None:
    every = torch.arange(1 << (8 * dtype.itemsize), dtype=torch.int32).to(torch.uint8 if dtype.itemsize == 1 else torch.uint16).view(dtype)
    through_float32 = every.to(torch.float32).to(torch.float64)
    torch.testing.assert_close(pattern_values(dtype), through_float32, rtol=0, atol=0, equal_nan=True)


def test_brain_floats_are_the_upper_half_of_single_ones() -> None:
    bits = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaN among the patterns
        expected = bits.astype(np.float64)
    np.testing.assert_array_equal(pattern_values(torch.bfloat16).numpy(), expected)


def test_half_floats_are_numpys() -> None:
    np.testing.assert_array_equal(
        pattern_values(torch.float16).numpy(), np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)
    )


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("bins", [1, 7, 64])
def test_counting_bit_patterns_agrees_with_reading_the_values(dtype: torch.dtype, bins: int) -> None:
    """Random bits: every kind of value occurs, infinities, NaN, denormals and both zeros among them."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 256, (300, 16 * dtype.itemsize), generator=generator, dtype=torch.uint8)
    bits[17] = 0
    tensor = bits.view(dtype)
    chunks = lambda: torch.split(tensor, 31)  # noqa: E731
    fast, slow = by_pattern(chunks, dtype, bins), by_value(chunks, bins)
    assert fast.whole[:7] == slow.whole[:7]
    assert fast.histogram.tolist() == slow.histogram.tolist()
    assert (fast.outliers, fast.zero_rows) == (slow.outliers, slow.zero_rows)
    assert fast.whole[9:] == pytest.approx(slow.whole[9:], rel=1e-9)
    assert fast.whole.mean == pytest.approx(slow.whole.mean, rel=1e-12)


def test_pattern_counts_are_numpys() -> None:
    tensor = torch.randn(70_000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    expected = np.bincount(tensor.view(torch.uint16).numpy(), minlength=65536)
    np.testing.assert_array_equal(pattern_counts(tensor).numpy(), expected)


def test_booleans_count_as_zero_and_one() -> None:
    statistics, histogram = tensor_statistics(lambda: [torch.tensor([[True, False], [False, False]])], 2, has_rows=True)
    assert (statistics.zeros, statistics.maximum, statistics.mean, statistics.zero_rows, statistics.distinct) == (3, 1, 0.25, 1, 2)
    assert histogram.tolist() == [3, 1]


@settings(max_examples=80, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)), st.integers(1, 130))
def test_histograms_are_numpys(values: np.ndarray, bins: int) -> None:
    if values.min() == values.max() or (values.max() - values.min()) / bins < 1e-290:
        return
    counts, edges = np.histogram(values, bins=bins)
    found = bin_edges(values.min(), values.max(), bins)
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), edges)
    np.testing.assert_array_equal(bin_counts(torch.from_numpy(values), found).numpy(), counts)


def test_values_on_edges_belong_to_the_bin_on_their_right_and_the_last_edge_to_the_last_bin() -> None:
    edges = bin_edges(0.0, 3.0, 3)
    assert edges is not None
    assert bin_counts(torch.tensor([0.0, 1.0, 2.0, 3.0, math.nan, math.inf], dtype=torch.float64), edges).tolist() == [1, 1, 2]


@pytest.mark.parametrize("value", [0.0, -2.5, 1e20, 1e-45])
def test_a_constant_tensor_has_one_full_bin_of_some_width(value: float) -> None:
    edges = bin_edges(value, value, 5)
    assert edges is not None
    assert bool((edges.diff() > 0).all())
    assert bin_counts(torch.full((9,), value, dtype=torch.float64), edges).tolist() == [0, 0, 9, 0, 0]


def test_a_range_too_wide_for_float64_has_no_histogram_and_unknown_moments() -> None:
    tensor = torch.tensor([[-1.7e308, 1.7e308]], dtype=torch.float64)
    statistics, histogram = tensor_statistics(lambda: [tensor], 4, has_rows=True)
    assert (statistics.minimum, statistics.maximum) == (-1.7e308, 1.7e308)
    assert not math.isfinite(statistics.std)
    assert histogram.sum() == 0


def test_outliers_lie_further_than_six_deviations_from_the_mean() -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    values[:3] = torch.tensor([12.0, -3.0, 20.0])
    statistics, _ = tensor_statistics(lambda: [values.reshape(-1, 1)], 8, has_rows=False)
    deviations = np.abs(values.numpy() - values.numpy().mean()) / values.numpy().std()
    assert statistics.outliers == (deviations > 6).sum() == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=4).map(tuple), st.integers(1, 40))
def test_row_ranges_cover_every_row_once_and_hold_no_more_than_a_chunk(shape: tuple[int, ...], elements: int) -> None:
    ranges = row_ranges(shape, elements)
    rows = shape[0] if shape else 1
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(rows))
    per_row = math.prod(shape[1:])
    assert all(stop - start == 1 or (stop - start) * per_row <= elements for start, stop in ranges)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_a_tensor_without_elements_is_not_read(shape: tuple[int, ...]) -> None:
    assert row_ranges(shape) == []
