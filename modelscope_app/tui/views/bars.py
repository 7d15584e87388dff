"""Bars, one a line: name, bar, value with its interval. However many there are, only those on the screen are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, cast

from rich.cells import cell_len
from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Click, Resize
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget

from modelscope_app.api import BarsView, neutralised
from modelscope_app.api.params import SelectionKind
from modelscope_app.rendering.character_charts import bar_text as bar
from modelscope_app.rendering.drawings import BarsDrawing, Drawing
from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.rendering.naming import pattern_note, told_apart
from modelscope_app.rendering.wording import count_text, interval_text, number_text
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.views.board import ViewBoard
from modelscope_app.tui.views.lines_of_cells import Picture, WithReadout, copied_number, exact_text, fitted, kind_named

MOST_TOLD_APART = 2000
"""Names that are shortened by what all of them share; more of them are only cut in the middle."""
_SAMPLE = 500
_LEAST_BAR = 8


@dataclass(frozen=True, slots=True, eq=False)
class BarsOfThings(BarsDrawing):
    """Bars that stand for tensors, tokens, features or examples."""

    things: tuple[object, ...]
    """Their names as they are stored, in the order of the bars."""


class BarLines(Picture):
    """One line a bar, below a line that says where the bars begin and end."""

    DEFAULT_CSS = """
    BarLines { overflow-x: hidden; overflow-y: auto; scrollbar-gutter: stable; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(-1000000000)", "First", show=False),
        Binding("end", "move(1000000000)", "Last", show=False),
    ]

    def __init__(self, drawing: BarsDrawing, kind: SelectionKind | None = None, run: str | None = None) -> None:
        """`kind` is what the bars stand for, where they can be handed over; `run` the folder they were seen in."""
        import numpy

        super().__init__()
        self.drawing = drawing
        self.kind, self.run_folder = kind, run
        self.cursor = 0
        known = drawing.values[~numpy.isnan(drawing.values)]
        self.lowest, self.highest = min(0.0, float(known.min(initial=0))), max(0.0, float(known.max(initial=0)))
        sample = {*range(0, len(drawing.names), max(1, len(drawing.names) // _SAMPLE))}
        if known.size:
            sample |= {int(numpy.nanargmin(drawing.values)), int(numpy.nanargmax(drawing.values))}
        self.text_width = max((len(self._text(at)) for at in sample), default=0)
        self.longest_name = min(200, max(map(len, drawing.names), default=0))
        self.names: list[str] | None = None
        self.pattern = ""

    def on_resize(self, event: Resize) -> None:
        """Shares the width among name, bar and value."""
        self.virtual_size = Size(event.size.width, len(self.drawing.names) + 1)
        width = self.width
        most = max(8, min(int(width * 0.45), width - self.text_width - _LEAST_BAR - 5))
        self.name_width = most
        if len(self.drawing.names) <= MOST_TOLD_APART:
            self.names, self.pattern = told_apart(self.drawing.names, most, BLOCKS.cut)
            self.name_width = max(map(cell_len, self.names), default=0)
        else:
            self.name_width = min(most, self.longest_name)
        self.room = max(1, width - self.name_width - self.text_width - 5)
        per_cell = self.highest / self.room - self.lowest / self.room  # divided first: the widest range of numbers is no number
        self.per_cell = per_cell or 1.0
        self.left = min(self.room, math.ceil(-self.lowest / self.per_cell)) if self.lowest else 0
        self._show_cursor()
        self.moved()

    def render_line(self, y: int) -> Strip:
        """The axis, then one bar a line."""
        if not hasattr(self, "room"):
            return Strip.blank(self.size.width, self.rich_style)
        if y == 0:
            return self.strip([Segment(self._axis(), self.muted_style())])
        at = y - 1 + round(self.scroll_offset.y)
        if at >= len(self.drawing.names):
            return Strip.blank(self.size.width, self.rich_style)
        name = self.names[at] if self.names else self.drawing.names[at]
        here = at == self.cursor
        style = self.cursor_style() if here else None
        value = float(self.drawing.values[at])
        return self.strip(
            [
                Segment(("›" if here else " ") + fitted(name, self.name_width) + "  ", style),
                Segment(bar(value, self.per_cell, self.left, self.room, BLOCKS), self.mark_style()),
                Segment("  " + fitted(self._text(at).rjust(self.text_width), self.text_width), style),
            ]
        )

    def readout(self) -> str:
        """The whole name and the exact value."""
        if not self.drawing.names:
            return ""
        at = self.cursor
        value, low, high = (float(values[at]) for values in (self.drawing.values, self.drawing.low, self.drawing.high))
        text = exact_text(value)
        if not (math.isnan(low) and math.isnan(high)):
            text += f", from {exact_text(low)} to {exact_text(high)}"
        place = f"{at + 1:,} of {count_text(len(self.drawing.names), 'bar')}"
        return f"{BLOCKS.cut(self.drawing.names[at], 2 * self.width - 2)}\n{self.drawing.value_label} {text}  ({place})"

    def legend(self) -> Content:
        """What shortened names stand for."""
        return Content("\n".join(pattern_note(self.pattern)))

    def copied(self) -> Copied | None:
        """Name, value and interval of the bar, separated by tabs."""
        if not self.drawing.names:
            return None
        at, numbers = self.cursor, (self.drawing.values, self.drawing.low, self.drawing.high)
        cells = [copied_number(float(values[at])) for values in numbers]
        known = cells if cells[1:] != ["unknown", "unknown"] else cells[:1]
        name = self.drawing.names[at]
        return Copied("\t".join([name, *known]), f"bar {neutralised(name, 60)}")

    def selection(self) -> Selection | None:
        """The thing the bar stands for."""
        if self.kind is None or not isinstance(self.drawing, BarsOfThings) or not self.drawing.things:
            return None
        thing = self.drawing.things[self.cursor]
        if thing is None:
            return None
        return Selection(self.kind, str(thing), f"{self.kind} {neutralised(self.drawing.names[self.cursor], 60)}", run=self.run_folder)

    def explanation(self) -> Explanation:
        """For `?`."""
        text = (
            f"One bar a line, from zero to its {self.drawing.value_label}; bars below zero reach to the left. The value stands at the "
            "end of the line, with the ends of its interval in brackets where it has one. ? is unknown. The line below says the chosen "
            "bar exactly."
        )
        return Explanation("Bars", text)

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self._go_to(self.cursor + by)

    def action_page(self, by: int) -> None:
        """Move the cursor by what fits on the screen."""
        self._go_to(self.cursor + by * max(1, self.size.height - 2))

    def on_click(self, event: Click) -> None:
        """The bar that was clicked."""
        if event.y > 0:
            self._go_to(event.y - 1 + round(self.scroll_offset.y))

    def _go_to(self, at: int) -> None:
        at = max(0, min(len(self.drawing.names) - 1, at))
        if at != self.cursor:
            self.cursor = at
            self._show_cursor()
            self.moved()

    def _show_cursor(self) -> None:
        """Scroll so that the cursor is seen below the axis."""
        top, height = round(self.scroll_offset.y), max(1, self.size.height - 1)
        if not top <= self.cursor < top + height:
            self.scroll_to(y=self.cursor if self.cursor < top else self.cursor - height + 1, animate=False, force=True)

    def _text(self, at: int) -> str:
        value, low, high = (float(numbers[at]) for numbers in (self.drawing.values, self.drawing.low, self.drawing.high))
        return interval_text(value, low, high, self.drawing.value_label)

    def _axis(self) -> str:
        low, high = number_text(self.lowest) if self.lowest else "", number_text(self.highest)
        label = self.drawing.value_label if cell_len(self.drawing.value_label) <= self.name_width else ""
        line = " " + fitted(label, self.name_width) + "  "
        if self.left:
            line += (low + "0".rjust(max(1, self.left - len(low)))) + (high if self.highest else "").rjust(self.room - self.left)
        else:
            line += "0" + high.rjust(self.room - 1)
        return line


class BarsBoard(ViewBoard):
    """A bars view."""

    about = "Arrows move along the bars."

    def computed(self) -> Drawing:
        """The bars, with the things they stand for where these can be handed over."""
        drawn = cast("BarsDrawing", super().computed())
        view = cast("BarsView", self.view)
        if kind_named(view.label) is None:
            return drawn
        names = self.finished_run.table(view.table)[view.label].to_list()
        shared = {field.name: getattr(drawn, field.name) for field in fields(drawn)}
        return BarsOfThings(**shared, things=tuple(names))

    def body(self, drawing: Drawing) -> Widget:
        """Bars with a readout."""
        view = cast("BarsView", self.view)
        return WithReadout(BarLines(cast("BarsDrawing", drawing), kind_named(view.label), str(self.finished_run.folder)))
