"""The threshold keeps its promise over many draws, and refuses one it could not keep."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from modelscope_probes.conformal import benign_needed, conformal_threshold, threshold_rank

from modelscope_app.api import BadInput, UsageError

DRAWS = 2000


@pytest.mark.parametrize(("count", "allowed", "rank"), [(99, "0.01", 99), (98, "0.01", None), (199, "0.01", 198), (19, "1/20", 19)])
def test_the_rank_is_the_formula(count: int, allowed: str, rank: int | None) -> None:
    assert threshold_rank(count, allowed) == rank


@pytest.mark.parametrize("allowed", ["0.5", "0.1", "0.05", "0.03", "0.01", "0.001", "1/3", "2/7"])
def test_one_prompt_fewer_than_needed_has_no_threshold(allowed: str) -> None:
    needed = benign_needed(allowed)
    assert threshold_rank(needed, allowed) == needed
    assert threshold_rank(needed - 1, allowed) is None
    assert needed == math.ceil(1 / Fraction(allowed) - 1)


@pytest.mark.parametrize(("count", "allowed"), [(130, "0.05"), (150, "0.01"), (33, "0.1")])
def test_the_realised_rate_is_at_most_the_allowed_one_on_average(count: int, allowed: str) -> None:
    scores = torch.rand(DRAWS, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    thresholds = conformal_threshold(scores, allowed)
    assert thresholds is not None
    realised = 1 - thresholds  # of uniform scores
    rank = threshold_rank(count, allowed)
    assert rank is not None
    expected = (count + 1 - rank) / (count + 1)
    error = math.sqrt(expected * (1 - expected) / (count + 2) / DRAWS)  # the rate is Beta(count + 1 - rank, rank)
    assert expected < float(Fraction(allowed)) - 5 * error
    assert float(realised.mean()) == pytest.approx(expected, abs=5 * error)
    assert float(realised.mean()) <= float(Fraction(allowed))


def test_an_interpolated_quantile_of_sixty_prompts_breaks_the_promise_that_is_refused_here() -> None:
    scores = torch.rand(DRAWS, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert conformal_threshold(scores, "0.01") is None
    assert float((1 - np.quantile(scores.numpy(), 0.99, axis=1)).mean()) > 0.02


def test_ties_only_lower_the_rate() -> None:
    threshold = conformal_threshold(torch.tensor([0.0] * 10 + [1.0] * 9), "1/20")
    assert threshold is not None
    assert float(threshold) == 1.0


def test_an_infinite_score_is_a_score() -> None:
    threshold = conformal_threshold(torch.tensor([0.0, 1.0, torch.inf]), "1/2")
    assert threshold is not None
    assert float(threshold) == 1.0


def test_layers_have_thresholds_of_their_own() -> None:
    thresholds = conformal_threshold(torch.arange(40.0).reshape(2, 20), "1/10")
    assert thresholds is not None
    assert thresholds.tolist() == [18.0, 38.0]


@pytest.mark.parametrize("allowed", ["0", "1", "1.5", "-0.1", "often", "1/0", ""])
def test_what_is_no_rate_is_refused(allowed: str) -> None:
    with pytest.raises(UsageError, match="false-positive rate"):
        benign_needed(allowed)


def test_a_float_is_refused_for_it_is_not_what_it_says() -> None:
    with pytest.raises(UsageError, match=r"given exactly, as '0.01'"):
        benign_needed(0.01)  # type: ignore[arg-type]


def test_nan_scores_are_refused() -> None:
    with pytest.raises(BadInput, match="NaN"):
        conformal_threshold(torch.tensor([1.0, torch.nan, 2.0]), "1/2")
