"""LEACE against the authors' package, and what it promises of the rows it was fitted on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from modelscope_probes.directions.lda import lda
from modelscope_probes.directions.linear_probe import scores
from modelscope_probes.directions.logistic import logistic
from modelscope_probes.leace import LeaceSums, label_columns, leace, leace_of, leace_sums, merged
from modelscope_probes.statistics.ranks import auroc
from oracles.probe_inputs import SHAPES, classes, rows

from modelscope_app.api import BadInput

AGREED = 1e-10
"""Both decompose the same covariances in float64; concept-erasure sums them in another order."""


def given(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    found = rows(name)
    return torch.from_numpy(found.x), torch.from_numpy(found.y)


def cross_covariance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = label_columns(y, int(y.max()) + 1)
    return (x - x.mean(0)).T @ (z - z.mean(0)) / (len(x) - 1)


@pytest.mark.parametrize("name", ["tall", "square"])
def test_the_projection_is_that_of_concept_erasure(answers: Any, name: str) -> None:
    found = leace(*given(name))
    assert found.projection.numpy() == pytest.approx(np.array(answers["leace"][name]["projection"]), abs=AGREED)
    assert found.mean.tolist() == pytest.approx(answers["leace"][name]["mean"], abs=AGREED)
    assert int(found.rank) == 1


def test_three_classes_are_erased_as_concept_erasure_does(answers: Any) -> None:
    found = leace(given("tall")[0], torch.from_numpy(classes(60)))
    assert found.projection.numpy() == pytest.approx(np.array(answers["leace_of_three"]["projection"]), abs=AGREED)
    assert int(found.rank) == 2


def test_more_features_than_rows_are_erased_as_concept_erasure_does(answers: Any) -> None:
    x, y = given("wide")
    assert leace(x, y).erase(x)[:4].numpy() == pytest.approx(np.array(answers["leace_wide"]), abs=AGREED)


@pytest.mark.parametrize("kinds", [2, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_erased_rows_do_not_covary_with_the_labels_and_class_means_are_equal(name: str, kinds: int) -> None:
    x, y = given(name)
    y = y.long() if kinds == 2 else torch.from_numpy(classes(len(y)))
    erased = leace(x, y).erase(x)
    assert float(cross_covariance(x, y).abs().max()) > 0.1
    assert float(cross_covariance(erased, y).abs().max()) < 1e-9
    for kind in range(kinds):
        torch.testing.assert_close(erased[y == kind].mean(0), x.mean(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SHAPES)
def test_erasing_twice_is_erasing_once(name: str) -> None:
    x, y = given(name)
    eraser = leace(x, y)
    torch.testing.assert_close(eraser.erase(eraser.erase(x)), eraser.erase(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(eraser.projection @ eraser.projection, eraser.projection, rtol=0, atol=1e-11)


def test_no_logistic_probe_works_on_erased_rows() -> None:
    x, y = given("tall")
    erased = leace(x, y).erase(x)
    probe = logistic(erased, y, 100.0)
    assert probe.direction.tolist() == [0.0] * 5  # where the fit starts, and F falls in no direction
    assert float(probe.bias) == pytest.approx(math.log(24 / 36), abs=1e-12)
    assert float(auroc(scores(probe, erased), y)) == 0.5
    assert float(auroc(scores(logistic(x, y, 100.0), x), y)) > 0.8


def test_taking_one_direction_away_is_no_erasure() -> None:
    x, y = given("tall")
    w = torch.nn.functional.normalize(lda(x, y).direction, dim=0)
    ablated = x - (x @ w)[:, None] * w
    assert float((ablated[y].mean(0) - ablated[~y].mean(0)).norm()) > 0.3
    assert float(auroc(scores(logistic(ablated, y), ablated), y)) > 0.65


def test_it_moves_the_rows_less_than_removing_the_mean_difference_obliquely_or_orthogonally() -> None:
    """Theorem 4.3 says least in the mean square among affine maps that erase; the orthogonal projection erases too."""
    x, y = given("tall")
    u = torch.nn.functional.normalize(cross_covariance(x, y.long())[:, 0], dim=0)
    orthogonal = x - ((x - x.mean(0)) @ u)[:, None] * u
    assert float(cross_covariance(orthogonal, y.long()).abs().max()) < 1e-12
    assert float((leace(x, y).erase(x) - x).square().sum()) < float((orthogonal - x).square().sum())


def test_labels_that_have_nothing_to_do_with_the_rows_leave_them_as_they_are() -> None:
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    eraser = leace(x, torch.tensor([True, True, False, False]))
    assert int(eraser.rank) == 0
    assert eraser.erase(x).tolist() == x.tolist()


def test_layers_are_erased_as_if_alone() -> None:
    x, y = given("tall")
    x = torch.stack((x, x.flip(1) * 3, torch.zeros_like(x)))
    together = leace(x, y)
    assert together.rank.tolist() == [1, 1, 0]
    torch.testing.assert_close(together.projection[1], leace(x[1], y).projection, rtol=0, atol=AGREED)
    torch.testing.assert_close(together.erase(x)[1], leace(x[1], y).erase(x[1]), rtol=0, atol=AGREED)
    wide, y = given("wide")
    torch.testing.assert_close(leace(wide.expand(2, -1, -1), y).erase(wide)[1], leace(wide, y).erase(wide), rtol=0, atol=AGREED)


@pytest.mark.parametrize("cuts", [(0, 1, 60), (17, 17, 60), (20, 40, 60)])
def test_rows_read_in_parts_give_what_all_at_once_give(cuts: tuple[int, ...]) -> None:
    x, y = given("tall")
    x, z = x.expand(2, -1, -1) + 1000, label_columns(y)
    sums = leace_sums(x[:, :0], z[:0])
    for start, end in zip((0, *cuts), cuts, strict=False):
        sums = merged(sums, leace_sums(x[:, start:end], z[start:end]))
    whole = leace_sums(x, z)
    for part, one in zip(sums, whole, strict=True):
        torch.testing.assert_close(part, one, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(leace_of(LeaceSums(**sums._asdict())).projection, leace(x, y).projection, rtol=0, atol=1e-9)


def test_a_label_for_each_row_is_needed() -> None:
    x, y = given("tall")
    with pytest.raises(BadInput, match="a label for each"):
        leace(x, y[:-1])
