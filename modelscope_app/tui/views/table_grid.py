"""The grid of a table: `textual_fastdatatable`'s, with cells worded when they come into sight. Imported only where one is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import polars
from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.coordinate import Coordinate
from textual_fastdatatable import DataTable

from modelscope_app.api import neutralised
from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.tui.on_screen import Explanation
from modelscope_app.tui.plain import plain
from modelscope_app.tui.views.table_rows import LONGEST_LABEL, Sort, TableRows

_NARROWEST = 24
_WIDEST = 80
"""Cells of a column's content, at most: half the grid, between these."""
_LONGEST_TOOLTIP = 400
SORT_MARKS = {False: " ▲", True: " ▼"}


class TableGrid(DataTable, inherit_bindings=False):
    """Rows and columns with a cell cursor. Numbers stand to the right; long text loses its middle, because names differ at both ends."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Row in full", show=False),
        Binding("up", "cursor_up", "Up", show=False),
        Binding("down", "cursor_down", "Down", show=False),
        Binding("right", "cursor_right", "Right", show=False),
        Binding("left", "cursor_left", "Left", show=False),
        Binding("pageup", "page_up", "Page up", show=False),
        Binding("pagedown", "page_down", "Page down", show=False),
        Binding("ctrl+left,home", "cursor_row_start", "First column", show=False),
        Binding("ctrl+right,end", "cursor_row_end", "Last column", show=False),
        Binding("g,ctrl+home,ctrl+up", "first_row", "First row", show=False),
        Binding("G,ctrl+end,ctrl+down", "last_row", "Last row", show=False),
    ]

    DEFAULT_CSS = """
    TableGrid { height: 1fr; width: 1fr; max-height: 100%; background: $surface; color: $foreground; scrollbar-size: 1 1; }
    TableGrid > .datatable--header { background: $panel; color: $foreground; text-style: bold; }
    TableGrid > .datatable--header-cursor { background: $panel; text-style: bold underline; }
    TableGrid > .datatable--even-row { background: $surface; }
    TableGrid:dark > .datatable--even-row { background: $surface; }
    TableGrid > .datatable--cursor {
        background: $block-cursor-blurred-background; color: $block-cursor-blurred-foreground; text-style: bold underline;
    }
    TableGrid:focus > .datatable--cursor {
        background: $block-cursor-background; color: $block-cursor-foreground; text-style: $block-cursor-text-style;
    }
    """

    def __init__(
        self, rows: TableRows, sort: Sort | None = None, *, moved: Callable[[], None] | None = None, id: str | None = None
    ) -> None:
        """`moved` is called when the cursor has moved, at once, so that what it changes is painted together with the cursor."""
        self._moved = moved
        self.rows = rows
        self._sort = sort
        super().__init__(
            backend=rows,
            column_labels=list(self._labels()),  # never left to the widget, which would read names as markup
            max_column_content_width=_NARROWEST * 2,
            show_row_labels=False,
            cursor_type="cell",
            id=id,
            render_markup=False,
        )

    def _labels(self) -> Sequence[str | Text]:
        """Names of the columns, the one sorted by with a mark."""
        labels = []
        for at in range(self.rows.column_count):
            name = self.rows.name_at(at)
            mark = SORT_MARKS[self._sort.descending] if self._sort is not None and self._sort.column == name else ""
            justify: Any = "right" if self.rows.is_number(at) else "left"
            labels.append(Text(neutralised(name, LONGEST_LABEL) + mark, justify=justify, no_wrap=True, overflow="ellipsis"))
        return labels

    def show_order(
        self, order: polars.Series | None, sort: Sort | None, keep: int | None = None, otherwise: int = 0, column: int | None = None
    ) -> None:
        """Show the rows in another order; the cursor goes to the row `keep` of the frame if it is there, else to the place `otherwise`."""
        self.rows.order = order
        self._sort = sort
        self.lay_out_columns()
        place = self.rows.place_of(keep) if keep is not None else None
        self.move_cursor(row=otherwise if place is None else place, column=column)

    def lay_out_columns(self) -> None:
        """Measure and draw anew what is shown."""
        self._column_labels = list(self._labels())
        self._ordered_columns = None
        self._update_count += 1
        self._require_update_dimensions = True
        self._clear_caches()
        self.refresh(layout=True)
        self.check_idle()

    @property
    def frame_row(self) -> int | None:
        """The frame's row under the cursor; None where no row is shown."""
        return self.rows.row_of(self.cursor_row) if self.rows.row_count else None

    @property
    def column_name(self) -> str | None:
        """The column under the cursor, as stored."""
        return self.rows.name_at(self.cursor_column) if self.rows.column_count else None

    def action_first_row(self) -> None:
        """To the first row, in the same column."""
        self.move_cursor(row=0)

    def action_last_row(self) -> None:
        """To the last row, in the same column."""
        self.move_cursor(row=self.row_count - 1)

    def watch_cursor_coordinate(self, old_coordinate: Coordinate, new_coordinate: Coordinate) -> None:
        super().watch_cursor_coordinate(old_coordinate, new_coordinate)
        if self._moved is not None and self.is_mounted and old_coordinate != new_coordinate:
            self._moved()

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Table",
            "Arrows move, g and G go to the first and last row, r to a row by its number. s sorts by the column under the cursor: rising, "
            "falling, as stored; text by the numbers in it, unknown last either way. f filters, / searches, n and N go through the "
            "matches. h hides a column, H shows all again. Enter or a double click shows the row in full; y copies it with every digit.",
        )

    def on_click(self, event: events.Click) -> None:
        """A double click on a cell does what enter does."""
        if event.chain == 2 and event.style.meta.get("row", -1) >= 0:
            self.action_select_cursor()

    def _on_resize(self, event: events.Resize) -> None:
        super()._on_resize(event)
        widest = max(_NARROWEST, min(_WIDEST, event.size.width // 2))
        if widest != self.max_column_content_width:
            self.max_column_content_width = widest
            self.lay_out_columns()
        self.call_after_refresh(self._scroll_cursor_into_view)

    def _get_cell_renderable(self, row_index: int, column_index: int, max_width: int | None = None) -> Text:
        if row_index == -1:
            label = self.ordered_columns[column_index].label
            if max_width is not None and cell_len(label.plain) > max_width:
                return Text(BLOCKS.cut(label.plain, max_width), justify=label.justify, no_wrap=True)
            return label
        text = self.rows.cell_text(row_index, column_index)
        if self.rows.is_number(column_index):
            return Text(text, justify="right", no_wrap=True, overflow="ellipsis")
        if max_width is not None and cell_len(text) > max_width:
            text = BLOCKS.cut(text, max_width)
        return Text(text, no_wrap=True, overflow="ellipsis")

    def _scroll_cursor_into_view(self, animate: bool = False) -> None:
        super()._scroll_cursor_into_view(animate=False)

    def _set_tooltip_from_cell_at(self, coordinate: Coordinate) -> None:
        row, column = coordinate
        if not self.is_valid_column_index(column) or not (row == -1 or self.is_valid_row_index(row)):
            self.tooltip = None
            return
        text = self.rows.name_at(column) if row == -1 else self.rows.cell_text(row, column, _LONGEST_TOOLTIP)
        self.tooltip = plain(text, _LONGEST_TOOLTIP) if cell_len(text) > self.ordered_columns[column].render_width - 2 else None
