"""Natural order of names: numbers inside a name compare as numbers, so layer 2 comes before layer 10."""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"([0-9]+)")

NaturalKey = tuple[tuple[str | tuple[int, str], ...], str]


def natural_key(name: str) -> NaturalKey:
    """A sort key. Names that differ only in leading zeros are told apart by their text.

    >>> sorted(["h.10.w", "h.2.w", "h.2", "a"], key=natural_key)
    ['a', 'h.2', 'h.2.w', 'h.10.w']
    """
    parts: list[str | tuple[int, str]] = list(_NUMBERS.split(name))
    for position in range(1, len(parts), 2):
        digits = str(parts[position]).lstrip("0")
        parts[position] = (len(digits), digits)  # orders as the number does, and never meets the limit on long integers
    return tuple(parts), name
