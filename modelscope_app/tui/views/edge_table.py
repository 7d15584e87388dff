"""The edges of a graph as a table to sort, filter and search. Imported only where one is shown."""

from __future__ import annotations

import polars

from modelscope_app.tui.selections import Selection
from modelscope_app.tui.views.graph import edge_selection
from modelscope_app.tui.views.table_pane import TablePane


class EdgeTable(TablePane):
    """Edges, the heaviest first."""

    def __init__(self, edges: polars.DataFrame, run: str) -> None:
        super().__init__("edges", edges)
        self._run = run

    def select(self, row: int, column: str | None) -> Selection | None:
        """The edge of a row."""
        return edge_selection(str(self.rows.value(row, 0)), str(self.rows.value(row, 1)), self._run)
