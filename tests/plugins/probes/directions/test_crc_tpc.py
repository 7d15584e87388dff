"""CRC-TPC against scikit-learn's PCA and a singular value decomposition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from modelscope_probes.directions.crc_tpc import crc_tpc, difference_scores
from modelscope_probes.pair_sides import side
from oracles.probe_inputs import pairs


def normalised_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    no, yes = map(torch.from_numpy, pairs())
    return side(no).normalised(no), side(yes).normalised(yes)


def test_it_is_the_first_component_of_scikit_learn(answers: Any) -> None:
    found = crc_tpc(*normalised_pairs())
    assert abs(float(found.direction @ torch.tensor(answers["pca"]["direction"]).double())) == pytest.approx(1, abs=1e-7)  # json float32
    assert float(found.share) == pytest.approx(answers["pca"]["share"], rel=1e-12)


@pytest.mark.parametrize("shape", [(12, 50), (50, 12)])
def test_more_features_than_pairs_or_fewer_it_is_the_first_right_singular_vector(shape: tuple[int, int]) -> None:
    random = np.random.RandomState(2)
    no, yes = random.standard_normal(shape), random.standard_normal(shape) * 2 + 1
    found = crc_tpc(torch.from_numpy(no), torch.from_numpy(yes))
    differences = yes - no - (yes - no).mean(0)
    _, sizes, rows = np.linalg.svd(differences, full_matrices=False)
    assert abs(found.direction.numpy() @ rows[0]) == pytest.approx(1, abs=1e-12)
    assert float(found.share) == pytest.approx(sizes[0] ** 2 / (sizes**2).sum())
    score = difference_scores(found, torch.from_numpy(no), torch.from_numpy(yes))
    assert score.abs().numpy() == pytest.approx(np.abs(differences @ rows[0]), abs=1e-12)


def test_the_entry_of_largest_size_is_positive() -> None:
    no, yes = normalised_pairs()
    there, back = crc_tpc(no, yes), crc_tpc(yes, no)
    torch.testing.assert_close(there.direction, back.direction)
    assert float(there.direction[there.direction.abs().argmax()]) > 0


def test_layers_are_fitted_as_if_alone() -> None:
    no, yes = normalised_pairs()
    together = crc_tpc(torch.stack((no, no)), torch.stack((yes, yes.flip(0))))
    torch.testing.assert_close(together.direction[1], crc_tpc(no, yes.flip(0)).direction)
    torch.testing.assert_close(together.share[1], crc_tpc(no, yes.flip(0)).share)


@pytest.mark.parametrize("features", [3, 30])
def test_differences_that_do_not_vary_have_no_direction(features: int) -> None:
    found = crc_tpc(torch.zeros(10, features), torch.ones(10, features))
    assert found.direction.tolist() == [0.0] * features
    assert bool(found.share.isnan())
