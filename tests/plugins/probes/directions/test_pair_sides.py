"""Sides of pairs, each normalised by itself, with the statistics of the training pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modelscope_probes.directions.linear_probe import Probe, scores
from modelscope_probes.pair_sides import raw_probe, side
from oracles.probe_inputs import pairs


def test_the_standard_deviation_divides_by_n() -> None:
    _, yes = pairs()
    found = side(torch.from_numpy(yes)).normalised(torch.from_numpy(yes)).numpy()
    assert found == pytest.approx((yes - yes.mean(0)) / np.std(yes, 0), abs=1e-13)


def test_the_mean_alone_leaves_the_scale() -> None:
    _, yes = pairs()
    found = side(torch.from_numpy(yes), "mean").normalised(torch.from_numpy(yes)).numpy()
    assert found == pytest.approx(yes - yes.mean(0), abs=1e-13)


def test_what_says_yes_or_no_is_gone() -> None:
    no, yes = map(torch.from_numpy, pairs())
    assert float((yes.mean(0) - no.mean(0)).abs().min()) > 0.5
    torch.testing.assert_close(side(yes).normalised(yes).mean(0), side(no).normalised(no).mean(0), rtol=0, atol=1e-14)


def test_a_held_out_row_is_normalised_alone_as_among_others() -> None:
    _, yes = map(torch.from_numpy, pairs())
    fitted = side(yes[:20])
    together = fitted.normalised(yes[20:])
    torch.testing.assert_close(fitted.normalised(yes[25:26]), together[5:6], rtol=0, atol=0)
    assert float(together.mean(0).abs().max()) > 0.05  # the mean of training rows, not of these


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_a_constant_feature_is_divided_by_one(value: float) -> None:
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 1] = value
    fitted = side(x)
    assert float(fitted.scale[1]) == 1.0
    assert float(fitted.normalised(x)[:, 1].abs().max()) < 1e-11


def test_layers_are_normalised_as_if_alone() -> None:
    no, yes = map(torch.from_numpy, pairs())
    together = side(torch.stack((no, yes))).normalised(torch.stack((no, yes)))
    torch.testing.assert_close(together[1], side(yes).normalised(yes))


def test_a_probe_of_normalised_rows_can_be_told_in_raw_ones() -> None:
    _, yes = map(torch.from_numpy, pairs())
    fitted = side(yes)
    probe = Probe(torch.arange(6.0).double(), torch.tensor(0.3).double())
    torch.testing.assert_close(scores(raw_probe(probe, fitted), yes), scores(probe, fitted.normalised(yes)))
