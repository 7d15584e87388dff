"""How values read: the same words and digits in the terminal, in HTML and in pictures.

Not-a-number, infinity and a missing value all read `unknown`, because none of them can be compared or ranked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any

from modelscope_app.api import neutralised

UNKNOWN = "unknown"
LONGEST_LABEL = 200
"""Characters of an untrusted name that enter a drawing; front ends cut further to the room they have."""
_LONGEST_LIST = 8
_WHOLE_BELOW = 1e15
"""Floats hold every integer up to here and a few beyond; larger ones are written in scientific notation."""


def is_unknown(value: Any) -> bool:
    """Whether a value is missing, not a number or infinite."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def number_text(value: float | None, digits: int = 4) -> str:
    """A number as people read it: whole numbers whole, others with `digits` significant digits.

    >>> [number_text(value) for value in (134515008, 0.91, 2 / 3, 12345.678, 0.00001234, 6.02214e23, float("nan"))]
    ['134,515,008', '0.91', '0.6667', '12,346', '1.234e-5', '6.022e23', 'unknown']
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == int(value) and abs(value) < _WHOLE_BELOW:
        return f"{int(value):,}"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.{max(0, digits - len(str(int(abs(value)))))}f}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def bytes_text(value: float | None) -> str:
    """A number of bytes in the decimal units that file managers use.

    >>> [bytes_text(value) for value in (999, 269_060_552, None)]
    ['999 B', '269.1 MB', 'unknown']
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 1000:
            break
        value, unit = value / 1000, larger
    return f"{number_text(value)} {unit}"


def value_text(value: Any, name: str = "", longest: int = LONGEST_LABEL) -> str:
    """Any cell or fact on one line, harmless to print. Columns and facts named `..._bytes` read as amounts of memory."""
    if is_unknown(value):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return bytes_text(value) if name.endswith("_bytes") or name == "bytes" else number_text(value)
    if isinstance(value, str):
        return neutralised(value, longest)
    if isinstance(value, bytes):
        return neutralised(value[:longest].hex(), longest)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return neutralised(", ".join(f"{key} {value_text(item, str(key), longest)}" for key, item in value.items()), longest)
    if isinstance(value, list | tuple):
        shown = [value_text(item, name, longest) for item in value[:_LONGEST_LIST]]
        more = ["…"] if len(value) > _LONGEST_LIST else []
        return neutralised("[" + ", ".join(shown + more) + "]", longest)
    return neutralised(str(value), longest)


def label_text(value: Any, longest: int = LONGEST_LABEL) -> str:
    """A name: as `value_text`, but a whole number keeps its plain digits, because layer 1000 is a name and no amount.

    >>> label_text(12000), label_text(None), label_text("a\\x1b[31m")
    ('12000', 'unknown', 'a\\\\x1b[31m')
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value_text(value, longest=longest)


def interval_text(value: float | None, low: float | None, high: float | None, name: str = "") -> str:
    """A value with its interval. Where neither end is known, the value alone.

    >>> interval_text(0.91, 0.87, 0.94)
    '0.91 [0.87, 0.94]'
    """
    text = value_text(value, name)
    if is_unknown(low) and is_unknown(high):
        return text
    return f"{text} [{value_text(low, name)}, {value_text(high, name)}]"


def fact_text(value: Any, name: str = "") -> str:
    """A fact, with its uncertainty where it has one.

    >>> fact_text({"value": 0.91, "ci_low": 0.87, "ci_high": 0.94})
    '0.91 [0.87, 0.94]'
    """
    if isinstance(value, Mapping) and "value" in value:
        others = {key: item for key, item in value.items() if key not in ("value", "ci_low", "ci_high")}
        text = interval_text(value["value"], value.get("ci_low"), value.get("ci_high"), name)
        return f"{text} ({value_text(others)})" if others else text
    return value_text(value, name, longest=2000)


def count_text(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun.

    >>> count_text(1, "row"), count_text(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def progress_text(stage: str, done: float, total: float | None, unit: str, done_here: float, seconds: float) -> str:
    """One line of progress; `done_here` of it was done in `seconds`.

    >>> progress_text("moments", 50, 200, "tensors", 50, 10.0)
    'moments: 50 of 200 tensors, 5 tensors/s, 30 s left'
    >>> progress_text("", 9e6, None, "events", 1190, 1.0)
    ': 9,000,000 events, 1,190 events/s'
    """
    parts = [f"{stage}: {done:,.0f} of {total:,.0f} {unit}" if total else f"{stage}: {done:,.0f} {unit}"]
    if done_here > 0 and seconds > 0:
        rate = done_here / seconds
        parts.append(f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s")
        if total:
            parts.append(f"{duration_text((total - done) / rate)} left")
    return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """Seconds for people.

    >>> duration_text(30), duration_text(90), duration_text(7322)
    ('30 s', '1 min 30 s', '2 h 2 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def age_text(seconds: float) -> str:
    """How long ago, in the largest unit that fills once.

    >>> age_text(42), age_text(150), age_text(7300), age_text(900000)
    ('42 s', '2 min', '2 h', '10 d')
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"
