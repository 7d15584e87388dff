"""What pictures share that are drawn line by line: only what is visible is drawn, a cursor is on one thing, a line below says it exactly.

A picture posts `CursorMoved` when its cursor or its look changes; what it lies in then asks it for its readout and its legend.
Nothing in them is markup, and where the terminal has few colours none of the data palette is used: shades, signs and digits stay.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, cast, get_args

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Static

from modelscope_app.api.params import SelectionKind
from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.rendering.wording import number_text
from modelscope_app.tui.messages import Selected
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.selections import Selection

if TYPE_CHECKING:
    from textual.app import App

DIGITS = 9
"""Significant digits of a number that is said to be exact; what `y` copies has all of them."""


def exact_text(value: float) -> str:
    """A number under the cursor, for reading.

    >>> exact_text(2 / 3), exact_text(12), exact_text(float("nan"))
    ('0.666666667', '12', 'unknown')
    """
    if 1e6 <= abs(value) < 1e12 and value != int(value):
        return f"{value:,.{max(0, DIGITS - len(str(int(abs(value)))))}f}"
    return number_text(value, DIGITS)


def copied_number(value: float) -> str:
    """A number as a program reads it, with every digit; `unknown` where there is none.

    >>> copied_number(0.1), copied_number(3.0), copied_number(float("nan"))
    ('0.1', '3', 'unknown')
    """
    if math.isnan(value):
        return "unknown"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def has_few_colours(app: App[object]) -> bool:
    """Whether the data palette cannot be relied on: no colours at all, or the sixteen the terminal chose itself."""
    return app.no_color or app.native_ansi_color or app.console.color_system in ("standard", "windows")


def kind_named(column: str) -> SelectionKind | None:
    """What kind of thing a column of names holds, where its name says so."""
    return cast("SelectionKind", column) if column in get_args(SelectionKind) else None


@lru_cache(256)
def parsed(style: str) -> Style:
    """A style of the rendering package as a style to draw with."""
    return Style.parse(style)


def fitted(text: str, cells: int) -> str:
    """`text` in exactly `cells` cells, its middle left out where it is longer."""
    return set_cell_size(BLOCKS.cut(text, cells), cells) if cell_len(text) > cells else text + " " * (cells - cell_len(text))


class Picture(ScrollView, can_focus=True):
    """A picture drawn line by line, with a cursor."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"picture--muted", "picture--cursor", "picture--mark", "picture--chosen", "picture--title"}
    DEFAULT_CSS = """
    Picture {
        height: 1fr;
        & > .picture--muted { color: $text-muted; }
        & > .picture--cursor { color: $block-cursor-foreground; background: $block-cursor-background; text-style: bold; }
        & > .picture--mark { color: $primary; }
        & > .picture--chosen { color: $accent; text-style: bold; }
        & > .picture--title { text-style: bold; }
    }
    """

    class CursorMoved(Message):
        """The cursor, or how the picture is drawn, has changed."""

    def readout(self) -> str:
        """What the cursor is on, exactly."""
        raise NotImplementedError

    def legend(self) -> Content:
        """How to read the marks; nothing where they speak for themselves."""
        return Content("")

    def copied(self) -> Copied | None:
        """What `y` copies: the value or values under the cursor."""
        raise NotImplementedError

    def explanation(self) -> Explanation:
        """For `?`."""
        raise NotImplementedError

    def selection(self) -> Selection | None:
        """What other analyses can be given; most pictures have nothing."""
        return None

    def moved(self) -> None:
        """To be called when the cursor has moved or the picture looks different."""
        self.refresh()
        self.post_message(self.CursorMoved())
        self.post_message(Selected(self.selection()))

    def on_mount(self) -> None:
        """The first readout."""
        self.moved()

    def notify_style_update(self) -> None:
        """Themes differ in what colours they have, so the legend may change too."""
        super().notify_style_update()
        if self.is_mounted:
            self.post_message(self.CursorMoved())

    def muted_style(self) -> Style:
        """For what is beside the point: axes, scales."""
        return Style(dim=True) if has_few_colours(self.app) else self.get_component_rich_style("picture--muted")

    def mark_style(self) -> Style:
        """For bars and columns."""
        return self.get_component_rich_style("picture--mark")

    def chosen_style(self) -> Style:
        """For the bar or column of the cursor, which something else marks too."""
        return self.get_component_rich_style("picture--chosen")

    def title_style(self) -> Style:
        """For the name of a part."""
        return self.get_component_rich_style("picture--title")

    def cursor_style(self) -> Style:
        """For what the cursor is on; turned round where colours cannot show it."""
        return Style(reverse=True, bold=True) if has_few_colours(self.app) else self.get_component_rich_style("picture--cursor")

    @property
    def width(self) -> int:
        """Cells of a line, without the scrollbar."""
        return self.scrollable_content_region.width

    def strip(self, segments: list[Segment]) -> Strip:
        """Segments as a line as wide as the picture."""
        return Strip(segments).adjust_cell_length(self.width, self.rich_style).apply_style(self.rich_style)


class WithReadout(Vertical):
    """A picture with its legend and, below, what its cursor is on."""

    DEFAULT_CSS = """
    WithReadout {
        height: 1fr;
        padding: 0 1;
        & > .legend { height: auto; max-height: 3; color: $text-muted; }
        & > .readout { height: auto; max-height: 4; }
    }
    """

    def __init__(self, picture: Picture) -> None:
        super().__init__()
        self.picture = picture

    def compose(self) -> ComposeResult:
        """Picture, legend, readout."""
        yield self.picture
        yield Static(classes="legend", markup=False)
        yield Static(classes="readout", markup=False)

    def on_picture_cursor_moved(self, event: Picture.CursorMoved) -> None:
        """Say what the cursor is on."""
        event.stop()
        legend = self.picture.legend()
        shown = self.query_one(".legend", Static)
        shown.display = bool(legend.plain)
        shown.update(legend)
        self.query_one(".readout", Static).update(Content(self.picture.readout()))
