"""An axis of a plot, straight or logarithmic, as the stretch from 0 to 1, and its ticks.

textual-plot knows straight axes only and loses ranges that are very narrow or the widest there are, so everything it draws is
placed here first. This module imports textual_plot and is imported by views of lines alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from textual_plot.axis_formatter import AxisFormatter, NumericAxisFormatter

from modelscope_app.api.views import Scale
from modelscope_app.rendering.wording import number_text

if TYPE_CHECKING:
    import numpy

_LONGEST_TICK = 9
_MOST_DIGITS = 7


class Axis(AxisFormatter):
    """From `low` to `high`; 0 is `low` and 1 is `high`."""

    def __init__(self, scale: Scale, low: float, high: float) -> None:
        """On a logarithmic axis both ends are above zero. One value alone gets room on either side."""
        self.is_log = scale == "log"
        self.most_ticks = 8
        """What there is room for."""
        self.low, self.high = (math.log10(low), math.log10(high)) if self.is_log else (low, high)
        if self.low == self.high:
            room = 0.5 if self.is_log or not low else abs(low) / 10
            self.low, self.high = self.low - room, self.high + room
        if not self.high / 2 - self.low / 2 > 0:  # numbers so near zero that half of them is zero
            self.low, self.high = self.low - 0.5, self.high + 0.5

    def placed(self, values: numpy.ndarray) -> numpy.ndarray:
        """Where values stand; NaN stays NaN, and what a logarithmic axis has no place for becomes NaN."""
        import numpy

        if self.is_log:
            values = numpy.log10(numpy.where(values > 0, values, numpy.nan))
        return (values / 2 - self.low / 2) / (self.high / 2 - self.low / 2)

    def value(self, place: float) -> float:
        """What stands at a place."""
        along = self.low * (1 - place) + self.high * place
        return float(10**along) if self.is_log else along

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        """Places of round values between two places."""
        low, high = self.value(min_), self.value(max_)
        values = _log_ticks(low, high) if self.is_log else _ticks(low, high)
        values = values[:: max(1, -(-len(values) // self.most_ticks))]
        import numpy

        return [float(place) for place in self.placed(numpy.array(values))]

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        """The round values as text, with as many digits as tell them apart."""
        values = [self.value(place) for place in ticks]
        if not self.is_log and len(values) > 1:
            step = abs(values[1] - values[0])
            values = [0.0 if abs(value) < step * 1e-6 else value for value in values]
        for digits in range(2, _MOST_DIGITS):
            labels = [_tick_text(value, digits) for value in values]
            rounded = [float(f"{value:.{digits}g}") for value in values]
            nearest = min((abs(after - before) for before, after in pairwise(values)), default=math.inf)
            if all(abs(near - value) <= nearest / 50 for near, value in zip(rounded, values, strict=True)):
                break
        return labels if values else []


def _ticks(low: float, high: float) -> list[float]:
    span = high - low
    if not math.isfinite(span) or span < 1e-290 or span < 1e-9 * max(abs(low), abs(high)):
        return [low, high]
    return NumericAxisFormatter().get_ticks(low, high)


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    decades = [10.0**power for power in range(first, last + 1, max(1, -(-(last - first) // 6)))]
    if len(decades) >= 3:
        return decades
    steps = [step * 10.0**power for power in range(first - 1, last + 1) for step in (1, 2, 5)]
    within = [value for value in steps if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    return within if len(within) >= 2 else [value for value in _ticks(low, high) if value > 0]


def _tick_text(value: float, digits: int) -> str:
    """A number in at most nine characters, never cut: a cut number is another number."""
    text = number_text(float(f"{value:.{digits}g}"), digits)
    if len(text) <= _LONGEST_TICK:
        return text
    mantissa, _, power = f"{value:.{max(0, digits - 1)}e}".partition("e")
    return f"{mantissa}e{int(power)}"
