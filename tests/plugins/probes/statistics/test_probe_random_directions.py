"""Directions drawn with the covariance of the data: they have it, and an AUROC among theirs stands where it should."""

from __future__ import annotations

import math

import pytest
import torch
from modelscope_probes.statistics import random_directions as module
from modelscope_probes.statistics.random_directions import random_direction_aurocs, random_directions, standing
from modelscope_probes.statistics.ranks import auroc


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(seed: int, layers: int = 3, prompts: int = 80, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(seed)
    spread = torch.logspace(1, -1, width)
    labels = torch.arange(prompts) % 3 == 0
    return torch.randn((layers, prompts, width), generator=generator) * spread + 5 + labels[:, None], labels


def low_rank(seed: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(seed)
    labels = torch.arange(200) < 100
    inner = torch.randn((200, rank), generator=generator)
    inner[:, 0] += 4 * labels
    return (inner @ torch.randn((rank, 64), generator=generator))[None], labels


def test_directions_have_the_covariance_of_the_activations() -> None:
    activations, _ = made(0, width=4)
    drawn = random_directions(activations[0], torch.randn((200_000, 80), generator=seeded(1)))
    told = torch.cov(activations[0].T)
    scale = told.diagonal().sqrt()
    # an entry's standard error is at most sqrt(2 / 200,000) of its scale, 0.003
    torch.testing.assert_close(torch.cov(drawn.T) / scale / scale[:, None], told / scale / scale[:, None], rtol=0, atol=0.015)
    assert (drawn.mean(0).abs() / scale < 0.015).all()


def test_areas_are_those_of_the_directions_one_by_one() -> None:
    activations, labels = made(2)
    found = random_direction_aurocs(activations, labels, 50, seeded(3))
    noise = torch.randn((50, 80), generator=seeded(3))
    for layer, values in enumerate(activations.double()):
        centred = values - values.mean(0)
        obvious = torch.stack([auroc(values @ (centred.T @ one.double()), labels) for one in noise])
        # float32 may exchange two neighbours, which is one pair
        torch.testing.assert_close(found[layer], obvious, rtol=0, atol=2 / (27 * 53))


def test_the_same_state_gives_the_same_numbers_whatever_the_other_layers() -> None:
    activations, labels = made(4)
    whole = random_direction_aurocs(activations, labels, 30, seeded(5))
    assert torch.equal(random_direction_aurocs(activations, labels, 30, seeded(5)), whole)
    alone = random_direction_aurocs(activations[2:], labels, 30, seeded(5))
    torch.testing.assert_close(alone[0], whole[2], rtol=0, atol=2 / (27 * 53))  # rounding may exchange two neighbours
    assert not torch.equal(random_direction_aurocs(activations, labels, 30, seeded(6)), whole)


def test_moving_all_activations_changes_nothing_but_rounding() -> None:
    activations, labels = made(7)
    here = random_direction_aurocs(activations, labels, 40, seeded(8))
    there = random_direction_aurocs(activations + 100, labels, 40, seeded(8))
    torch.testing.assert_close(there, here, rtol=0, atol=4 / (27 * 53))


def test_signs_are_kept() -> None:
    activations, labels = made(9, layers=1)
    found = random_direction_aurocs(activations, labels, 400, seeded(10))
    assert abs(float((found > 0.5).double().mean()) - 0.5) < 0.1  # four standard errors
    torch.testing.assert_close(random_direction_aurocs(activations, ~labels, 400, seeded(10)), 1 - found, rtol=0, atol=1e-12)


def test_lucky_directions_are_common_near_few_dimensions() -> None:
    low, labels = low_rank(11, 3)
    wide = torch.randn((1, 200, 64), generator=seeded(12))
    wide[..., 0] += 4 * labels
    of_low, of_wide = (random_direction_aurocs(values, labels, 500, seeded(13)) for values in (low, wide))
    assert float((of_low > 0.95).double().mean()) > 0.1
    assert float((of_wide > 0.95).double().mean()) < float((of_low > 0.95).double().mean())


def test_half_precision_activations_are_taken_as_they_are() -> None:
    activations, labels = made(14)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        rounded = activations.to(dtype)
        found = random_direction_aurocs(rounded, labels, 20, seeded(15))
        assert torch.equal(found, random_direction_aurocs(rounded.float(), labels, 20, seeded(15)))


def test_blocks_of_directions_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    activations, labels = made(16)
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 7 * 80)
    found = random_direction_aurocs(activations, labels, 50, seeded(17))
    assert found.shape == (3, 50)
    assert torch.equal(found, random_direction_aurocs(activations, labels, 50, seeded(17)))
    assert len(found[0].unique()) > 30


def test_an_activation_that_is_not_finite_makes_its_layer_unknown() -> None:
    activations, labels = made(18)
    activations[1, 4, 2] = math.inf
    found = random_direction_aurocs(activations, labels, 10, seeded(19))
    assert found.isnan().all(-1).tolist() == found.isnan().any(-1).tolist() == [False, True, False]
    assert standing(torch.full((3,), 0.7, dtype=torch.float64), found).percentile.isnan().tolist() == [False, True, False]


def test_an_absent_class_or_a_single_prompt_leaves_everything_unknown() -> None:
    activations, labels = made(20)
    assert random_direction_aurocs(activations, torch.ones_like(labels), 5, seeded(21)).isnan().all()
    assert random_direction_aurocs(activations[:, :1], labels[:1], 5, seeded(21)).isnan().all()


def test_equal_areas_count_half_for_the_percentile_and_in_full_for_p() -> None:
    random = torch.tensor([[0.4, 0.5, 0.5, 0.9], [0.4, 0.5, 0.5, 0.9]], dtype=torch.float64)
    found = standing(torch.tensor([0.5, 0.95], dtype=torch.float64), random)
    assert found.percentile.tolist() == [0.5, 1.0]
    assert found.p.tolist() == [(1 + 3) / 5, (1 + 0) / 5]
    assert standing(torch.tensor([math.nan, 0.5], dtype=torch.float64), random).p.isnan().tolist() == [True, False]
