"""Which resident models go for a job, against trying every choice there is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations

from hypothesis import given
from hypothesis import strategies as st

from modelscope_app.jobs.device_memory import DeviceMemory
from modelscope_app.jobs.ledger import Fits, Holding, Never, Short, admission, within_limit

sizes = st.integers(0, 12)


@st.composite
def holdings(draw: st.DrawFn) -> list[Holding]:
    count = draw(st.integers(0, 6))
    order = draw(st.permutations(range(count)))  # of their last use; no two at once
    return [Holding(number, draw(sizes), float(order[number]), draw(st.booleans())) for number in range(count)]


def by_trying_everything(need: int, held: Sequence[Holding], free: int, capacity: int) -> Fits | Short | Never:
    kept = sum(one.memory_bytes for one in held if one.is_needed)
    movable = [one for one in held if not one.is_needed]
    if need + kept > capacity:
        return Never(need + kept, capacity)
    choices = chain.from_iterable(combinations(movable, count) for count in range(len(movable) + 1))
    enough = [choice for choice in choices if need <= 0 or free + sum(one.memory_bytes for one in choice) >= need]
    if not enough:
        return Short(need, max(0, free + sum(one.memory_bytes for one in movable)))
    # The most recently used victim is to be as old as possible, then the one before it ...
    best = min(enough, key=lambda choice: sorted((one.last_used for one in choice), reverse=True))
    return Fits(tuple(one.key for one in sorted(best, key=lambda one: one.last_used)))


@given(need=st.integers(0, 40), held=holdings(), free=st.integers(-10, 30), capacity=st.integers(0, 60))
def test_a_decision_is_the_best_of_all_choices(need: int, held: list[Holding], free: int, capacity: int) -> None:
    assert admission(need, held, free, capacity) == by_trying_everything(need, held, free, capacity)


@given(need=st.integers(1, 40), held=holdings(), free=st.integers(-10, 30))
def test_what_goes_makes_room_and_none_of_it_could_have_stayed(need: int, held: list[Holding], free: int) -> None:
    decision = admission(need, held, free, 1000)
    if isinstance(decision, Fits):
        bytes_of = {one.key: one.memory_bytes for one in held}
        assert not any(one.is_needed for one in held if one.key in decision.evict)
        freed = sum(bytes_of[key] for key in decision.evict)
        assert free + freed >= need
        assert all(free + freed - bytes_of[key] < need for key in decision.evict)


def test_the_model_nobody_used_for_longest_goes_first() -> None:
    held = [Holding("new", 4, last_used=3.0), Holding("old", 4, last_used=1.0), Holding("middle", 4, last_used=2.0)]
    assert admission(3, held, free_bytes=0, capacity_bytes=100) == Fits(("old",))
    assert admission(7, held, free_bytes=0, capacity_bytes=100) == Fits(("old", "middle"))
    assert admission(0, held, free_bytes=0, capacity_bytes=100) == Fits()


def test_a_model_too_small_to_help_stays_though_it_is_the_oldest() -> None:
    held = [Holding("small", 1, last_used=1.0), Holding("large", 10, last_used=2.0)]
    assert admission(5, held, free_bytes=0, capacity_bytes=100) == Fits(("large",))


def test_the_models_a_job_uses_stay_and_count() -> None:
    held = [Holding("mine", 6, 1.0, is_needed=True), Holding("other", 2, 2.0)]
    assert admission(4, held, free_bytes=1, capacity_bytes=10) == Short(needs_bytes=4, free_bytes=3)
    assert admission(5, held, free_bytes=1, capacity_bytes=10) == Never(needs_bytes=11, capacity_bytes=10)


def test_a_limit_bounds_what_is_measured() -> None:
    measured = DeviceMemory(capacity_bytes=100, free_bytes=40)
    assert within_limit(measured, None, 10, 5) == measured
    assert within_limit(measured, 50, 10, 5) == DeviceMemory(50, 35)
    assert within_limit(measured, 80, 10, 5) == DeviceMemory(80, 40)
    assert within_limit(measured, 12, 10, 5) == DeviceMemory(12, -3)  # others came to hold more than the limit
    assert within_limit(measured, 500, 10, 5) == measured


def test_a_system_that_does_not_tell_bounds_nothing() -> None:
    assert within_limit(DeviceMemory(0, 0), None, 10, 5) is None
    assert within_limit(DeviceMemory(0, 0), 50, 10, 5) == DeviceMemory(50, 35)
