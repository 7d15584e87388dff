"""The area under the ROC curve is the share of pairs in the right order, whatever the scores: counted, and asked of scipy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modelscope_probes.statistics import ranks
from modelscope_probes.statistics.ranks import auroc, midranks
from scipy import stats

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
# A few values that are close, tied, of both signs or zeros of both signs; neighbours of one bit among them.
CLOSE = [0.0, -0.0, 1.0, 1.0 + 2**-23, 1.0 + 2**-22, 1.0 + 2**-52, 1.0 - 2**-24, -1.0, -1.0 - 2**-23, 1e-45, -1e-45, 1e-40, 3e38, -3e38]
LABELLED = st.lists(
    st.tuples(st.sampled_from(CLOSE) | st.floats(allow_nan=False, allow_infinity=False, width=32), st.booleans()), min_size=1
)


def pairs_won(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """The definition, pair by pair, in Python's own floats."""
    positives, negatives = scores[labels].tolist(), scores[~labels].tolist()
    won = sum(1.0 if one > other else 0.5 if one == other else 0.0 for one in positives for other in negatives)
    return won / (len(positives) * len(negatives)) if positives and negatives else math.nan


def tied(seed: int, *shape: int, values: int = 20) -> torch.Tensor:
    return torch.randint(values, shape, generator=torch.Generator().manual_seed(seed)).to(torch.float32) / 7 - 1


def some_labels(seed: int, count: int) -> torch.Tensor:
    labels = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.4
    labels[:2] = torch.tensor([True, False])
    return labels


@given(LABELLED, st.sampled_from([torch.float32, torch.float64]))
def test_the_area_is_the_count_of_pairs_to_the_last_bit(pairs: list[tuple[float, bool]], dtype: torch.dtype) -> None:
    scores = torch.tensor([score for score, _ in pairs], dtype=dtype)
    labels = torch.tensor([label for _, label in pairs])
    assert auroc(scores, labels).item() == pytest.approx(pairs_won(scores, labels), rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_every_dtype_are_counted_alike(dtype: torch.dtype) -> None:
    labels = some_labels(0, 60)
    scores = (torch.randn(5, 60, generator=torch.Generator().manual_seed(1)) * 8).to(dtype)
    assert auroc(scores, labels).tolist() == [pairs_won(row, labels) for row in scores]


@pytest.mark.parametrize("values", [2, 20, 10**6])
def test_the_area_agrees_with_scipy(values: int) -> None:
    labels, scores = some_labels(2, 300), tied(3, 4, 300, values=values)
    pairs = int(labels.sum()) * int((~labels).sum())
    told = [stats.mannwhitneyu(row[labels].numpy(), row[~labels].numpy()).statistic / pairs for row in scores]
    assert auroc(scores, labels).tolist() == told


@given(st.lists(st.sampled_from(CLOSE) | st.floats(allow_nan=False), min_size=1, max_size=30))
def test_midranks_agree_with_scipy(values: list[float]) -> None:
    assert midranks(torch.tensor(values, dtype=torch.float64)).tolist() == stats.rankdata(values).tolist()


def test_leading_dimensions_are_kept_and_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = some_labels(6, 50), tied(7, 2, 7, 50)
    whole, ranked = auroc(scores, labels), midranks(scores)
    monkeypatch.setattr(ranks, "VALUES_AT_ONCE", 150)
    assert whole.shape == (2, 7)
    assert torch.equal(auroc(scores, labels), whole)
    assert torch.equal(midranks(scores), ranked)


def test_constant_scores_are_a_half() -> None:
    for value in (0.0, -3.5, 1e30):
        assert auroc(torch.full((2, 9), value), some_labels(8, 9)).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("odd", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 7])  # a positive, a negative, another
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_score_that_is_not_finite_makes_its_row_unknown(odd: float, place: int, dtype: torch.dtype) -> None:
    scores = torch.randn(3, 12, generator=torch.Generator().manual_seed(9)).to(dtype)
    labels = some_labels(10, 12)
    scores[1, place] = odd
    found = auroc(scores, labels)
    assert found.isnan().tolist() == [False, True, False]
    assert midranks(scores).isnan().all(-1).tolist() == [False, math.isnan(odd), False]


def test_the_largest_finite_scores_are_scores() -> None:
    for dtype in (torch.float32, torch.float64):
        largest = torch.finfo(dtype).max
        scores = torch.tensor([largest, -largest, 0.0, largest], dtype=dtype)
        assert auroc(scores, torch.tensor([True, False, True, False])).item() == pairs_won(scores, torch.tensor([True, False, True, False]))


@pytest.mark.parametrize("label", [True, False])
def test_an_absent_class_leaves_the_area_unknown(label: bool) -> None:
    labels = torch.full((5,), label)
    assert auroc(torch.arange(5.0).expand(2, 5), labels).isnan().all()
    assert auroc(torch.empty(2, 0), torch.empty(0, dtype=torch.bool)).isnan().all()


def test_labels_of_another_kind_are_refused() -> None:
    for labels in (torch.ones(4, dtype=torch.int64), torch.ones(3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"expected \(4,\) torch.bool"):
            auroc(torch.randn(2, 4), labels)


@given(st.integers(0, 10**6), st.sampled_from([0.5, 2.0, 1024.0]), st.integers(-4, 4))
def test_affine_maps_leave_the_area_and_a_sign_flip_mirrors_it(seed: int, scale: float, shift: int) -> None:
    labels, scores = some_labels(seed, 40), tied(seed, 40).to(torch.float64)  # float64: these maps make no ties and part none
    area = auroc(scores, labels)
    assert auroc(scores * scale + shift, labels) == area
    assert auroc(-scores, labels).item() == pytest.approx(1 - area.item(), abs=1e-15)  # two roundings of the same share


def test_the_input_is_left_as_it_was() -> None:
    scores = tied(11, 3, 30)
    before = scores.clone()
    auroc(scores, some_labels(12, 30))
    auroc(scores.double(), some_labels(12, 30))
    assert torch.equal(scores, before)
