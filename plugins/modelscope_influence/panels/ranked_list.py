"""Training rows in the order of one ranking, one line each, with as many columns as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Size
from textual.reactive import var
from textual.strip import Strip

from modelscope_influence.panels.rankings import RANKINGS, RankedRow, Ranking
from modelscope_influence.panels.scored_cells import CLASSES, CSS, CellsView, fitted, number_text

HEADER = 1
SET_ASIDE = "set aside"
_ALL, _SOME = 130, 76
"""Columns of the screen from which all numbers stand beside a row, or its ranks."""


class _Column(NamedTuple):
    title: str
    width: int
    said: Callable[[RankedRow, int], str]
    """Of a row and its place."""
    is_right: bool = False


class RankedList(CellsView, inherit_bindings=False):
    """The rows; the cursor is on one."""

    COMPONENT_CLASSES: ClassVar[set[str]] = set(CLASSES)
    DEFAULT_CSS = CSS.format(name="RankedList", across="hidden")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(-1000000)", "First row", show=False),
        Binding("end", "move(1000000)", "Last row", show=False),
    ]

    ranking: var[Ranking | None] = var(None)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.at = 0
        self._columns: Sequence[_Column] = ()

    def watch_ranking(self, before: Ranking | None, ranking: Ranking | None) -> None:
        """Other rows: the cursor goes to the top, unless only their numbers are others."""
        if before is None or ranking is None or before.wanted != ranking.wanted:
            self.at = 0
        self._arrange()

    def on_resize(self, event: Resize) -> None:
        """More or fewer columns."""
        self._arrange()

    @property
    def rows(self) -> Sequence[RankedRow]:
        """Those that are shown."""
        return self.ranking.rows if self.ranking is not None else ()

    @property
    def row(self) -> RankedRow | None:
        """The one under the cursor."""
        return self.rows[self.at] if self.at < len(self.rows) else None

    def readout(self) -> str:
        """Every number of the row under the cursor, with its place by each ranking."""
        row = self.row
        if row is None:
            return ""
        if row.is_set_aside:
            return f"row {row.example}: set aside, its loss or its gradient is not finite{_flag(row)}{_alike(row)}"
        said = [f"row {row.example} {row.effect}{_flag(row)}{_alike(row)}{'' if row.is_exact else ', ~ by a scan of low rank alone'}"]
        for name, value in row.numbers.items():
            place = row.ranks.get(name)
            said.append(f"{RANKINGS.get(name, name)} {number_text(value)}" + (f" (#{place})" if place is not None else ""))
        return "  ".join(said)

    def action_move(self, by: int) -> None:
        """To another row."""
        at = min(max(self.at + by, 0), max(0, len(self.rows) - 1))
        if at != self.at:
            self.at = at
            self.scroll_into_view(self.at, HEADER)
            self.moved()

    def action_page(self, by: int) -> None:
        """By as many as are visible."""
        self.action_move(by * max(1, self.scrollable_content_region.height - HEADER - 1))

    def on_click(self, event: Click) -> None:
        """The row that was clicked."""
        if event.y >= HEADER:
            self.action_move(event.y - HEADER + round(self.scroll_offset.y) - self.at)

    def render_line(self, y: int) -> Strip:
        """The titles, or a row."""
        base, width = self.rich_style, self.scrollable_content_region.width
        if y < HEADER:
            line = " ".join(_aligned(column.title, column) for column in self._columns)
            return Strip([Segment(fitted(f" {line}" if line else "", width), base + self.style_of("muted"))])
        at = y - HEADER + round(self.scroll_offset.y)
        if at >= len(self.rows):
            return Strip.blank(width, base)
        row, is_here = self.rows[at], at == self.at
        style = base + (self.style_of("cursor") if is_here else Style.null())
        segments = [Segment("›" if is_here else " ", style)]
        for column in self._columns:
            segments.append(Segment(_aligned(column.said(row, at), column) + " ", style + self._ink(column, row, is_here)))
        return Strip(segments).crop_extend(0, width, style)

    def _ink(self, column: _Column, row: RankedRow, is_here: bool) -> Style:
        if is_here or column.title != "effect" or row.effect not in ("supports", "opposes"):
            return Style.null()
        return self.style_of("plus" if (row.effect == "supports") == (self.ranking is None or self.ranking.plus_supports) else "minus")

    def _arrange(self) -> None:
        width = self.scrollable_content_region.width
        self._columns = _columns(self.ranking, width) if self.ranking is not None and self.rows else ()
        self.virtual_size = Size(width, HEADER + len(self.rows))
        self.at = min(self.at, max(0, len(self.rows) - 1))
        self.scroll_into_view(self.at, HEADER)
        self.moved()


def _columns(ranking: Ranking, width: int) -> Sequence[_Column]:
    by, others = ranking.wanted.by, [name for name in ranking.rankings if name != ranking.wanted.by]
    columns = [_Column("#", 3, lambda row, at: "" if row.numbers.get(by) is None else str(at + 1), True)]
    columns.append(_Column(RANKINGS[by], 10, lambda row, at: _value(row, by), True))
    if width >= _ALL:
        columns.append(_Column("delta", 10, lambda row, at: _number(row, "delta_measure"), True))
        columns += [_Column(RANKINGS[name], 15, _with_rank(name), True) for name in others]
    elif width >= _SOME:
        columns += [_Column(RANKINGS[name], 7 if name == "relatif" else 6, _rank(name), True) for name in others]
    columns.append(_Column("effect", 8, lambda row, at: row.effect))
    if any(row.is_flagged is not None for row in ranking.rows):
        columns.append(_Column("flag", 4, lambda row, at: "yes" if row.is_flagged else ""))
    if any(row.duplicates for row in ranking.rows):
        columns.append(_Column("alike", 5, lambda row, at: f"+{row.duplicates}" if row.duplicates else "", True))
    used = 1 + sum(column.width + 1 for column in columns)
    room = max(8, width - used - 1)
    columns.append(_Column("training row", room, lambda row, at: row.text.line(room) if row.text is not None else f"row {row.example}"))
    return columns


def _value(row: RankedRow, by: str) -> str:
    about = "" if row.is_exact or by not in ("score", "relatif") else "~"
    return SET_ASIDE if row.is_set_aside else about + number_text(row.numbers.get(by))


def _rank(name: str) -> Callable[[RankedRow, int], str]:
    return lambda row, at: "" if row.ranks.get(name) is None else f"#{row.ranks[name]}"


def _with_rank(name: str) -> Callable[[RankedRow, int], str]:
    return lambda row, at: f"{_number(row, name)} {_rank(name)(row, at):>5}".rstrip()


def _number(row: RankedRow, name: str) -> str:
    value = row.numbers.get(name)
    return "" if value is None else number_text(value, 3)


def _flag(row: RankedRow) -> str:
    return ", flagged" if row.is_flagged else ""


def _alike(row: RankedRow) -> str:
    return f", {row.duplicates} alike" if row.duplicates else ""


def _aligned(text: str, column: _Column) -> str:
    return fitted(text.rjust(column.width) if column.is_right else text, column.width)
