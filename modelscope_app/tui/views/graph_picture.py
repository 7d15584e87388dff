"""A directed graph in characters: boxes in layers from top to bottom, each edge a line with its letter at both ends.

An edge leaves its source at a letter in the lower border and enters its target at the same letter in the upper border. Between two
layers it runs down, across on a row of its own, and down again. Sources stand on even columns and targets on odd ones, so two
edges never share a vertical line, and wherever lines meet they cross. An edge that skips layers passes between their boxes.
Edges that lead back, to a layer not further on, are not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len

from modelscope_app.rendering.drawings import Edge
from modelscope_app.rendering.graph_layers import graph_layers
from modelscope_app.rendering.marks import Marks

LONGEST_NAME = 20
_BOX_HEIGHT = 3
_GAP = 2
_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_LINES = " ╵╷│╴┘┐┤╶└┌├─┴┬┼"
"""By which of up, down, left, right a cell leads to."""
_ASCII_LINES = " |||-+++-+++-+++"


@dataclass(frozen=True, slots=True)
class GraphPicture:
    """Rows of cells, and where each edge runs."""

    rows: tuple[tuple[str, ...], ...]
    """Cells by row: one character, with what combines with it, or nothing where the one before takes two cells."""
    cells: Mapping[int, tuple[tuple[int, int], ...]]
    """(row, column) of the cells of each edge, by its place in the list of edges; none for an edge that leads back."""

    @property
    def width(self) -> int:
        """In cells."""
        return max(map(len, self.rows), default=0)

    @property
    def lines(self) -> list[str]:
        """The rows as text."""
        return ["".join(row) for row in self.rows]


@dataclass(slots=True, eq=False)
class _Slot:
    """A node, or a place where an edge passes a layer."""

    label: str = ""
    edge: int | None = None
    incoming: list[int] = field(default_factory=list)
    outgoing: list[int] = field(default_factory=list)
    left: int = 0
    enters: dict[int, int] = field(default_factory=dict)
    """Column by edge: odd."""
    leaves: dict[int, int] = field(default_factory=dict)
    """Column by edge: even."""

    def width(self, letters: int) -> int:
        """Cells across, with room for a letter per edge on each side."""
        if self.edge is not None:
            return 2
        ports = max(len(self.incoming), len(self.outgoing))
        return max(cell_len(self.label) + 4, ports * _spacing(letters) + 4)

    def middle(self, letters: int) -> float:
        """Where its middle is."""
        return self.left + self.width(letters) / 2


def edge_letters(count: int) -> list[str]:
    """A name of one or two letters for each edge.

    >>> edge_letters(28)[0], edge_letters(28)[-1], edge_letters(3)
    ('aa', 'bb', ['a', 'b', 'c'])
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    if count <= len(letters):
        return list(letters[:count])
    return [letters[at // 26 % 26] + letters[at % 26] for at in range(count)]


def graph_picture(edges: Sequence[Edge], marks: Marks) -> GraphPicture:
    """The picture of at most 676 edges, as wide and high as it gets."""
    letters = edge_letters(len(edges))
    wide = len(letters[0]) if letters else 1
    layers, channels = _slots(edges, marks)
    _place(layers, wide)
    for layer in layers:
        for slot in layer:
            _place_ports(slot, layers, wide)
    tracks = [_tracks(channel) for channel in channels]
    return _drawn(layers, channels, tracks, letters, marks)


_Channel = list[tuple[int, _Slot, _Slot]]
"""The pieces of edges between two layers: which edge, from where, to where."""


def _slots(edges: Sequence[Edge], marks: Marks) -> tuple[list[list[_Slot]], list[_Channel]]:
    """Slots of each layer in drawing order, and what runs between them."""
    named = graph_layers([(edge.source, edge.target) for edge in edges])
    layer_of = {name: depth for depth, layer in enumerate(named) for name in layer}
    share = {name: (at + 0.5) / len(layer) for layer in named for at, name in enumerate(layer)}
    node = {name: _Slot(label=marks.cut(name, LONGEST_NAME)) for name in layer_of}
    ordered: list[list[tuple[float, _Slot]]] = [[(share[name], node[name]) for name in layer] for layer in named]
    channels: list[_Channel] = [[] for _ in range(max(0, len(named) - 1))]
    for number, edge in enumerate(edges):
        first, last = layer_of[edge.source], layer_of[edge.target]
        before = node[edge.source]
        for depth in range(first + 1, last + 1):
            if depth == last:
                after = node[edge.target]
            else:
                after = _Slot(edge=number)
                along = (depth - first) / (last - first)
                ordered[depth].append((share[edge.source] + along * (share[edge.target] - share[edge.source]), after))
            channels[depth - 1].append((number, before, after))
            before.outgoing.append(number)
            after.incoming.append(number)
            before = after
    return [[slot for _, slot in sorted(layer, key=lambda one: one[0])] for layer in ordered], channels


def _place(layers: list[list[_Slot]], letters: int) -> None:
    """Give every slot its left edge: near the middle of what leads to it, without overlap."""
    widths = [sum(slot.width(letters) + _GAP for slot in layer) - _GAP for layer in layers]
    whole = max(widths, default=0)
    above: dict[int, _Slot] = {}
    for layer, width in zip(layers, widths, strict=True):
        at = (whole - width) // 2 if not above else 0
        spare = whole - width
        used = 0
        for slot in layer:
            parents = [above[edge].middle(letters) for edge in slot.incoming if edge in above]
            wanted = int(sum(parents) / len(parents) - slot.width(letters) / 2) if parents else at
            slot.left = max(at, min(wanted, used + spare))
            used += slot.width(letters) + _GAP
            at = slot.left + slot.width(letters) + _GAP
        above |= {edge: slot for slot in layer for edge in slot.outgoing}


def _place_ports(slot: _Slot, layers: list[list[_Slot]], letters: int) -> None:
    """Give every edge its column at the slot, in the order of what lies at its other end."""
    if slot.edge is not None:
        odd = slot.left if slot.left % 2 else slot.left + 1
        slot.enters, slot.leaves = {slot.edge: odd}, {slot.edge: odd + 1}
        return
    spacing = _spacing(letters)
    for edges, columns, parity in ((slot.incoming, slot.enters, 1), (slot.outgoing, slot.leaves, 0)):
        order = sorted(edges, key=lambda edge: _other_end(edge, slot, layers, letters, outgoing=parity == 0))
        start = slot.left + max(2, (slot.width(letters) - len(order) * spacing) // 2)
        start += (start + parity) % 2
        columns.update({edge: start + number * spacing for number, edge in enumerate(order)})


def _other_end(edge: int, slot: _Slot, layers: list[list[_Slot]], letters: int, outgoing: bool) -> float:
    """The middle of the slot that an edge comes from, or goes to next."""
    depth = next(depth for depth, layer in enumerate(layers) if slot in layer)
    beside = layers[depth + 1] if outgoing else layers[depth - 1]
    return next(other.middle(letters) for other in beside if edge in (other.incoming if outgoing else other.outgoing))


def _spacing(letters: int) -> int:
    """Columns from one port to the next, even, so that parity holds."""
    return 2 if letters == 1 else 4


def _tracks(channel: _Channel) -> dict[int, int]:
    """The row of each edge's run across, such that no two on one row touch."""
    taken: list[list[tuple[int, int]]] = []
    track: dict[int, int] = {}
    spans = [(min(ends), max(ends), edge) for edge, before, after in channel for ends in [(before.leaves[edge], after.enters[edge])]]
    for low, high, edge in sorted(spans):
        row = next((row for row, used in enumerate(taken) if all(high < start or low > end for start, end in used)), len(taken))
        if row == len(taken):
            taken.append([])
        taken[row].append((low, high))
        track[edge] = row
    return track


def _drawn(
    layers: list[list[_Slot]], channels: list[_Channel], tracks: list[dict[int, int]], letters: list[str], marks: Marks
) -> GraphPicture:
    lines = _ASCII_LINES if marks.ascii_only else _LINES
    heights = [max(track.values(), default=-1) + 1 for track in tracks]
    tops = [depth * _BOX_HEIGHT + sum(heights[:depth]) for depth in range(len(layers))]
    ways: dict[tuple[int, int], int] = {}
    cells: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(letters))}
    text: dict[tuple[int, int], str] = {}

    def run(edge: int, row: int, column: int, way: int) -> None:
        ways[row, column] = ways.get((row, column), 0) | way
        cells[edge].append((row, column))

    for depth, layer in enumerate(layers):
        top = tops[depth]
        for slot in layer:
            if slot.edge is not None:
                column = slot.enters[slot.edge]
                for row, at, way in (
                    (top, column, _UP | _DOWN),
                    (top + 1, column, _UP | _RIGHT),
                    (top + 1, column + 1, _LEFT | _DOWN),
                    (top + 2, column + 1, _UP | _DOWN),
                ):
                    run(slot.edge, row, at, way)
                continue
            _draw_box(slot, top, len(letters[0]), lines, text)
            for row, ports in ((top, slot.enters), (top + 2, slot.leaves)):
                for edge, column in ports.items():
                    for at, letter in enumerate(letters[edge]):
                        text[row, column + at] = letter
                        cells[edge].append((row, column + at))
    for depth, (channel, track) in enumerate(zip(channels, tracks, strict=True)):
        first, last = tops[depth] + _BOX_HEIGHT, tops[depth + 1] - 1
        for edge, before, after in channel:
            start, end, across = before.leaves[edge], after.enters[edge], first + track[edge]
            for row in range(first, across):
                run(edge, row, start, _UP | _DOWN)
            right = end > start
            run(edge, across, start, _UP | (_RIGHT if right else _LEFT))
            for column in range(min(start, end) + 1, max(start, end)):
                run(edge, across, column, _LEFT | _RIGHT)
            run(edge, across, end, _DOWN | (_LEFT if right else _RIGHT))
            for row in range(across + 1, last + 1):
                run(edge, row, end, _UP | _DOWN)
    text = {**{cell: lines[way] for cell, way in ways.items()}, **text}
    height = max((row for row, _ in text), default=-1) + 1
    width = max((column for _, column in text), default=-1) + 1
    rows = tuple(tuple(text.get((row, column), " ") for column in range(width)) for row in range(height))
    return GraphPicture(rows, {edge: tuple(found) for edge, found in cells.items()})


def _draw_box(slot: _Slot, top: int, letters: int, lines: str, text: dict[tuple[int, int], str]) -> None:
    """The border of a node and its name. A character of two cells leaves the one after it empty."""
    width = slot.width(letters)
    right = slot.left + width - 1
    for column in range(slot.left, right + 1):
        text[top, column] = text[top + 2, column] = lines[_LEFT | _RIGHT]
    for row, column, way in (
        (top, slot.left, _DOWN | _RIGHT),
        (top, right, _DOWN | _LEFT),
        (top + 2, slot.left, _UP | _RIGHT),
        (top + 2, right, _UP | _LEFT),
        (top + 1, slot.left, _UP | _DOWN),
        (top + 1, right, _UP | _DOWN),
    ):
        text[row, column] = lines[way]
    at = slot.left + (width - cell_len(slot.label)) // 2
    for column in range(slot.left + 1, right):
        text[top + 1, column] = " "
    for character in slot.label:
        cells = cell_len(character)
        if cells == 0:
            text[top + 1, at - 1] += character
            continue
        text[top + 1, at] = character
        for rest in range(1, cells):
            text[top + 1, at + rest] = ""
        at += cells
