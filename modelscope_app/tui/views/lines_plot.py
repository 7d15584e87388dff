"""Lines on a textual-plot canvas: placed by `Axis`, thinned to the room there is, with gaps where values are unknown.

Imported by views of lines alone, because it imports textual_plot and with it numpy.
"""

from __future__ import annotations

from typing import ClassVar

import numpy
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid
from textual.events import Click, Resize
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual_hires_canvas import Canvas
from textual_plot import HiResMode, PlotWidget
from textual_plot.plot_widget import Legend

from modelscope_app.rendering.drawings import Line, LinesDrawing
from modelscope_app.rendering.palette import REST, SERIES
from modelscope_app.rendering.thinning import most_changing, thinned
from modelscope_app.tui.messages import Selected
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.views.lines_axis import Axis
from modelscope_app.tui.views.lines_of_cells import copied_number, has_few_colours

MOST_COLOURED = len(SERIES)
"""Lines that each have a colour of their own; of more, one is highlighted at a time."""
MOST_DRAWN = 25
_COPIED_SERIES = 1000
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTERS_ON_A_LINE = 3
_BRAILLE = HiResMode.BRAILLE


class PlotCanvas(Canvas):
    """A canvas whose every character has a style: Textual without colours cannot draw one that has none."""

    def render_line(self, y: int) -> Strip:
        """One line."""
        return super().render_line(y).apply_style(self.rich_style)


class LinePlot(PlotWidget, inherit_bindings=False):
    """Lines with a cursor along x and one chosen line."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"plot--cursor"}
    DEFAULT_CSS = """
    LinePlot { height: 1fr; min-height: 5; }
    LinePlot > .plot--axis { color: $text-muted; }
    LinePlot:focus > .plot--axis { color: $primary; }
    LinePlot > .plot--cursor { color: $accent; }
    LinePlot > .plot--tick { color: $foreground; text-style: none; }
    LinePlot Canvas { background: transparent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus,equals_sign", "zoom_x(1)", "Closer", key_display="+", show=False),
        Binding("minus", "zoom_x(-1)", "Farther", key_display="-", show=False),
        Binding("r", "reset", "Whole range", show=False),
        Binding("left", "move(-1)", "Cursor left", show=False),
        Binding("right", "move(1)", "Cursor right", show=False),
        Binding("pageup", "move(-10)", "Cursor far left", show=False),
        Binding("pagedown", "move(10)", "Cursor far right", show=False),
        Binding("home", "ends(-1)", "First point", show=False),
        Binding("end", "ends(1)", "Last point", show=False),
        Binding("up", "choose(-1)", "Previous line", show=False),
        Binding("down", "choose(1)", "Next line", show=False),
    ]

    margin_top = reactive(0)
    margin_bottom = reactive(1)
    margin_left = reactive(11)

    class CursorMoved(Message):
        """Another x, another line, or another part of the axes."""

    def __init__(self, drawing: LinesDrawing, selection_of: dict[int, Selection] | None = None) -> None:
        """`selection_of` are the lines that stand for something other analyses can be given, by position."""
        super().__init__()
        self.drawing = drawing
        self.selection_of = selection_of or {}
        self.chosen = 0
        xs = [line.x for line in drawing.lines]
        self.xs = numpy.unique(numpy.concatenate(xs)) if xs else numpy.empty(0)
        """Every x of any line, ascending."""
        self.cursor = max(0, len(self.xs) - 1)
        """Position among `xs`."""
        self.x_axis = Axis(drawing.x_scale, float(self.xs[0]), float(self.xs[-1])) if self.xs.size else Axis("linear", 0, 1)
        self.y_axis = Axis(drawing.y_scale, *_range(drawing))
        self.places = self.x_axis.placed(self.xs)
        self.window = (0.0, 1.0)
        """The part of the x axis on the screen."""
        self.heights: tuple[float, float] | None = None
        """The part of the y axis, where the mouse has set it; else it fits what is drawn."""
        others = most_changing(drawing.lines, MOST_DRAWN - 1, drawing.y_scale) if len(drawing.lines) > MOST_DRAWN else None
        self.drawn = others if others is not None else list(range(len(drawing.lines)))
        """Lines that are always drawn; the chosen one is too."""
        self.set_x_formatter(self.x_axis)
        self.set_y_formatter(self.y_axis)

    def compose(self) -> ComposeResult:
        """As the plot widget does, with canvases of our own."""
        with Grid():
            for part in ("margin-top", "margin-left", "plot", "margin-bottom"):
                yield PlotCanvas(1, 1, id=part)
        yield Legend(id="legend")

    def letter(self, at: int) -> str:
        """What marks a line besides its colour."""
        if len(self.drawing.lines) <= len(_LETTERS):
            return _LETTERS[at]
        return "●" if at == self.chosen else " "

    def colour(self, at: int) -> str:
        """The style of a line."""
        strong = "bold " if at == self.chosen else ""
        if has_few_colours(self.app):
            return strong + "default" if at == self.chosen or len(self.drawing.lines) <= MOST_COLOURED else "dim default"
        few = len(self.drawing.lines) <= MOST_COLOURED
        ink = SERIES[at] if few else SERIES[0] if at == self.chosen else REST
        return strong + (ink.dark if self.app.current_theme.dark else ink.light)

    def on_resize(self, event: Resize) -> None:
        """How much can be told apart depends on the room."""
        self.call_after_refresh(self.redraw)

    def notify_style_update(self) -> None:
        """Another theme, other colours."""
        super().notify_style_update()
        if self.is_mounted and self.size.width:
            self.call_after_refresh(self.redraw)

    def redraw(self) -> None:
        """Draw the lines as they are on the screen now."""
        if not self.is_attached or not self.size.width:
            return
        self.clear()
        last = [self.chosen] if self.drawing.lines else []
        order = [at for at in self.drawn if at != self.chosen] + last
        width = max(10, self.size.width - self.margin_left - 2)
        self.x_axis.most_ticks, self.y_axis.most_ticks = max(2, width // 12), max(2, self.size.height // 2 - 1)
        shown = {at: self._within(self.drawing.lines[at], width) for at in order}
        bounds = [line.y for line in shown.values()]
        bounds += [bound for line in [shown[at] for at in last] for bound in (line.low, line.high) if bound is not None]
        self.set_xlimits(*self.window)
        self.set_ylimits(*(self.heights or self._fitting(bounds)))
        self._draw_cursor()  # first, so that the lines stay seen where they cross it
        for at in order:
            if at == self.chosen:
                self._draw_band(shown[at], width, at)
            self._draw_line(shown[at], at)
        for at in order:
            self._draw_letters(shown[at], at)
        self.post_message(self.CursorMoved())
        self.post_message(Selected(self.selection()))

    def values_at_cursor(self, at: int) -> tuple[float, float, float] | None:
        """Value, low and high of a line at the cursor; None where it has no point there."""
        line = self.drawing.lines[at]
        if not self.xs.size:
            return None
        found = int(numpy.searchsorted(line.x, self.xs[self.cursor]))
        if found >= len(line.x) or line.x[found] != self.xs[self.cursor]:
            return None
        value, low, high = (float("nan") if values is None else float(values[found]) for values in (line.values, line.low, line.high))
        return value, low, high

    def copied(self) -> Copied | None:
        """x, then name and value of every line there, separated by tabs, one line each."""
        if not self.xs.size:
            return None
        x = copied_number(float(self.xs[self.cursor]))
        rows = []
        for at, line in list(enumerate(self.drawing.lines))[:_COPIED_SERIES]:
            values = self.values_at_cursor(at)
            if values is not None:
                known = [copied_number(value) for value in values] if values[1] == values[1] or values[2] == values[2] else None
                rows.append("\t".join([x, *([line.name] if line.name else []), *(known or [copied_number(values[0])])]))
        return Copied("\n".join(rows), f"the values at {self.drawing.x_label} {x}")

    def selection(self) -> Selection | None:
        """What the chosen line stands for."""
        return self.selection_of.get(self.chosen)

    def explanation(self) -> Explanation:
        """For `?`."""
        text = (
            f"{self.drawing.y_label} over {self.drawing.x_label}. Left and right move the cursor along x; the list below says the value of "
            "every line there exactly. Up and down choose a line: it is drawn on top, with dots along the ends of its interval where it "
            "has one. A letter on a line is its letter in the list. Gaps are unknown values, and on a logarithmic axis those at or below "
            "zero. + and - zoom around the cursor, r shows all."
        )
        return Explanation("Lines", text)

    def action_move(self, by: int) -> None:
        """Move the cursor by about as many characters as told, at least by one point."""
        if not self.xs.size:
            return
        first, last = numpy.searchsorted(self.places, (self.window[0] - 1e-12, self.window[1] + 1e-12))
        step = max(1, int(last - first) // max(10, self.size.width - self.margin_left - 2))
        self._go_to(self.cursor + by * step)

    def action_ends(self, by: int) -> None:
        """The first or the last point."""
        self._go_to(0 if by < 0 else len(self.xs) - 1)

    def action_choose(self, by: int) -> None:
        """Choose another line."""
        if self.drawing.lines:
            self.chosen = max(0, min(len(self.drawing.lines) - 1, self.chosen + by))
            self.redraw()

    def action_zoom_x(self, by: int) -> None:
        """Half or twice the stretch of x, around the cursor; y fits what is then seen."""
        if not self.xs.size:
            return
        low, high = self.window
        wide = min(1.0, (high - low) * (0.5 if by > 0 else 2))
        if wide > 1e-9:
            start = min(max(float(self.places[self.cursor]) - wide / 2, 0.0), 1 - wide)
            self.window, self.heights = (start, start + wide), None
            self.redraw()

    def action_reset(self) -> None:
        """Show everything."""
        self.window, self.heights = (0.0, 1.0), None
        self.redraw()

    def on_plot_widget_scale_changed(self, event: PlotWidget.ScaleChanged) -> None:
        """The mouse has zoomed or panned."""
        event.stop()
        self.window, self.heights = (event.x_min, event.x_max), (event.y_min, event.y_max)
        self.redraw()

    def on_click(self, event: Click) -> None:
        """The x that was clicked."""
        if self.xs.size:
            offset = event.screen_offset - self.screen.get_offset(self.query_one("#plot", Canvas))
            place, _ = self.get_coordinate_from_pixel(offset.x, offset.y)
            self._go_to(int(numpy.abs(self.places - place).argmin()))

    def _go_to(self, at: int) -> None:
        at = max(0, min(len(self.xs) - 1, at))
        if at == self.cursor:
            return
        self.cursor = at
        place, (low, high) = float(self.places[at]), self.window
        if not low <= place <= high:
            start = min(max(place - (high - low) / 2, 0.0), 1 - (high - low))
            self.window, self.heights = (start, start + high - low), None
        self.redraw()

    def _within(self, line: Line, width: int) -> Line:
        """What a line has on the screen and one point on either side, placed and thinned; arrays are places from 0 to 1."""
        low, high = (self.x_axis.value(end) for end in self.window)
        first, last = numpy.searchsorted(line.x, (low, high))
        kept = slice(max(0, int(first) - 1), int(last) + 1)
        bounds = (None if bound is None else bound[kept] for bound in (line.low, line.high))
        part = thinned(Line(line.name, line.x[kept], line.y[kept], *bounds), width)
        return Line(
            part.name,
            self.x_axis.placed(part.x),
            self.y_axis.placed(part.y),
            *(None if bound is None else self.y_axis.placed(bound) for bound in (part.low, part.high)),
        )

    def _fitting(self, bounds: list[numpy.ndarray]) -> tuple[float, float]:
        known = numpy.concatenate([*bounds, numpy.empty(0)])
        known = known[numpy.isfinite(known)]
        if not known.size:
            return 0.0, 1.0
        low, high = float(known.min()), float(known.max())
        room = (high - low) * 0.04 or 0.05
        return low - room, high + room

    def _draw_line(self, line: Line, at: int) -> None:
        known = numpy.flatnonzero(numpy.isfinite(line.y))
        for points in numpy.split(known, numpy.flatnonzero(numpy.diff(known) > 1) + 1):
            if len(points) == 1:
                self.scatter(line.x[points], line.y[points], marker="•", marker_style=self.colour(at))
            elif len(points):
                self.plot(line.x[points], line.y[points], line_style=self.colour(at), hires_mode=_BRAILLE)

    def _draw_band(self, line: Line, width: int, at: int) -> None:
        """Dots along both ends of the interval."""
        if len(line.x) < 2:
            return
        places = numpy.linspace(max(self.window[0], line.x[0]), min(self.window[1], line.x[-1]), width)
        for bound in (line.low, line.high):
            if bound is not None:
                self.scatter(places, numpy.interp(places, line.x, bound), marker_style=self.colour(at), hires_mode=_BRAILLE)

    def _draw_letters(self, line: Line, at: int) -> None:
        """The letter of a line on it, in places of its own; of many lines only the chosen one has them."""
        count = len(self.drawing.lines)
        if count == 1 or (count > MOST_COLOURED and at != self.chosen):
            return
        known = numpy.flatnonzero(numpy.isfinite(line.y) & (line.x >= self.window[0]) & (line.x <= self.window[1]))
        if not known.size:
            return
        share = (at + 0.5) / count if count <= MOST_COLOURED else 0.5
        wanted = [
            self.window[0] + (self.window[1] - self.window[0]) * (part + share) / _LETTERS_ON_A_LINE for part in range(_LETTERS_ON_A_LINE)
        ]
        points = known[sorted({int(numpy.abs(line.x[known] - place).argmin()) for place in wanted})]
        self.scatter(line.x[points], line.y[points], marker=self.letter(at), marker_style="bold " + self.colour(at))

    def _draw_cursor(self) -> None:
        """A line from top to bottom at the cursor."""
        place = float(self.places[self.cursor]) if self.xs.size else -1.0
        if self.window[0] <= place <= self.window[1] and self.size.height > 3:
            heights = numpy.linspace(self._y_min, self._y_max, 2 * self.size.height)
            colour = "default" if has_few_colours(self.app) else self.get_component_rich_style("plot--cursor").color
            style = colour if isinstance(colour, str) else colour.name if colour else "default"
            self.scatter(numpy.full_like(heights, place), heights, marker="│", marker_style=style)


def _range(drawing: LinesDrawing) -> tuple[float, float]:
    """The lowest and highest number on the y axis; on a logarithmic one above zero."""
    arrays = [values for line in drawing.lines for values in (line.y, line.low, line.high) if values is not None]
    known = numpy.concatenate([*arrays, numpy.empty(0)])
    known = known[numpy.isfinite(known) & ((known > 0) | (drawing.y_scale == "linear"))]
    return (float(known.min()), float(known.max())) if known.size else (1.0, 10.0)
