"""Histograms: columns of counts, one group at a time, the bin under the cursor said exactly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, cast

from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.strip import Strip
from textual.widget import Widget

from modelscope_app.rendering.character_plots import axis_labels, column_cell
from modelscope_app.rendering.drawings import Bins, Drawing, HistogramDrawing
from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.rendering.wording import number_text
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.views.board import ViewBoard
from modelscope_app.tui.views.lines_of_cells import Picture, WithReadout, copied_number, exact_text

if TYPE_CHECKING:
    import numpy

WIDEST_COLUMN = 8
_AROUND = 4
"""Lines that are not columns: the title, the axis, its ends, and the mark of the cursor."""


class HistogramColumns(Picture):
    """One histogram. Where there are more bins than characters, a column adds up several; larger columns show fewer bins at once."""

    DEFAULT_CSS = """
    HistogramColumns { overflow: hidden; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "logarithm", "Log counts"),
        Binding("plus,equals_sign", "zoom(1)", "Closer", key_display="+", show=False),
        Binding("minus", "zoom(-1)", "Farther", key_display="-", show=False),
        Binding("r", "reset", "All bins", show=False),
        Binding("left", "move(-1)", "Previous bin", show=False),
        Binding("right", "move(1)", "Next bin", show=False),
        Binding("home", "move(-1000000000)", "First bin", show=False),
        Binding("end", "move(1000000000)", "Last bin", show=False),
        Binding("up", "group(-1)", "Previous group", show=False),
        Binding("down", "group(1)", "Next group", show=False),
    ]

    def __init__(self, drawing: HistogramDrawing) -> None:
        super().__init__()
        self.drawing = drawing
        self.groups = [bins for bins in drawing.groups if len(bins.counts)]
        self.group = 0
        self.in_logarithm = False
        self.cursor = 0
        """The bin, or the first of the bins, of the column under the cursor."""
        self.first, self.last = 0, 0
        """The bins on the screen, half open."""
        if self.groups:
            self._show_group()

    @property
    def bins(self) -> Bins:
        """The histogram on the screen."""
        return self.groups[self.group]

    def on_resize(self, event: Resize) -> None:
        """Columns are as wide as there is room."""
        self.moved()

    def render_line(self, y: int) -> Strip:
        """Title, columns from above, axis, mark of the cursor, ends of the axis."""
        if not self.groups:
            return Strip.blank(self.size.width, self.rich_style)
        counts, repeat, margin = self._columns()
        rows = max(1, self.size.height - _AROUND)
        chosen = (self.cursor - self.first) // self._per_column
        muted = self.muted_style()
        drawn = len(counts) * repeat
        if y == 0:
            log = " (log scale)" if self.in_logarithm else ""
            several = f" ({self.group + 1} of {len(self.groups)} groups)  " if len(self.groups) > 1 else ""
            name = BLOCKS.cut(self.bins.name, max(8, self.width - len(several) - len(self.drawing.count_label) - 12))
            return self.strip(
                [
                    Segment(f"{name}  " if name and not several else name + several, self.title_style()),
                    Segment(self.drawing.count_label + log, muted),
                ]
            )
        if y <= rows:
            heights, top = self._heights(counts)
            label = number_text(float(max(counts.max(), 0))) if y == 1 else "0" if y == rows else ""
            cells = [column_cell(height, top, rows - y, rows, BLOCKS) * repeat for height in heights]
            return self.strip(
                [
                    Segment(label.rjust(margin) + f" {BLOCKS.vertical}", muted),
                    Segment("".join(cells[:chosen]), self.mark_style()),
                    Segment(cells[chosen], self.chosen_style()),
                    Segment("".join(cells[chosen + 1 :]), self.mark_style()),
                ]
            )
        if y == rows + 1:
            return self.strip([Segment(" " * (margin + 1) + BLOCKS.corner + BLOCKS.horizontal * drawn, muted)])
        if y == rows + 2:
            return self.strip([Segment(" " * (margin + 2 + chosen * repeat) + "▲" * repeat, self.chosen_style())])
        left, right = float(self.bins.left[self.first]), float(self.bins.right[self.last - 1])
        ends = axis_labels(number_text(left), self.drawing.x_label, number_text(right), margin + 2, max(drawn, 24), BLOCKS)
        return self.strip([Segment(ends.plain, muted)])

    def readout(self) -> str:
        """The edges and count of the bin, its share, and the share up to it."""
        import numpy

        if not self.groups:
            return "There are no bins."
        first, last = self._chosen()
        bins = self.bins
        with numpy.errstate(over="ignore"):
            total, below, count = (float(bins.counts[part].sum()) for part in (slice(None), slice(last), slice(first, last)))
        which = f"bin {first + 1:,}" if last - first == 1 else f"bins {first + 1:,} to {last:,}"
        line = f"from {exact_text(float(bins.left[first]))} to {exact_text(float(bins.right[last - 1]))}, {self.drawing.count_label} "
        line += f"{exact_text(count)}  ({which} of {len(bins.counts):,})"
        if total > 0 and math.isfinite(total):
            line += f"\n{_share(count / total)} of all, {_share(below / total)} in this and the bins below it"
        per_column = self._per_column
        if per_column > 1:
            line += f"; a column adds up {per_column} bins, + shows fewer"
        elif self.last - self.first < len(bins.counts):
            line += f"; {self.last - self.first:,} of {len(bins.counts):,} bins are shown, r shows all"
        return line

    def copied(self) -> Copied | None:
        """Edges and count, separated by tabs."""
        if not self.groups:
            return None
        first, last = self._chosen()
        numbers = (self.bins.left[first], self.bins.right[last - 1], self.bins.counts[first:last].sum())
        name = [self.bins.name] if self.bins.name else []
        what = "one bin: from, to, count" if last - first == 1 else f"{last - first} bins: from, to, count"
        return Copied("\t".join([*name, *(copied_number(float(number)) for number in numbers)]), what)

    def explanation(self) -> Explanation:
        """For `?`."""
        text = (
            f"Columns of {self.drawing.count_label} over {self.drawing.x_label or 'bins'}, the tallest as high as its number on the axis; "
            "a count above zero is never invisible. Left and right go from column to column, up and down from group to group, l draws "
            "the counts on a logarithmic scale, + shows fewer bins more closely. The line below says the chosen bin exactly."
        )
        return Explanation("Histogram", text)

    def action_logarithm(self) -> None:
        """Counts to scale, or their logarithms."""
        self.in_logarithm = not self.in_logarithm
        self.moved()

    def action_move(self, by: int) -> None:
        """Move the cursor by columns; what is shown follows it."""
        if not self.groups:
            return
        step, count = self._per_column, len(self.bins.counts)
        at = self.cursor + by * step
        if abs(by) > 1:
            at = max(0, min(count - 1, at))
        if not 0 <= at < count:
            return
        shown = self.last - self.first
        if at < self.first:
            self.first = max(0, at)
        elif at >= self.last:
            self.first = min(count, at + step) - shown
        self.last = self.first + shown
        self.cursor = self.first + (at - self.first) // step * step
        self.moved()

    def action_group(self, by: int) -> None:
        """Show another group."""
        if 0 <= self.group + by < len(self.groups):
            self.group += by
            self._show_group()
            self.moved()

    def action_zoom(self, by: int) -> None:
        """Half or twice as many bins, around the cursor."""
        if not self.groups:
            return
        count, middle = len(self.bins.counts), sum(self._chosen()) // 2
        shown = max(min(count, 4), (self.last - self.first) // 2) if by > 0 else min(count, (self.last - self.first) * 2)
        self.first = max(0, min(count - shown, middle - shown // 2))
        self.last = self.first + shown
        self.cursor = self.first + (middle - self.first) // self._per_column * self._per_column
        self.moved()

    def action_reset(self) -> None:
        """Show all bins."""
        if self.groups:
            self.first, self.last = 0, len(self.bins.counts)
            self.cursor -= self.cursor % self._per_column
            self.moved()

    def on_click(self, event: Click) -> None:
        """The column that was clicked."""
        if self.groups:
            counts, repeat, margin = self._columns()
            column = (event.x - margin - 2) // repeat
            if 0 <= column < len(counts):
                self.cursor = self.first + column * self._per_column
                self.moved()

    @property
    def _per_column(self) -> int:
        """Bins that one column adds up."""
        return max(1, -(-(self.last - self.first) // max(1, self.size.width - 12)))

    def _chosen(self) -> tuple[int, int]:
        """The bins of the column under the cursor, half open."""
        first = self.first + (self.cursor - self.first) // self._per_column * self._per_column
        return first, min(self.last, first + self._per_column)

    def _columns(self) -> tuple[numpy.ndarray, int, int]:
        """Count of each column, how many characters wide one is, and the room of the numbers beside them."""
        import numpy

        shown = self.bins.counts[self.first : self.last]
        counts = numpy.add.reduceat(shown, numpy.arange(0, len(shown), self._per_column))
        margin = len(number_text(float(max(counts.max(), 0))))
        return counts, max(1, min(WIDEST_COLUMN, (self.size.width - margin - 2) // len(counts))), margin

    def _heights(self, counts: numpy.ndarray) -> tuple[list[float], float]:
        import numpy

        heights = numpy.log1p(numpy.maximum(counts, 0)) if self.in_logarithm else counts
        return heights.tolist(), float(max(heights.max(), 0))

    def _show_group(self) -> None:
        self.first, self.last = 0, len(self.bins.counts)
        self.cursor = int(self.bins.counts.argmax())


class HistogramBoard(ViewBoard):
    """A histogram view."""

    about = "Arrows move the cursor; l draws counts on a logarithmic scale."

    def body(self, drawing: Drawing) -> Widget:
        """Columns with a readout."""
        return WithReadout(HistogramColumns(cast("HistogramDrawing", drawing)))


def _share(part: float) -> str:
    """A share in percent.

    >>> _share(0.123456), _share(1.0), _share(0.99999999)
    ('12.35%', '100%', 'over 99.99%')
    """
    if 0.9999 < part < 1:
        return "over 99.99%"
    if 0 < part < 0.0001:
        return "under 0.01%"
    return f"{number_text(part * 100)}%"
