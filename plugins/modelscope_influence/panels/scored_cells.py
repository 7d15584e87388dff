"""How a score looks in a cell: a sign and a digit or a shade carry it, colour only repeats them. Shared by what the panels draw."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from textual.color import Color
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.widget import Widget

SHADES = " ░▒▓█"
CSS = """
    {name} {{
        height: 1fr;
        overflow: {across} auto;
        scrollbar-size-vertical: 1;
        scrollbar-size-horizontal: 1;
        & > .cells--muted {{ color: $text-muted; }}
        & > .cells--plus {{ color: $accent; }}
        & > .cells--minus {{ color: $primary; }}
        & > .cells--cursor {{ text-style: bold reverse; }}
    }}
"""
"""Of a widget of scored cells."""
CLASSES = frozenset({"cells--muted", "cells--plus", "cells--minus", "cells--cursor"})


class Moved(Message):
    """The cursor of a widget is on something else, or what it shows is something else."""


class CellsView(ScrollView, can_focus=True, inherit_bindings=False):
    """Lines of scored cells with a cursor; only visible lines are drawn."""

    def moved(self) -> None:
        """Draw again and say so."""
        self.refresh()
        self.post_message(Moved())

    def style_of(self, name: str) -> Style:
        """Of one of `CLASSES`."""
        return self.get_component_rich_style(f"cells--{name}", partial=True)

    def scroll_into_view(self, line: int, header: int = 0, height: int = 1) -> None:
        """Scroll so that a line below the header lines is seen."""
        room = max(1, self.scrollable_content_region.height - header)
        top = round(self.scroll_offset.y)
        if line < top or line + height > top + room:
            self.scroll_to(y=line if line < top else line + height - room, animate=False, force=True)


def sign_and_shade(level: float | None) -> str:
    """A level from -1 to 1 in two characters.

    >>> sign_and_shade(1.0), sign_and_shade(-0.5), sign_and_shade(0.01), sign_and_shade(0.0), sign_and_shade(None)
    ('+█', '-▒', '+ ', '  ', '? ')
    """
    if level is None:
        return "? "
    return ("+" if level > 0 else "-" if level < 0 else " ") + SHADES[min(4, round(abs(level) * 4))]


def sign_and_digit(level: float | None) -> str:
    """A level from -1 to 1 in two characters, in tenths; what is all of it is a star.

    >>> sign_and_digit(1.0), sign_and_digit(-0.52), sign_and_digit(0.01), sign_and_digit(None)
    ('+*', '-5', '  ', '? ')
    """
    if level is None:
        return "? "
    tenths = round(abs(level) * 10)
    return "  " if not tenths else ("+" if level > 0 else "-") + ("*" if tenths == 10 else str(tenths))


def number_text(value: float | None, digits: int = 4) -> str:
    """A few digits.

    >>> number_text(2 / 3), number_text(None), number_text(-12345.6), number_text(1234567.0, 3)
    ('0.6667', 'unknown', '-12,346', '1.23e+06')
    """
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if 10 ** min(digits, 3) <= abs(value) < 1e6 else f"{value:.{digits}g}"


def level_of(score: float | None, reach: float) -> float | None:
    """A score as a share of the largest size there is."""
    return None if score is None else score / reach if reach else 0.0


def heat(widget: Widget, level: float | None, plus: Style, minus: Style, base: Style) -> Style:
    """The colour behind a cell; where the terminal has few colours, that of its characters."""
    if not level:
        return base
    ink = plus if level > 0 else minus
    app = widget.app
    if app.no_color or app.native_ansi_color or app.console.color_system in ("standard", "windows"):
        return base + ink if abs(level) >= 0.05 else base
    if ink.color is None or base.bgcolor is None:
        return base + ink
    ground = Color.from_rich_color(base.bgcolor)
    return base + Style(bgcolor=ground.blend(Color.from_rich_color(ink.color), min(1.0, abs(level)) * 0.65).rich_color)


def fitted(text: str, cells: int) -> str:
    """Cut or filled to a width.

    >>> fitted("down_proj", 6), fitted("q", 3)
    ('down_…', 'q  ')
    """
    if cells <= 0:
        return ""
    return set_cell_size(set_cell_size(text, cells - 1) + "…" if cell_len(text) > cells else text, cells)
