"""What is planted in pairs, and which methods fall for it."""

from __future__ import annotations

import pytest
import torch
from modelscope_probes.directions.ccs import ccs, pair_scores
from modelscope_probes.directions.crc_tpc import crc_tpc, difference_scores
from modelscope_probes.distractor import Planted, planted
from modelscope_probes.pair_sides import side
from modelscope_probes.statistics.ranks import auroc

from modelscope_app.api import BadInput


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def true_pairs(n: int = 120, d: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs whose differences vary most along what is true, and whether 'yes' is."""
    y = torch.rand(n, generator=generator(8)) < 0.5
    no, yes = torch.randn(2, n, d, dtype=torch.float64, generator=generator(9)) * 0.25
    truth = torch.nn.functional.normalize(torch.randn(d, dtype=torch.float64, generator=generator(10)), dim=0)
    yes += 1.0 + y[:, None] * 2.0 * truth
    no += ~y[:, None] * 2.0 * truth
    return no, yes, y


def normalised(found: Planted) -> tuple[torch.Tensor, torch.Tensor]:
    return side(found.no, "mean").normalised(found.no), side(found.yes, "mean").normalised(found.yes)


def either_way(score: torch.Tensor, y: torch.Tensor) -> float:
    """AUROC, or that of the negative: unsupervised signs are arbitrary."""
    return max(float(auroc(score, y)), 1 - float(auroc(score, y)))


def test_the_members_of_a_pair_move_apart_by_the_stated_distance() -> None:
    no, yes, _ = true_pairs()
    found = planted(no, yes, 1.5, generator())
    signs = torch.where(found.distractor, 1.0, -1.0).double()
    torch.testing.assert_close(found.yes - yes, signs[:, None] * found.distance / 2 * found.direction)
    torch.testing.assert_close(found.no - no, -(found.yes - yes))
    assert float(found.direction.norm()) == pytest.approx(1)
    lengths = ((yes - no) - (yes - no).mean(0)).norm(dim=1)
    assert float(found.distance) == pytest.approx(1.5 * float(lengths.median()))


@pytest.mark.parametrize("pairs", [2, 7, 120])
def test_the_distractor_is_balanced_so_that_no_side_mean_moves(pairs: int) -> None:
    no, yes, _ = (part[:pairs] for part in true_pairs())
    found = planted(no, yes, 2.0, generator())
    assert int(found.distractor.sum()) == pairs // 2
    if pairs % 2 == 0:
        torch.testing.assert_close(found.yes.mean(0), yes.mean(0), rtol=0, atol=1e-13)
        torch.testing.assert_close(found.no.mean(0), no.mean(0), rtol=0, atol=1e-13)


def test_which_pairs_are_marked_is_drawn_and_has_nothing_to_do_with_the_answers() -> None:
    no, yes, y = true_pairs()
    draws = [planted(no, yes, 1.0, generator(seed)).distractor for seed in range(200)]
    agreement = torch.stack([(draw == y).double().mean() for draw in draws]).mean()
    assert float(agreement) == pytest.approx(0.5, abs=0.02)  # 200 draws of 120 pairs: a standard error of 0.003
    assert draws[0].tolist() != draws[1].tolist()


def test_a_shift_of_both_members_alike_is_no_distractor_to_crc_tpc() -> None:
    no, yes, _ = true_pairs()
    found = planted(no, yes, 3.0, generator())
    shift = found.yes - yes
    torch.testing.assert_close(crc_tpc(no + shift, yes + shift).direction, crc_tpc(no, yes).direction)


@pytest.mark.parametrize(
    ("strength", "truth", "distractor"),
    [(0.0, (0.97, 1.0), (0.5, 0.65)), (0.5, (0.95, 1.0), (0.5, 0.75)), (3.0, (0.5, 0.7), (0.97, 1.0))],
)
def test_crc_tpc_prefers_a_strong_distractor_to_the_truth(
    strength: float, truth: tuple[float, float], distractor: tuple[float, float]
) -> None:
    no, yes, y = true_pairs()
    found = planted(no, yes, strength, generator(1))
    no, yes = normalised(found)
    score = difference_scores(crc_tpc(no, yes), no, yes)
    assert truth[0] <= either_way(score, y) <= truth[1]
    assert distractor[0] <= either_way(score, found.distractor) <= distractor[1]


def test_ccs_prefers_a_strong_distractor_and_its_loss_is_lower_for_it() -> None:
    no, yes, y = true_pairs()
    losses, on_truth, on_distractor = [], [], []
    for strength in (0.0, 3.0):
        found = planted(no, yes, strength, generator(1))
        sides = normalised(found)
        probe = ccs(*sides, generator(2), restarts=5)
        score = pair_scores(probe, *sides)
        losses.append(float(probe.losses.min()))
        on_truth.append(either_way(score, y))
        on_distractor.append(either_way(score, found.distractor))
    assert on_truth[0] > 0.95 > 0.75 > on_truth[1]
    assert on_distractor[0] < 0.75 < 0.95 < on_distractor[1]
    assert losses[1] < losses[0]


def test_layers_get_the_same_distractor_each_at_its_own_distance() -> None:
    no, yes, _ = true_pairs()
    together = planted(torch.stack((no, 4 * no)), torch.stack((yes, 4 * yes)), 1.0, generator())
    alone = planted(4 * no, 4 * yes, 1.0, generator())
    torch.testing.assert_close(together.yes[1], alone.yes)
    assert together.distractor.tolist() == alone.distractor.tolist()
    assert float(together.distance[1]) == pytest.approx(4 * float(together.distance[0]))


def test_one_pair_is_refused() -> None:
    with pytest.raises(BadInput, match="two pairs or more"):
        planted(torch.zeros(1, 3), torch.ones(1, 3), 1.0, generator())
