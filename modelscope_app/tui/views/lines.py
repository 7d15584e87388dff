"""Lines over a pair of axes, and below them the exact value of every line at the cursor.

Imported when the first view of lines is shown, because it imports textual_plot.
"""

from __future__ import annotations

from typing import ClassVar, cast

from rich.cells import cell_len
from rich.segment import Segment
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Resize
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from modelscope_app.api import LinesView, neutralised
from modelscope_app.rendering.drawings import Drawing, LinesDrawing
from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.rendering.naming import pattern_note, told_apart
from modelscope_app.rendering.wording import number_text
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.views.board import ViewBoard
from modelscope_app.tui.views.lines_of_cells import exact_text, fitted, kind_named, parsed
from modelscope_app.tui.views.lines_plot import MOST_COLOURED, MOST_DRAWN, LinePlot

MOST_LISTED = 6
"""Lines of the list on the screen at once."""
MOST_TOLD_APART = 2000


class SeriesList(ScrollView, can_focus=False):
    """One line a series: its letter, its name, its value at the cursor. The keys are the plot's."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"series--chosen"}
    DEFAULT_CSS = """
    SeriesList {
        overflow-x: hidden;
        overflow-y: auto;
        & > .series--chosen { text-style: bold; }
    }
    """

    def __init__(self, plot: LinePlot) -> None:
        super().__init__()
        self.plot = plot
        names = [line.name or plot.drawing.y_label for line in plot.drawing.lines]
        self.names, self.pattern = told_apart(names, 36, BLOCKS.cut) if len(names) <= MOST_TOLD_APART else (names, "")
        self.name_width = min(36, max(map(cell_len, self.names), default=0))

    def on_resize(self) -> None:
        """The list is as wide as it is on the screen."""
        self.show_cursor()

    def show_cursor(self) -> None:
        """The values at the cursor; the chosen line is seen."""
        self.virtual_size = Size(self.size.width, len(self.names))
        top, height, at = round(self.scroll_offset.y), max(1, self.size.height), self.plot.chosen
        if not top <= at < top + height:
            self.scroll_to(y=at if at < top else at - height + 1, animate=False, force=True)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One series."""
        at = y + round(self.scroll_offset.y)
        if at >= len(self.names):
            return Strip.blank(self.size.width, self.rich_style)
        chosen = at == self.plot.chosen
        style = self.get_component_rich_style("series--chosen") if chosen else None
        colour = parsed(self.plot.colour(at))
        several = len(self.names) > 1
        line = [Segment(("›" if chosen else " ") + self.plot.letter(at) + " ", colour)] if several else []
        line.append(Segment(fitted(self.names[at], self.name_width) + ("  " if self.name_width else ""), style))
        line.append(Segment(self._value_text(at), style))
        width = self.scrollable_content_region.width
        return Strip(line).adjust_cell_length(width, self.rich_style).apply_style(self.rich_style)

    def _value_text(self, at: int) -> str:
        values = self.plot.values_at_cursor(at)
        if values is None:
            return "no point here"
        value, low, high = values
        interval = f" [{exact_text(low)}, {exact_text(high)}]" if low == low or high == high else ""
        return exact_text(value) + interval


class LinesWithValues(Vertical):
    """The plot, what its axes are, and the list of values."""

    DEFAULT_CSS = """
    LinesWithValues { height: 1fr; padding: 0 1; }
    LinesWithValues > .axes { height: 1; color: $text-muted; }
    LinesWithValues > .place { height: auto; max-height: 2; }
    """

    def __init__(self, drawing: LinesDrawing, selection_of: dict[int, Selection] | None = None) -> None:
        super().__init__()
        self.drawing = drawing
        self.plot = LinePlot(drawing, selection_of)

    def compose(self) -> ComposeResult:
        """Axes, plot, place of the cursor, values."""
        log = {"log": " (log scale)", "linear": ""}
        drawing = self.drawing
        axes = f"{drawing.y_label}{log[drawing.y_scale]} over {drawing.x_label}{log[drawing.x_scale]}"
        yield Static(Content(axes), classes="axes", markup=False)
        yield self.plot
        yield Static(classes="place", markup=False)
        yield SeriesList(self.plot)

    def on_resize(self, event: Resize) -> None:
        """The plot comes first; the list has a third of the room."""
        rows = min(MOST_LISTED, max(1, len(self.drawing.lines)), max(1, (event.size.height - 2) // 3))
        self.query_one(SeriesList).styles.height = rows

    def on_line_plot_cursor_moved(self, event: LinePlot.CursorMoved) -> None:
        """Say where the cursor is and what is there."""
        event.stop()
        plot = self.plot
        series = self.query_one(SeriesList)
        if not plot.xs.size:
            said = "There is nothing to draw."
        else:
            x = number_text(float(plot.xs[plot.cursor]), 9)
            said = f"at {self.drawing.x_label} {x}  ({plot.cursor + 1:,} of {len(plot.xs):,})"
            if plot.window != (0.0, 1.0) or plot.heights:
                low, high = (number_text(plot.x_axis.value(end)) for end in plot.window)
                said += f"; shown {low} to {high}, r: all"
            count = len(self.drawing.lines)
            if count > MOST_DRAWN:
                said += f"; line {plot.chosen + 1:,} of {count:,}, drawn with the {MOST_DRAWN - 1} that change most"
            elif count > MOST_COLOURED:
                said += f"; line {plot.chosen + 1} of {count}"
        note = pattern_note(series.pattern)
        self.query_one(".place", Static).update(Content("\n".join([said, *note])))
        series.show_cursor()


class LinesBoard(ViewBoard):
    """A lines view."""

    about = "Arrows move the cursor and choose a line, + and - zoom, r shows all."

    def body(self, drawing: Drawing) -> Widget:
        """The plot with its values."""
        lines = cast("LinesDrawing", drawing)
        series = cast("LinesView", self.view).series
        kind = kind_named(series) if series else None
        handed: dict[int, Selection] = {}
        if kind is not None:
            for at, line in enumerate(lines.lines):
                if "\\" not in line.name and not line.name.endswith("…"):  # what was made harmless or cut is another name
                    label = f"{kind} {neutralised(line.name, 60)}"
                    handed[at] = Selection(kind, line.name, label, run=str(self.finished_run.folder))
        return LinesWithValues(lines, handed)
