"""The tensors of a checkpoint as groups inside groups, each made when somebody looks into it.

Names are split at their dots. Where several numbers stand at one place they count instances of the same thing and fold into one
group, `30 x model.layers.*`. A group whose tensors share a whole pattern opens into its instances, in natural order. No level
is longer than about a hundred lines: a longer one comes in ranges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from modelscope_app.api.tensor_header import TensorHeader
from modelscope_app.checkpoints.natural_order import NaturalKey, natural_key

MOST_LINES = 100
"""Groups of one level; more come in ranges of this many, and those in ranges again."""
_MOST_TOP_LINES = 40
_MOST_PARTS = 64
"""A name of more parts than this keeps the rest as one part."""


class Part(NamedTuple):
    """A tensor and its name at the dots."""

    parts: tuple[str, ...]
    header: TensorHeader


@dataclass(frozen=True)
class Group:
    """Tensors that share the beginning of their names, up to numbers."""

    label: str
    """What tells it from its neighbours: `30 x model.layers.*`, `mlp.up_proj.weight`. Untrusted."""
    members: tuple[Part, ...]
    depth: int
    """Parts of the names that all members share, numbers aside."""
    stars: tuple[int, ...]
    """Places of the numbers that differ between members."""
    opened_stars: int = 0
    """How many of these places the way to here has fixed."""
    is_range: bool = False
    """Whether this is only a stretch of a long level; its children are then taken as they are."""
    stretch: tuple[Group, ...] = ()

    @property
    def tensor(self) -> TensorHeader | None:
        """The tensor, where the group is one."""
        return self.members[0].header if len(self.members) == 1 and not self.is_range else None

    @property
    def is_pattern(self) -> bool:
        """Whether the members differ in nothing but numbers."""
        return not self.is_range and all(len(member.parts) == self.depth for member in self.members)

    @property
    def times(self) -> int:
        """How many modules, or tensors, of this pattern there are; 1 where no number is folded here."""
        if self.is_range or not self.stars:
            return 1
        places = [place for place in self.stars if place < self.depth]
        return len({tuple(member.parts[place] for place in places) for member in self.members})

    @cached_property
    def parameters(self) -> int:
        """Elements of all members."""
        return sum(math.prod(member.header.shape) for member in self.members)

    @cached_property
    def likeness(self) -> str:
        """Dtype and shape, where all members have the same; of a pattern that differs, what does."""
        dtypes = {member.header.dtype for member in self.members}
        shapes = {member.header.shape for member in self.members}
        if len(dtypes) == len(shapes) == 1:
            return likeness(self.members[0].header)
        dtype = dtypes.pop() if len(dtypes) == 1 else f"{len(dtypes)} dtypes"
        shape = shape_text(shapes.pop()) if len(shapes) == 1 else f"{len(shapes)} shapes"
        return f"{dtype} {shape}"

    def children(self) -> list[Group]:
        """The groups inside, in natural order; none inside a tensor."""
        if self.stretch:
            return list(self.stretch)
        if self.tensor is not None:
            return []
        if self.is_pattern:
            return _in_ranges(_instances(self))
        return _in_ranges(_inside(self.members, self.depth, self.stars, self.opened_stars))


def top_groups(headers: Iterable[TensorHeader]) -> list[Group]:
    """The first level. A module that only wraps repeated ones (`model`) is left out, its children are here under their whole names."""
    members = tuple(Part(tuple(header.name.split(".", _MOST_PARTS)), header) for header in headers)
    groups = _inside(members, 0, (), 0)
    while True:
        opened: list[Group] = []
        for group in groups:
            children = group.children() if not group.stars and group.tensor is None else []
            if any(child.stars for child in children) and len(groups) + len(children) <= _MOST_TOP_LINES:
                opened += [replace(child, label=_joined(group.label, child.label)) for child in children]
            else:
                opened.append(group)
        if len(opened) == len(groups):
            return _in_ranges(sorted(groups, key=_order))
        groups = opened


def shape_text(shape: Sequence[int]) -> str:
    """A shape in few characters.

    >>> shape_text((576, 1536)), shape_text(())
    ('576x1536', 'scalar')
    """
    return "x".join(map(str, shape[:8])) + ("x…" if len(shape) > 8 else "") if shape else "scalar"


def likeness(header: TensorHeader) -> str:
    """Dtype and shape of a tensor. The dtype is untrusted."""
    return f"{header.dtype} {shape_text(header.shape)}"


def short_count(count: int) -> str:
    """A count of parameters in at most five characters.

    >>> [short_count(count) for count in (576, 28_311_552, 134_515_008, 999_999, 30_500_000_000)]
    ['576', '28.3M', '135M', '1.0M', '30.5B']
    """
    if count < 1000:
        return str(count)
    size = float(count)
    for unit in ("k", "M", "B"):
        size /= 1000
        if size < 999.5:
            return f"{size:.1f}{unit}" if size < 99.95 else f"{size:.0f}{unit}"
    return f"{size / 1000:,.0f}T"


def _inside(members: Iterable[Part], depth: int, stars: tuple[int, ...], opened_stars: int) -> list[Group]:
    """Members by their part at `depth`; numbers, where there are several, together."""
    by_part: dict[str, list[Part]] = {}
    ended: list[Part] = []
    for member in members:
        if len(member.parts) == depth:
            ended.append(member)
        else:
            by_part.setdefault(member.parts[depth], []).append(member)
    numbers = {part for part in by_part if _is_number(part)}
    groups = [
        _joined_down(depth, of_part, stars, opened_stars) for part, of_part in by_part.items() if len(numbers) < 2 or part not in numbers
    ]
    if len(numbers) > 1:
        folded = [member for part in by_part if part in numbers for member in by_part[part]]
        groups.append(_joined_down(depth, folded, stars, opened_stars))
    if ended:  # a tensor that has the name of a module
        groups.append(Group("(itself)", tuple(ended), depth, stars, opened_stars))
    return sorted(groups, key=_order)


def _joined_down(start: int, members: Sequence[Part], stars: tuple[int, ...], opened_stars: int) -> Group:
    """The group of members that agree at `start`, going down as long as there is only one way."""
    own_stars: list[int] = []
    words: list[str] = []
    depth, shortest = start, min(len(member.parts) for member in members)
    while depth < shortest:
        found = {member.parts[depth] for member in members}
        if len(found) == 1:
            words += found
        elif all(map(_is_number, found)):
            own_stars.append(depth)
            words.append("*")
        else:
            break
        depth += 1
    group = Group(".".join(words), tuple(members), depth, (*stars, *own_stars), opened_stars)
    return replace(group, label=f"{group.times:,} x {group.label}") if own_stars else group


def _instances(pattern: Group) -> list[Group]:
    """A pattern's members by the first number that differs and is not fixed yet."""
    places = pattern.stars[pattern.opened_stars :]
    if not places:  # names that differ only beyond what is split, or twice the same pattern
        return [Group(member.header.name, (member,), pattern.depth, pattern.stars, pattern.opened_stars) for member in pattern.members]
    place = places[0]
    by_number: dict[str, list[Part]] = {}
    for member in pattern.members:
        by_number.setdefault(member.parts[place], []).append(member)
    word = f"{pattern.members[0].parts[place - 1]}." if place and place - 1 not in pattern.stars else ""
    groups = [
        Group(word + number, tuple(of_number), pattern.depth, pattern.stars, pattern.opened_stars + 1)
        for number, of_number in by_number.items()
    ]
    return sorted(groups, key=_order)


def _in_ranges(groups: list[Group]) -> list[Group]:
    if len(groups) <= MOST_LINES:
        return groups
    stretches = [tuple(groups[start : start + MOST_LINES]) for start in range(0, len(groups), MOST_LINES)]
    ranges = [
        Group(_range_label(stretch), tuple(member for group in stretch for member in group.members), 0, (), 0, True, stretch)
        for stretch in stretches
    ]
    return _in_ranges(ranges)


def _range_label(stretch: Sequence[Group]) -> str:
    first, last = stretch[0], stretch[-1]
    if len(stretch) == 1:
        return first.label
    begin, end = first.label.split(" … ")[0], last.label.split(" … ")[-1]
    shared = begin.rpartition(".")[0] + "."
    return f"{begin} … {end.removeprefix(shared) if len(shared) > 1 else end}"


def _joined(above: str, below: str) -> str:
    """`model` and `30 x layers.*` as `30 x model.layers.*`."""
    times, mark, rest = below.partition(" x ")
    return f"{times} x {above}.{rest}" if mark and times.replace(",", "").isdigit() else f"{above}.{below}"


def _order(group: Group) -> NaturalKey:
    times, mark, rest = group.label.partition(" x ")
    return natural_key(rest if mark and times.replace(",", "").isdigit() else group.label)


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit()
