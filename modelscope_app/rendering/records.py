"""Views and runs as JSON: the declarations, and the rows they draw, with every unknown number as null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from modelscope_app.api import BadInput, FactsView, FinishedRun, View
from modelscope_app.rendering.columns import columns_of
from modelscope_app.rendering.drawings import TableDrawing, drawing

if TYPE_CHECKING:
    import polars


def view_json(run: FinishedRun, view: View) -> dict[str, Any]:
    """A view as JSON-ready values: its declaration, the rows it draws (only its own columns), and what is to be said of them.

    Text is as it stands in the table, unlike in every drawing: JSON escapes what a terminal would obey. A facts view has
    `facts` instead of `rows`. Raises BadInput where the view does not fit its table.
    """
    drawn = drawing(run, view)
    declared = {**json_value(view.to_json()), "notes": list(drawn.notes)}
    if isinstance(view, FactsView):
        return {**declared, "facts": json_value({key: run.facts[key] for key in view.keys or run.facts if key in run.facts})}
    if isinstance(drawn, TableDrawing):
        return {**declared, **_frame_json(drawn.frame)}
    return {**declared, **_frame_json(run.table(getattr(view, "table", ""))[list(columns_of(view))])}


def run_json(run: FinishedRun) -> dict[str, Any]:
    """A whole run as JSON-ready values: facts, views (their declarations) and every table with all its rows.

    A view that does not fit its table has `error` in place of `notes`.
    """
    views = []
    for view in run.views:
        declared = json_value(view.to_json())
        try:
            views.append({**declared, "notes": list(drawing(run, view).notes)})
        except BadInput as error:
            views.append({**declared, "error": str(error)})
    return {
        "run": run.id,
        "analysis": run.analysis,
        "status": run.status,
        "error": run.error,
        "folder": str(run.folder),
        "facts": json_value(run.facts),
        "views": views,
        "tables": {name: _frame_json(run.table(name)) for name in run.tables},
        "artifacts": {name: str(path) for name, path in run.artifacts.items()},
    }


def _frame_json(frame: polars.DataFrame) -> dict[str, Any]:
    """Types by column, and the rows as objects."""
    columns = {name: str(dtype) for name, dtype in frame.schema.items()}
    return {"columns": columns, "rows": [json_value(row) for row in frame.iter_rows(named=True)]}


def json_value(value: Any) -> Any:
    """A cell or fact as JSON-ready values: unknown numbers null, bytes as hexadecimal digits, dates as ISO 8601, durations in seconds.

    >>> json_value([1.5, float("inf"), b"\\x00\\xff", {"when": date(2026, 3, 1)}])
    [1.5, None, '00ff', {'when': '2026-03-01'}]
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    return json_value(value.to_list() if hasattr(value, "to_list") else str(value))  # a polars Series is a cell of a list column
