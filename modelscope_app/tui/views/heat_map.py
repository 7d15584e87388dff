"""A matrix on the screen: as shades, as signs and shades, or as numbers; pooled where the whole does not fit.

Only what is visible is drawn, so that a matrix of a million cells scrolls as quickly as a small one.
"""

from __future__ import annotations

from typing import ClassVar, cast

from rich.cells import cell_len
from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Click, Resize
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget

from modelscope_app.api import neutralised
from modelscope_app.rendering.character_charts import short_number
from modelscope_app.rendering.drawings import Drawing, HeatMapDrawing
from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.rendering.naming import told_apart
from modelscope_app.rendering.wording import number_text
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.views.board import ViewBoard
from modelscope_app.tui.views.heat_map_cells import Cells, NumberCells, ShadeCells, SignCells, blocks, sampled
from modelscope_app.tui.views.lines_of_cells import Picture, WithReadout, copied_number, exact_text, fitted, has_few_colours

HEADER = 2
"""Lines above the cells: column names, and a mark over the column of the cursor."""
MOST_TOLD_APART = 2000


class HeatMapCells(Picture):
    """The cells with row and column names that stay while the cells scroll."""

    DEFAULT_CSS = """
    HeatMapCells { overflow: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus,equals_sign", "zoom(1)", "Larger cells", key_display="+"),
        Binding("minus", "zoom(-1)", "Smaller cells", key_display="-"),
        Binding("enter", "look_closer", "Look closer", show=False),
        Binding("up", "move(-1, 0)", "Up", show=False),
        Binding("down", "move(1, 0)", "Down", show=False),
        Binding("left", "move(0, -1)", "Left", show=False),
        Binding("right", "move(0, 1)", "Right", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(0, -1000000000)", "First column", show=False),
        Binding("end", "move(0, 1000000000)", "Last column", show=False),
        Binding("ctrl+home", "move(-1000000000, 0)", "First row", show=False),
        Binding("ctrl+end", "move(1000000000, 0)", "Last row", show=False),
    ]

    def __init__(self, drawing: HeatMapDrawing) -> None:
        super().__init__()
        self.drawing = drawing
        self.row = self.column = 0
        """The cell of the cursor, in the whole matrix."""
        self.cells: Cells | None = None
        self.pooled = (1, 1)
        """How many rows and columns a mark stands for."""
        self._asked: int | None = None
        """Which zoom the user asked for; None shows as much as fits."""
        self._zoom = 0
        """0 is the whole, in blocks; then the kinds of cells, small to large."""
        self.name_width = 0
        self._kinds: list[type[Cells]] = [ShadeCells, SignCells, NumberCells] if drawing.center is not None else [SignCells, NumberCells]
        self._number_width = 0
        self._names: list[str] | None = None
        self.pattern = ""

    def on_resize(self, event: Resize) -> None:
        """What fits is asked anew."""
        self._arrange()

    def notify_style_update(self) -> None:
        """Another theme may have other colours."""
        super().notify_style_update()
        if self.cells is not None:
            self._arrange()

    def render_line(self, y: int) -> Strip:
        """Header, or one row of cells."""
        if self.cells is None:
            return Strip.blank(self.size.width, self.rich_style)
        first, last = self._visible_columns()
        tall, wide = self.pooled
        if y == 0:
            return self.strip([Segment(self._column_names(first, last), self.muted_style())])
        if y == 1:
            before = (self.column // wide - first) * self.cells.width + self.cells.width - 1
            where = fitted(self.drawing.row_label, self.name_width) + "  " + " " * before + "▼"
            return self.strip([Segment(where, self.muted_style())])
        row = y - HEADER + round(self.scroll_offset.y)
        if row * tall >= len(self.drawing.rows):
            return Strip.blank(self.size.width, self.rich_style)
        here = self.row // tall == row
        name = (self._names or self.drawing.rows)[row * tall]
        style = self.cursor_style() if here else self.muted_style()
        cursor = self.column // wide if here else -1
        base = self.rich_style
        named = [Segment(("›" if here else " ") + fitted(name, self.name_width - 1), base + style), Segment("  ", base)]
        cells = self.cells.strip(row, first, last, cursor, self.cursor_style(), base)
        return Strip([*named, *cells], self.name_width + 2 + cells.cell_length).adjust_cell_length(self.width, base)

    def readout(self) -> str:
        """Row, column and exact value; of a pooled mark also what it stands for."""
        drawing = self.drawing
        if not drawing.values.size:
            return ""
        row, column = self._cell()
        names = ((drawing.row_label, drawing.rows[row]), (drawing.column_label, drawing.columns[column]))
        where = ", ".join(f"{label} {BLOCKS.cut(name, max(12, self.width - len(label) - 3))}" for label, name in names)
        said = f"{where}\n{drawing.value_label} {exact_text(float(drawing.values[row, column]))}"
        if self.pooled == (1, 1):
            return said
        (top, bottom), (left, right) = self._block()
        chosen = "largest" if drawing.center is None else f"farthest from {number_text(drawing.center)}"
        rows, columns = (
            neutralised(names[start], 30) + (f" to {neutralised(names[end - 1], 30)}" if end - start > 1 else "")
            for names, start, end in ((drawing.rows, top, bottom), (drawing.columns, left, right))
        )
        return f"{said}, the {chosen} of {drawing.row_label} {rows}, {drawing.column_label} {columns}"

    def legend(self) -> Content:
        """Marks at the ends of the scale and between, each beside its number."""
        if self.cells is None or not self.drawing.values.size:
            return Content("There are no cells.")
        legend = Content(f"{self.drawing.value_label}: ") + self.cells.legend()
        if self.pooled != (1, 1):
            tall, wide = self.pooled
            chosen = "largest" if self.drawing.center is None else f"farthest from {number_text(self.drawing.center)}"
            legend += Content(f"\nA mark stands for {tall} x {wide} cells, the {chosen} of them; enter: closer.")
        elif self.pattern:
            legend += Content(f"\nEach row stands for the * in {self.pattern}.")
        return legend

    def copied(self) -> Copied | None:
        """Row, column and value, separated by tabs."""
        if not self.drawing.values.size:
            return None
        row, column = self._cell()
        value = copied_number(float(self.drawing.values[row, column]))
        return Copied("\t".join((self.drawing.rows[row], self.drawing.columns[column], value)), "one cell: row, column, value")

    def explanation(self) -> Explanation:
        """For `?`."""
        drawing = self.drawing
        if drawing.center is None:
            signs = "Denser shades are higher values"
        else:
            around = number_text(drawing.center)
            signs = f"+ and blocks are above {around}, - and strokes below it; denser marks are farther from it"
        text = (
            f"{drawing.row_label} downwards, {drawing.column_label} across, each cell its {drawing.value_label}. {signs}. ? is unknown. "
            "Larger cells show signs, then numbers; where the whole does not fit, a mark stands for a block of cells and enter looks "
            "closer. The line below says the chosen cell exactly."
        )
        return Explanation("Heat map", text)

    def action_move(self, down: int, right: int) -> None:
        """Move the cursor by cells, or by marks where these stand for several."""
        tall, wide = self.pooled
        rows, columns = self.drawing.values.shape
        row, column = (
            min(max(at // step + by, 0), max(0, -(-size // step) - 1)) * step if by else at
            for at, by, step, size in ((self.row, down, tall, rows), (self.column, right, wide, columns))
        )
        if (row, column) != (self.row, self.column):
            self.row, self.column = row, column
            self._show_cursor()
            self.moved()

    def action_page(self, by: int) -> None:
        """Move the cursor by what fits on the screen."""
        self.action_move(by * max(1, self._height - HEADER - 1), 0)

    def action_zoom(self, by: int) -> None:
        """Larger or smaller cells; the smallest show the whole matrix."""
        at = self._zoom + by
        if self.cells is not None and 0 <= at <= len(self._kinds):
            row, column = self._cell()
            self._asked, self.row, self.column = at, row, column
            self._arrange()
            self._show_cursor(amid=True)

    def action_look_closer(self) -> None:
        """From a mark that stands for many cells to the one it shows."""
        if self.pooled != (1, 1):
            self.action_zoom(1)

    def on_click(self, event: Click) -> None:
        """The cell that was clicked."""
        if self.cells is None or event.y < HEADER or event.x < self.name_width + 2:
            return
        row = event.y - HEADER + round(self.scroll_offset.y)
        column = self._visible_columns()[0] + (event.x - self.name_width - 2) // self.cells.width
        self.action_move(row - self.row // self.pooled[0], column - self.column // self.pooled[1])

    @property
    def _height(self) -> int:
        return max(HEADER + 1, self.scrollable_content_region.height)

    def _cell(self) -> tuple[int, int]:
        """The cell whose value the cursor says: of a block the one its mark shows."""
        import numpy

        if self.pooled == (1, 1):
            return self.row, self.column
        (top, bottom), (left, right) = self._block()
        block = self.drawing.values[top:bottom, left:right]
        weight = block if self.drawing.center is None else numpy.abs(block - self.drawing.center)
        row, column = numpy.unravel_index(int(numpy.nan_to_num(weight, nan=-numpy.inf).argmax()), block.shape)
        return top + int(row), left + int(column)

    def _block(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns, half open, that the mark under the cursor stands for."""
        starts = (self.row // self.pooled[0] * self.pooled[0], self.column // self.pooled[1] * self.pooled[1])
        rows, columns = (
            (start, min(start + step, size)) for start, step, size in zip(starts, self.pooled, self.drawing.values.shape, strict=True)
        )
        return rows, columns

    def _arrange(self) -> None:
        """Decide how large cells are drawn, and of what."""
        drawing = self.drawing
        if not drawing.values.size or not self.size.width:
            self.virtual_size = Size(1, 1)
            self.moved()
            return
        if not self._number_width:
            self._number_width = 1 + max(map(len, map(short_number, sampled(drawing.values))))
        self._name_rows()
        width, height = self.size.width - self.name_width - 2, max(1, self.size.height - HEADER)
        rows, columns = drawing.values.shape
        whole = [at + 1 for at, kind in enumerate(self._kinds) if kind.cell_width(self._number_width) * columns <= width and rows <= height]
        self._zoom = self._asked if self._asked is not None else max(whole, default=0)
        if self._zoom == 0 and whole:
            self._zoom = 1  # nothing to pool
        few = has_few_colours(self.app)
        if self._zoom == 0:
            self.pooled = blocks(drawing.values.shape, height, max(1, width // SignCells.cell_width(0)))
            self.cells = SignCells(drawing, 0, few, self.pooled)
        else:
            self.pooled = (1, 1)
            self.cells = self._kinds[self._zoom - 1](drawing, self._number_width, few, self.pooled)
        tall, wide = self.pooled
        self.virtual_size = Size(self.name_width + 2 + -(-columns // wide) * self.cells.width, HEADER + -(-rows // tall))
        self._show_cursor()
        self.moved()

    def _name_rows(self) -> None:
        most = min(28, max(6, self.size.width // 3))
        names = self.drawing.rows
        if len(names) <= MOST_TOLD_APART:
            self._names, self.pattern = told_apart(names, most, BLOCKS.cut)
            names = tuple(self._names)
        self.name_width = 1 + min(most, max([*map(len, names), len(self.drawing.row_label), len(self.drawing.column_label)]))

    def _visible_columns(self) -> tuple[int, int]:
        """The first column on the screen and the one after the last, counted in marks."""
        assert self.cells is not None
        first = -(-round(self.scroll_offset.x) // self.cells.width)
        count = max(1, (self.width - self.name_width - 2) // self.cells.width)
        return first, min(first + count, -(-self.drawing.values.shape[1] // self.pooled[1]))

    def _column_names(self, first: int, last: int) -> str:
        """Names where they have room, each beginning where its column does; the others are said by the cursor."""
        assert self.cells is not None
        wide, cell = self.pooled[1], self.cells.width
        names = [self.drawing.columns[at * wide] for at in range(first, last)]
        line = fitted(self.drawing.column_label.rjust(self.name_width), self.name_width) + "  "
        longest = max(map(len, names), default=0)
        every = max(1, -(-(min(longest, 12) + 1) // cell))
        for at in range(0, len(names), every):
            room = every * cell - (1 if every > 1 or cell > 2 else 0)
            if at and at + every > len(names) and cell_len(names[at]) > (len(names) - at) * cell:
                break  # half a number is another number
            name = BLOCKS.cut(names[at], max(1, room))
            line += fitted(name.rjust(cell - 1) if every == 1 and cell > 2 else name, every * cell)
        return line

    def _show_cursor(self, amid: bool = False) -> None:
        """Scroll so that the cursor is seen beside the names and below the header; `amid` in the middle of the screen."""
        if self.cells is None:
            return
        tall, wide = self.pooled
        top, height, row = round(self.scroll_offset.y), self._height - HEADER, self.row // tall
        first, last = self._visible_columns()
        column, count = self.column // wide, max(1, last - first)
        y = top if top <= row < top + height else row if row < top else row - height + 1
        if amid:
            self.scroll_to(max(0, column - count // 2) * self.cells.width, max(0, row - height // 2), animate=False, force=True)
            return
        x = first if first <= column < last else column if column < first else column - count + 1
        self.scroll_to(x * self.cells.width, y, animate=False, force=True)


class HeatMapBoard(ViewBoard):
    """A heat map view."""

    about = "+ and - change how much a cell says; arrows move the cursor."

    def body(self, drawing: Drawing) -> Widget:
        """Cells with a legend and a readout."""
        return WithReadout(HeatMapCells(cast("HeatMapDrawing", drawing)))
