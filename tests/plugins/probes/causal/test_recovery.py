"""Divergences, recovery and changes of rates against scipy, closed forms and counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from modelscope_probes import recovery
from modelscope_probes.recovery import (
    change_interval,
    divergences,
    jensen_shannon_bits,
    kullback_leibler_bits,
    rates,
    recovery_interval,
)
from scipy.spatial.distance import jensenshannon
from scipy.stats import binom, entropy

GENERATOR = torch.Generator().manual_seed(0)
P, Q = (torch.randn(7, 50, generator=GENERATOR, dtype=torch.float64).mul(3).log_softmax(-1) for _ in range(2))


def test_divergences_are_scipys() -> None:
    p, q = P.exp().numpy(), Q.exp().numpy()
    assert kullback_leibler_bits(P, Q).numpy() == pytest.approx(entropy(p, q, base=2, axis=1), rel=1e-12)
    # scipy adds probabilities where we add logarithms, and takes a root that is squared here
    assert jensen_shannon_bits(P, Q).numpy() == pytest.approx(jensenshannon(p, q, base=2, axis=1) ** 2, rel=1e-12)


def test_equal_distributions_are_0_apart_and_disjoint_ones_one_bit() -> None:
    halves = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], dtype=torch.float64).log()
    assert jensen_shannon_bits(halves, halves).tolist() == [0, 0]
    assert kullback_leibler_bits(halves, halves).tolist() == [0, 0]
    assert float(jensen_shannon_bits(halves[0], halves[1])) == pytest.approx(1, abs=1e-15)
    assert float(kullback_leibler_bits(halves[0], halves[1])) == math.inf


def test_logits_give_the_divergences_of_their_distributions_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    intervened, clean, before = (torch.randn(9, 40, generator=GENERATOR) for _ in range(3))
    p, c, b = (np.exp(x.double().numpy()) / np.exp(x.double().numpy()).sum(1, keepdims=True) for x in (intervened, clean, before))
    whole = divergences(intervened, clean, before)
    assert whole[:, 0].numpy() == pytest.approx(jensenshannon(p, c, base=2, axis=1) ** 2, rel=1e-10)
    assert whole[:, 1].numpy() == pytest.approx(entropy(b, p, base=2, axis=1), rel=1e-10)
    monkeypatch.setattr(recovery, "_VALUES_AT_ONCE", 100)
    assert torch.equal(divergences(intervened, clean, before), whole)


def test_logits_that_are_not_finite_are_unknown_and_touch_no_other_row() -> None:
    logits = torch.randn(3, 5, generator=GENERATOR)
    broken = logits.clone()
    broken[1, 2] = math.nan
    broken[2, 0] = math.inf
    found = divergences(broken, logits, logits)
    assert found[0].tolist() == pytest.approx([0, 0], abs=1e-15)
    assert found[1:].isnan().all()


def test_very_unequal_logits_stay_finite() -> None:
    found = divergences(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]]), torch.tensor([[-1e4, 1e4]]))
    assert found[0, 0] == 1
    assert found[0, 1] == pytest.approx(2e4 / math.log(2))


def test_recovery_is_1_at_the_clean_distribution_0_where_nothing_changed_and_negative_beyond() -> None:
    triggered = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert recovery.recovery(torch.zeros(3), triggered) == 1
    assert recovery.recovery(triggered, triggered) == 0
    assert recovery.recovery(2 * triggered, triggered) == -1


def test_recovery_is_unknown_where_the_trigger_changes_next_to_nothing_or_nothing_is_known() -> None:
    assert math.isnan(recovery.recovery(torch.zeros(3), torch.full((3,), 0.001)))
    assert math.isnan(recovery.recovery(torch.tensor([math.nan]), torch.tensor([0.5])))
    # an unknown prompt leaves both sums
    assert recovery.recovery(torch.tensor([0.25, math.nan]), torch.tensor([0.5, 1.0])) == 0.5


def test_the_interval_of_a_recovery_holds_it_and_narrows_with_groups() -> None:
    widths = []
    for groups in (20, 500):
        triggered = torch.rand(groups, generator=GENERATOR, dtype=torch.float64) / 2 + 0.5
        intervened = triggered * torch.rand(groups, generator=GENERATOR, dtype=torch.float64)
        found = recovery_interval(intervened, triggered, torch.arange(groups), GENERATOR, 0.95)
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3


def test_prompts_copied_within_their_group_do_not_narrow_the_interval() -> None:
    triggered = torch.rand(30, generator=GENERATOR, dtype=torch.float64) + 0.2
    intervened = triggered * torch.rand(30, generator=GENERATOR, dtype=torch.float64)
    once = recovery_interval(intervened, triggered, torch.arange(30), torch.Generator().manual_seed(1), 0.95)
    copied = recovery_interval(
        intervened.repeat(5), triggered.repeat(5), torch.arange(30).repeat(5), torch.Generator().manual_seed(1), 0.95
    )
    assert copied == pytest.approx(once, rel=1e-12)


def test_one_group_alone_has_no_interval() -> None:
    found = recovery_interval(torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.5]), torch.tensor([4, 4]), GENERATOR, 0.95)
    assert found.value == pytest.approx(0.7) and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(("begin", "end"), [(0.0, 0.0), (0.0, 0.3), (0.1, 0.2), (0.5, 0.5)])
def test_the_interval_of_a_change_covers_it_as_often_as_it_says(begin: float, end: float) -> None:
    """Exactly, by summing the multinomial probabilities of all counts."""
    prompts, covered = 12, 0.0
    for begun in range(prompts + 1):
        for ended in range(prompts + 1 - begun):
            share = end / (1 - begin) if begin < 1 else 0.0
            probability = binom.pmf(begun, prompts, begin) * binom.pmf(ended, prompts - begun, share)
            found = change_interval(begun, ended, prompts, 0.9)
            covered += probability * (found.low <= begin - end <= found.high)
    assert covered >= 0.9


def test_rates_count_what_is_known() -> None:
    nan = math.nan
    before = torch.tensor([1, 1, 0, 0, nan, 1], dtype=torch.float64)
    now = torch.tensor([0, 1, 1, 0, 1, nan], dtype=torch.float64)
    found = rates(before, now)
    assert found._asdict() == {"known": 5, "defecting": 3, "unknown": 1, "compared": 4, "begun": 1, "ended": 1}
    assert found.change(0.95).value == 0
    assert math.isnan(rates(before[:0], now[:0]).change(0.95).value)
