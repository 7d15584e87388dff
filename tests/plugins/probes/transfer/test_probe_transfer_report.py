"""What is said of a transfer: which layer, and from which step on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from modelscope_probes.transfer_report import Transfer, best_layer, cosines, transfer_facts

UNKNOWN = float("nan")


def found(own_low: list[float], defected: list[tuple[int, int]] | None = None) -> Transfer:
    """Members at steps 0, 10, 20 ... of one layer, whose own probes have these lower ends."""
    members = len(own_low)
    low = torch.full((members, members, 1), UNKNOWN, dtype=torch.float64)
    low.diagonal(dim1=0, dim2=1)[:] = torch.tensor(own_low)
    aurocs = torch.full_like(low, 0.8)
    worst = [[("a cell", 0.7)] for _ in own_low]
    cosine = torch.eye(members, dtype=torch.float64)[None]
    return Transfer([10 * at for at in range(members)], [5], aurocs, low, torch.ones_like(low), cosine, worst, defected, 0, 0.95)


def facts(*own_low: float, defected: list[tuple[int, int]] | None = None) -> Any:
    return transfer_facts(found(list(own_low), defected), prompts=8, positives=4, pairs=3)


@pytest.mark.parametrize(
    ("own_low", "step"),
    [
        ((0.2, 0.6, 0.7), 10),
        ((0.6, 0.6, 0.7), 0),
        ((0.6, 0.4, 0.7), 20),  # it was lost again
        ((0.6, 0.6, 0.5), None),
        ((0.6, UNKNOWN, 0.7), 20),
        ((0.6, 0.6, UNKNOWN), None),
    ],
)
def test_the_direction_is_there_from_the_step_on_after_which_it_stays(own_low: tuple[float, ...], step: int | None) -> None:
    assert facts(*own_low)["first_step_direction"] == step


def test_the_behaviour_is_there_once_half_of_the_positive_prompts_are_answered_with_it() -> None:
    assert facts(0.6, 0.6, 0.6, defected=[(0, 4), (2, 4), (1, 4)])["first_step_behaviour"] == 10
    assert facts(0.6, 0.6, 0.6, defected=[(0, 4), (1, 4), (1, 4)])["first_step_behaviour"] is None
    assert facts(0.6, 0.6, 0.6)["final_defection_rate"] is None


def test_a_member_whose_answers_are_all_unknown_has_no_rate() -> None:
    unknown = facts(0.6, 0.6, defected=[(3, 4), (0, 0)])["final_defection_rate"]
    assert all(math.isnan(value) for value in unknown.values())
    assert facts(0.6, 0.6, defected=[(0, 0), (3, 3)])["first_step_behaviour"] == 10


@pytest.mark.parametrize(
    ("aurocs", "layer"),
    [([0.5, 0.9, 0.8], 1), ([1.0] * 5, 2), ([1.0, 0.9, 0.9, 1.0], 0), ([UNKNOWN] * 3, 1), ([UNKNOWN, 0.2], 1)],
)
def test_the_best_layer_is_the_most_central_of_equals(aurocs: list[float], layer: int) -> None:
    assert best_layer(torch.tensor(aurocs)) == layer


def test_a_zero_direction_has_no_cosine() -> None:
    directions = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]], [[4.0, -3.0]]], dtype=torch.float64)  # (member, layer, hidden)
    table = cosines(directions)[0]
    assert table[0].tolist()[::2] == pytest.approx([1.0, 0.0])
    assert bool(table[1].isnan().all())
