"""The modules of a checkpoint, read off its tensor names, repeated ones folded: `model.layers.*` stands for 30 layers.

A module is a name up to a dot. A component that is a number counts instances of the same thing and is written `*`. All
numbers here are exact sums over what is stored; nothing is taken from config.json.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from modelscope_app.api.tensor_header import TensorHeader
from modelscope_app.checkpoints.natural_order import natural_key

_INDEX = re.compile(r"\.[0-9]+(?=[.\n])")
"""A component that is a number, in a text where a dot stands before every name and a line end after it."""
_LONGEST_NAME = 200
_DEEPEST = 24
"""Names beyond these are nobody's modules: they are cut, so that their prefixes cannot fill the memory."""


class TensorGroup(NamedTuple):
    """Tensors alike in everything but the numbers in their names."""

    pattern: str
    """Their name, numbers as `*`."""
    dtype: str
    shape: tuple[int, ...]
    bytes_each: int
    tensors: int
    """How many there are."""

    @property
    def parameters(self) -> int:
        """Elements of all of them together."""
        return self.tensors * math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Stored size of all of them together."""
        return self.tensors * self.bytes_each


class Module(NamedTuple):
    """One line of the tree: a module, or as many as `times` says folded into one."""

    path: str
    """`model.layers.*.mlp`; numbers as `*`."""
    times: int
    """How many modules the line stands for."""
    tensors: int
    """Over all of them, and over everything below."""
    parameters: int
    bytes: int


class ModuleTree(NamedTuple):
    """All tensors of a checkpoint, folded."""

    groups: list[TensorGroup]
    modules: list[Module]
    """Parents before children, in natural order. A tensor without a dot in its name is listed under its own name."""


def module_tree(headers: Sequence[TensorHeader]) -> ModuleTree:
    """Fold the tensors of a checkpoint. 18,000 of them make a few dozen groups, which then are cheap to sum in any way."""
    names = _cut([header.name for header in headers])
    patterns = _patterns(names)
    alike = Counter(zip(patterns, ((header.dtype, header.shape, header.end - header.begin) for header in headers), strict=True))
    groups = [TensorGroup(pattern, dtype, shape, size, count) for (pattern, (dtype, shape, size)), count in alike.items()]
    return ModuleTree(groups, _modules(groups, _times(names, patterns)))


def _modules(groups: Iterable[TensorGroup], times: Mapping[str, int]) -> list[Module]:
    sums: dict[str, list[int]] = {}
    for group in groups:
        path = group.pattern.rpartition(".")[0] or group.pattern
        while path:
            row = sums.setdefault(path, [0, 0, 0])
            row[0] += group.tensors
            row[1] += group.parameters
            row[2] += group.bytes
            path = path.rpartition(".")[0]
    ordered = sorted(sums, key=lambda path: [natural_key(component) for component in path.split(".")])
    return [Module(path, times[path], *sums[path]) for path in ordered]


def layer_count(modules: Iterable[Module]) -> int | None:
    """Number of layers: how often the largest repeated module is there. None where none is numbered.

    >>> layer_count([Module("h.*", 12, 24, 900, 1800), Module("h.*.experts.*", 96, 96, 800, 1600), Module("wte", 1, 1, 50, 100)])
    12
    """
    numbered = [module for module in modules if module.path.endswith("*") and module.path.count("*") == 1 and _ends_in_index(module.path)]
    return max(numbered, key=lambda module: module.parameters).times if numbered else None


def _ends_in_index(path: str) -> bool:
    return path == "*" or path.endswith(".*")


def _times(names: list[str], patterns: list[str]) -> Counter[str]:
    """How many distinct modules each folded path stands for: prefixes of names that end before a dot, and names without one."""
    folded_path: dict[str, str] = {}
    level: Iterable[tuple[str, str]] = zip(names, patterns, strict=True)
    while level:
        above = {path.rpartition(".")[0] or path: pattern.rpartition(".")[0] or pattern for path, pattern in level}
        level = [(path, pattern) for path, pattern in above.items() if path not in folded_path]
        folded_path |= above
    return Counter(folded_path.values())


def _cut(names: list[str]) -> list[str]:
    if all(len(name) <= _LONGEST_NAME and name.count(".") < _DEEPEST for name in names):
        return names
    return [".".join(name[:_LONGEST_NAME].split(".", _DEEPEST)[:_DEEPEST]) for name in names]


def _patterns(names: list[str]) -> list[str]:
    """The names with numbers as `*`. One substitution over all of them at once costs a fifth of one for each."""
    text = "." + "\n.".join(names) + "\n"
    if text.count("\n") == len(names):
        return _INDEX.sub(".*", text)[1:-1].split("\n.")
    return [_INDEX.sub(".*", f".{name}\n")[1:-1] for name in names]
