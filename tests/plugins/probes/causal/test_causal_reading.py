"""What results add up to, row by row of the decision table."""

from __future__ import annotations

import math
from typing import Any

import pytest
from modelscope_probes.causal_report import FEWEST_PROMPTS, Judged, addition, judged, removal
from modelscope_probes.interventions import NONE, Intervention
from modelscope_probes.recovery import UNKNOWN, Estimate, Rates, Result

PROMPTS = 40


def rates(before: int, now: int, known: int = PROMPTS) -> Rates:
    """From `before` to `now` defecting of `known`, changed in one direction only."""
    return Rates(known, now, PROMPTS - known, known, max(now - before, 0), max(before - now, 0))


def results(
    before: int = 40,
    ablated: int = 40,
    steered: tuple[int, ...] = (0, 0),
    recovery: float = 0.0,
    controls: tuple[dict[str, Any], ...] = ({}, {}, {}),
    known: int = PROMPTS,
) -> list[Result]:
    """Of a direction that leaves `ablated` triggered prompts defecting, and makes `steered` others defect at doses 1, 2 ...

    A control without words about it changes nothing.
    """

    def one(name: str, control: int | None, now: int, others: int, recovered: float, dose: float | None = None) -> Result:
        direction = "probe" if control is None else "random"
        estimate = Estimate(recovered, math.nan, math.nan)
        return Result(
            Intervention(name, direction, control, dose, "all", {}), rates(before, now, known), rates(0, others, known), estimate, 0.0
        )

    found = [Result(NONE, rates(before, before, known), rates(0, 0, known), Estimate(0 * recovery, 0.0, 0.0), 0.0)]
    each = [(None, {"ablated": ablated, "steered": steered, "recovery": recovery}), *enumerate(controls, 1)]
    for number, said in each:
        found.append(one("ablate", number, said.get("ablated", before), 0, said.get("recovery", 0.0)))
        found.append(one("patch", number, before, 0, 0.0))
        found += [one("steer", number, before, others, 0.0, dose) for dose, others in enumerate(said.get("steered", (0, 0)), 1)]
    return found


def verdict(auroc: float = 0.9, **made: Any) -> Judged:
    return judged(results(**made), auroc, 0.95)


def test_removing_it_brings_the_clean_answers_back() -> None:
    found = verdict(ablated=0, recovery=0.9)
    assert found.reading == "drives the behaviour"
    assert (found.suppresses, found.restores, found.induces, found.is_beyond) == (True, True, False, True)


def test_suppression_without_recovery_does_not_show_that_it_drives() -> None:
    assert verdict(ablated=0, recovery=0.3).reading == "suppresses, not shown to drive"
    assert verdict(ablated=0, recovery=-2.0).restores is False


def test_suppression_with_unknown_recovery_does_not_show_that_it_drives() -> None:
    found = verdict(ablated=0, recovery=math.nan)
    assert (found.reading, found.restores) == ("suppresses, not shown to drive", None)
    assert "not known" in found.reason


def test_recovery_that_a_random_direction_reaches_too_restores_nothing() -> None:
    assert verdict(ablated=0, recovery=0.8, controls=({"recovery": 0.85}, {}, {})).restores is False


def test_what_a_random_direction_does_as_well_is_no_effect() -> None:
    found = verdict(ablated=0, recovery=0.9, controls=({"ablated": 0, "recovery": 0.9}, {}, {}))
    assert (found.reading, found.is_beyond) == ("reads, does not drive", False)


def test_adding_it_brings_the_behaviour() -> None:
    found = verdict(steered=(5, 30))
    assert (found.reading, found.induces) == ("induces, not shown to drive", True)
    assert "taking it out does not bring the clean answers back" in found.reason


def test_steering_that_random_directions_match_at_a_large_dose_still_counts_where_it_works_at_a_smaller_one() -> None:
    assert verdict(steered=(40, 40), controls=({"steered": (0, 40)}, {}, {})).induces
    assert not verdict(steered=(0, 40), controls=({"steered": (0, 40)}, {}, {})).induces


def steered_back(recoveries: tuple[float, float], controls: tuple[float, float], ended: int = 40) -> list[Result]:
    """At doses -1 and -2 the probe recovers so much and stops `ended`; the controls stop everything."""

    def back(one: Result) -> Result:
        done = one.intervention
        if not done.dose:
            return one
        found = (recoveries if done.control is None else controls)[int(done.dose) - 1]
        now = 40 - (ended if done.control is None else 40)
        return one._replace(
            intervention=done._replace(dose=-done.dose), trigger=rates(40, now), recovery=Estimate(found, math.nan, math.nan)
        )

    return [back(one) for one in results()]


def test_steering_against_it_brings_the_clean_answers_back_where_random_directions_only_break_the_model() -> None:
    found = judged(steered_back((0.2, 0.8), (0.6, 0.1)), 0.9, 0.95)
    assert (found.reading, found.suppresses, found.restores) == ("drives the behaviour", False, True)
    assert found.reason.startswith("steering against the direction brings the clean answers back")


def test_steering_against_it_counts_only_with_more_recovery_than_any_control_and_less_behaviour() -> None:
    assert judged(steered_back((0.2, 0.8), (0.85, 0.1)), 0.9, 0.95).restores is False
    assert judged(steered_back((0.2, 0.4), (0.1, 0.1)), 0.9, 0.95).restores is False
    assert judged(steered_back((0.2, 0.8), (0.1, 0.1), ended=15), 0.9, 0.95).restores is False


def test_doses_below_0_do_not_count_as_adding() -> None:
    found = [
        one._replace(intervention=one.intervention._replace(dose=-one.intervention.dose)) if one.intervention.dose else one
        for one in results(steered=(40, 40))
    ]
    assert addition(found, 0.95) is None
    assert judged(found, 0.9, 0.95).induces is False


def test_a_small_change_is_too_little() -> None:
    found = verdict(ablated=25, recovery=0.9)  # beyond the controls, but not half of it
    assert (found.is_beyond, found.suppresses, found.reading) == (True, False, "reads, does not drive")


def test_a_direction_that_tells_nothing_apart_does_not_read_either() -> None:
    assert verdict(auroc=0.55).reading == "neither reads nor drives"
    assert verdict(auroc=math.nan).reading == "neither reads nor drives"


def test_where_nobody_defects_there_is_nothing_to_explain() -> None:
    assert verdict(before=0, ablated=0).reading == "nothing to explain"


def test_few_prompts_or_few_that_defect_are_not_enough() -> None:
    assert verdict(before=10, ablated=0, recovery=1.0, known=FEWEST_PROMPTS - 1).reading == "not enough data"
    assert verdict(before=9, ablated=9).reading == "not enough data"
    assert verdict(before=10, ablated=10).reading == "reads, does not drive"


def test_unknown_behaviour_is_not_enough_data_and_no_effect() -> None:
    found = verdict(before=0, ablated=0, known=0)
    assert (found.reading, found.is_beyond) == ("not enough data", False)


def test_a_control_that_is_unknown_is_not_counted_and_without_any_nothing_is_beyond() -> None:
    made = results(ablated=0, recovery=0.9)
    broken = [one._replace(trigger=rates(0, 0, 0), recovery=UNKNOWN) if one.intervention.control else one for one in made]
    found = removal(broken, "ablate", 0.95)
    assert found is not None and found.controls == () and not found.is_beyond
    assert judged(broken, 0.9, 0.95).suppresses is False


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_a_stricter_level_takes_more_prompts(level: float) -> None:
    ended = next(ended for ended in range(1, PROMPTS) if judged(results(ablated=PROMPTS - ended), 0.9, level).is_beyond)
    assert ended == {0.8: 8, 0.95: 11, 0.99: 15}[level]
