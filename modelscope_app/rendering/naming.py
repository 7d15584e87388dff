"""Long names side by side in little room, cut so that they still differ.

Names of tensors share their ends (`model.layers.` and `.weight`) and differ in the middle, which is what cutting takes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_STEP = 4
"""By how many characters the room grows while cut names still look the same."""


def told_apart(names: Sequence[str], room: int, cut: Callable[[str, int], str], most: int = 0) -> tuple[list[str], str]:
    """Names in at most `room` characters each, and the pattern they stand in, or nothing where they are whole.

    Where one does not fit, all lose the dotted components that every one of them begins and ends with. Names that then still look
    the same get up to `most` characters.

    >>> told_apart(["model.layers.5.up.weight", "model.layers.17.up.weight"], 12, lambda text, room: text[:room])
    (['5', '17'], 'model.layers.*.up.weight')
    """
    whole = max([room, *map(len, names)]) * 12  # an escaped character takes up to ten
    if all(cut(name, room) == cut(name, whole) for name in names):
        return [cut(name, room) for name in names], ""
    parts = [name.split(".") for name in names]
    spare = min(map(len, parts)) - 1  # of each name one component stays
    head = _agreeing(parts, spare) if len(set(names)) > 1 else 0
    tail = _agreeing([part[::-1] for part in parts], spare - head) if len(set(names)) > 1 else 0
    short = [".".join(part[head : len(part) - tail]) for part in parts]
    pattern = ".".join([*parts[0][:head], "*", *parts[0][len(parts[0]) - tail :]]) if head or tail else ""
    size = room
    while len({cut(name, size) for name in short}) < len(set(names)) and size < most:
        size = min(most, size + _STEP)
    return [cut(name, size) for name in short], pattern


def pattern_note(pattern: str, each: str = "name") -> list[str]:
    """The sentence that says what names were short for, where they were."""
    return [f"Each {each} stands for the * in {pattern}."] if pattern else []


def _agreeing(parts: Sequence[Sequence[str]], most: int) -> int:
    """How many leading components all have in common, at most `most`."""
    count = 0
    while count < most and len({part[count] for part in parts}) == 1:
        count += 1
    return count
