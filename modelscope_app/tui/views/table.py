"""Tables of a run: up to millions of rows, sorted, filtered and searched without copying them. Imported when one is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from textual.widget import Widget
from textual.widgets import Static

from modelscope_app.api import TableView
from modelscope_app.rendering.columns import table_of
from modelscope_app.rendering.drawings import Drawing, TableDrawing
from modelscope_app.tui.on_screen import Exports
from modelscope_app.tui.views.board import ViewBoard
from modelscope_app.tui.views.row_selection import RowSelections, row_selections
from modelscope_app.tui.views.table_pane import TablePane
from modelscope_app.tui.views.table_rows import Sort, row_order
from modelscope_app.tui.views.view_files import view_exports

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, slots=True, eq=False)
class OrderedTable(TableDrawing):
    """The whole table as stored, the order its view asks for, and what its rows mean."""

    order: polars.Series | None
    selections: RowSelections


class TableBoard(ViewBoard):
    """A table."""

    about = "Enter shows a row in full, s sorts, f filters, / searches."

    def computed(self) -> Drawing:
        """The table and its order."""
        view = cast("TableView", self.view)
        frame = table_of(self.finished_run, view)
        order = row_order(frame, Sort(view.sort_by, view.descending), None) if view.sort_by is not None else None
        notes = () if frame.height else ("The table has no rows.",)
        return OrderedTable(frame, notes, order, row_selections(self.finished_run, frame.columns))

    def body(self, drawing: Drawing) -> Widget:
        """The table to work in; a sentence where it has no columns."""
        table, view = cast("OrderedTable", drawing), cast("TableView", self.view)
        if not table.frame.width:
            return Static("The table has no columns.", classes="view-sentence", markup=False)
        sort = Sort(view.sort_by, view.descending) if view.sort_by is not None else None
        return TablePane(view.table, table.frame, view.columns, sort=sort, order=table.order, selections=table.selections)

    def renewed(self, body: Widget, drawing: Drawing) -> bool:
        """New rows in the table there is, unless a column is gone that it shows, sorts or filters by."""
        table = cast("OrderedTable", drawing)
        return isinstance(body, TablePane) and body.renew(table.frame, table.selections)

    def exports(self) -> Exports | None:
        """For `e`: csv and parquet hold the rows and columns shown, in the order shown."""
        pane = next(iter(self.query(TablePane)), None)
        if self.error or pane is None:
            return super().exports()
        return view_exports(self.finished_run, self.view, self.formats, pane.frame_shown())
