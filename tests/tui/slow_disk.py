"""A disk that is slow until a test says otherwise, and waiting for what is on the screen meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from textual.pilot import Pilot

_LONGEST_SECONDS = 20.0
"""After which a test that failed in between lets its threads go."""


class SlowCalls:
    """A function whose calls for which `is_slow` wait until `finish` is set."""

    def __init__(self, function: Callable[..., Any], is_slow: Callable[..., bool] = lambda *_: True) -> None:
        self._function, self._is_slow = function, is_slow
        self.finish = threading.Event()
        self.started = 0
        """Slow calls so far."""

    def __call__(self, *given: Any) -> Any:
        if self._is_slow(*given):
            self.started += 1
            self.finish.wait(_LONGEST_SECONDS)
        return self._function(*given)


async def until(pilot: Pilot[Any], is_so: Callable[[], object]) -> None:
    """Wait for something that comes about while other things are still being read."""
    for _ in range(1000):
        if is_so():
            return
        await pilot.pause(0.01)
    raise AssertionError("it did not come about")
