"""The loss of CCS, its training against torch's AdamW and autograd, and what it finds."""

from __future__ import annotations

import math

import pytest
import torch
from modelscope_probes.directions.ccs import LEARNING_RATE, WEIGHT_DECAY, ccs, ccs_loss, pair_scores
from modelscope_probes.directions.linear_probe import Probe, oriented, scores
from modelscope_probes.pair_sides import side
from modelscope_probes.statistics.ranks import auroc
from oracles.probe_inputs import pairs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normalised_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    no, yes = map(torch.from_numpy, pairs())
    return side(no).normalised(no), side(yes).normalised(yes)


def true_pairs(n: int = 60, d: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised pairs, the member that is true 2 further along the first axis, and whether 'yes' is true."""
    y = torch.rand(n, generator=generator(8)) < 0.5
    no, yes = torch.randn(2, n, d, dtype=torch.float64, generator=generator(9)) * 0.5
    yes[:, 0] += 2.0 * y
    no[:, 0] += 2.0 * ~y
    return side(no).normalised(no), side(yes).normalised(yes), y


def test_the_loss_is_that_of_the_paper_for_one_pair() -> None:
    assert float(ccs_loss(torch.tensor([0.3]), torch.tensor([0.9]))) == pytest.approx((0.3 - 0.1) ** 2 + 0.3**2)


def test_every_feature_of_exactly_one_member_has_no_loss() -> None:
    features = (torch.rand(20, 50, generator=generator()) < 0.5).double()
    assert ccs_loss(1 - features, features).tolist() == [0.0] * 20


def test_knowing_nothing_costs_a_quarter() -> None:
    assert float(ccs_loss(torch.full((9,), 0.5), torch.full((9,), 0.5))) == 0.25


def test_the_sides_may_be_swapped() -> None:
    p_no, p_yes = torch.rand(2, 30, dtype=torch.float64, generator=generator())
    assert float(ccs_loss(p_no, p_yes)) == float(ccs_loss(p_yes, p_no))


def test_negating_a_probe_does_not_keep_the_loss() -> None:
    """p becomes 1 - p, and min(1 - p_no, 1 - p_yes) is another number: the sign is arbitrary only for a consistent probe."""
    assert float(ccs_loss(torch.tensor([0.1]), torch.tensor([0.8]))) != float(ccs_loss(torch.tensor([0.9]), torch.tensor([0.2])))


def test_training_is_that_of_adamw_on_autograd() -> None:
    no, yes = normalised_pairs()
    found = ccs(no, yes, generator(), restarts=3, epochs=40)
    start = (2 * torch.rand(7, 3, dtype=torch.float64, generator=generator()) - 1) / math.sqrt(6)
    for restart in range(3):
        w, b = start[:6, restart].clone().requires_grad_(), start[6, restart].clone().requires_grad_()
        optimiser = torch.optim.AdamW([w, b], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for _ in range(40):
            optimiser.zero_grad()
            ccs_loss((no @ w + b).sigmoid(), (yes @ w + b).sigmoid()).backward()
            optimiser.step()
        # 40 steps of float64, in another order of operations
        torch.testing.assert_close(found.directions[restart], w.detach(), rtol=0, atol=1e-12)
        loss = ccs_loss((no @ w + b).sigmoid(), (yes @ w + b).sigmoid()).detach()
        assert float(found.losses[restart]) == pytest.approx(float(loss), abs=1e-12)


def test_the_restart_of_lowest_loss_is_kept() -> None:
    no, yes = normalised_pairs()
    found = ccs(no, yes, generator(), epochs=30)
    best = int(found.losses.argmin())
    assert int(found.restart) == best
    assert found.direction.tolist() == found.directions[best].tolist()
    assert float(ccs_loss(scores(found, no).sigmoid(), scores(found, yes).sigmoid())) == pytest.approx(float(found.losses.min()), abs=1e-14)


def test_layers_are_trained_as_if_alone() -> None:
    no, yes = normalised_pairs()
    together = ccs(torch.stack((no, no)), torch.stack((yes, yes.flip(0))), generator(), restarts=4, epochs=30)
    alone = ccs(no, yes.flip(0), generator(), restarts=4, epochs=30)
    torch.testing.assert_close(together.directions[1], alone.directions, rtol=0, atol=1e-12)
    assert int(together.restart[1]) == int(alone.restart)
    assert together.losses.shape == (2, 4)


def test_the_same_seed_gives_the_same_probe() -> None:
    no, yes = normalised_pairs()
    first, second = (ccs(no, yes, generator(3), epochs=5) for _ in range(2))
    assert first.direction.tolist() == second.direction.tolist()
    assert ccs(no, yes, generator(4), epochs=5).direction.tolist() != first.direction.tolist()


def test_it_finds_what_is_true_of_one_member_without_labels() -> None:
    no, yes, y = true_pairs()
    found = ccs(no, yes, generator())
    assert float(found.losses.min()) < 0.15  # 0.25 is knowing nothing
    score = pair_scores(found, no, yes)
    turned = oriented(found, score, y)
    assert float(auroc(pair_scores(turned, no, yes), y)) > 0.97


def test_a_pair_scores_the_mean_of_its_two_probabilities() -> None:
    probe = Probe(torch.tensor([1.0]).double(), torch.tensor(0.0).double())
    found = pair_scores(probe, torch.tensor([[-1.0]]), torch.tensor([[2.0]]))
    assert float(found) == pytest.approx((torch.tensor(2.0).sigmoid().item() + 1 - torch.tensor(-1.0).sigmoid().item()) / 2)


def test_a_negated_probe_scores_one_minus_the_score() -> None:
    no, yes = normalised_pairs()
    probe = Probe(torch.arange(6.0).double(), torch.tensor(0.7).double())
    negated = Probe(-probe.direction, -probe.bias)
    torch.testing.assert_close(pair_scores(negated, no, yes), 1 - pair_scores(probe, no, yes))
