"""A view's columns, read from its table and checked: the one place where a table meets a view.

Numbers come back as float64 with NaN for unknown and nothing infinite, so no front end can draw or rank one by accident.
A column that is missing or of another type is a `BadInput` that names view, table and column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from modelscope_app.api import BadInput, FinishedRun, View
from modelscope_app.rendering.wording import label_text

if TYPE_CHECKING:
    import numpy
    import polars

_NO_COLUMNS = frozenset({"name", "title", "caption", "table", "x_scale", "y_scale", "center", "descending", "keys"})


def columns_of(view: View) -> tuple[str, ...]:
    """Names of the columns a view mentions, each once, in the order its fields are declared."""
    names: dict[str, None] = {}
    for field in fields(view):
        if field.name not in _NO_COLUMNS:
            value = getattr(view, field.name)
            names.update(dict.fromkeys((value,) if isinstance(value, str) else value or ()))
    return tuple(names)


def table_of(run: FinishedRun, view: View) -> polars.DataFrame:
    """The table a view names, with every column the view mentions. Raises BadInput naming what is missing."""
    table = getattr(view, "table")  # noqa: B009 - facts views have none and are never asked
    frame = run.table(table)
    for column in columns_of(view):
        if column not in frame.columns:
            raise BadInput(
                f"view {view.name!r} asks for column {column!r}, which table {table!r} lacks; it has: {', '.join(frame.columns)}"
            )
    return frame


def numbers(frame: polars.DataFrame, view: View, column: str) -> numpy.ndarray:
    """(row,) float64, NaN where unknown. Raises BadInput for a column that holds no numbers."""
    import numpy
    import polars

    series = frame[column]
    if series.dtype == polars.Null:
        return numpy.full(len(series), numpy.nan)
    if not (series.dtype.is_numeric() or series.dtype == polars.Boolean):
        raise BadInput(
            f"view {view.name!r} needs numbers in column {column!r} of table {getattr(view, 'table', '')!r}, which holds {series.dtype}"
        )
    values = series.cast(polars.Float64).fill_null(numpy.nan).to_numpy().copy()
    values[~numpy.isfinite(values)] = numpy.nan
    return values


def labels(frame: polars.DataFrame, column: str) -> list[str]:
    """(row) names, harmless to print; `unknown` where the value is."""
    return [label_text(value) for value in frame[column].to_list()]


def distinct(frame: polars.DataFrame, column: str) -> list[Any]:
    """Distinct values of a column: numbers ascending, everything else as first met; unknown last."""
    values = frame[column].unique(maintain_order=True).to_list()
    known = [value for value in values if value is not None and value == value]  # NaN differs from itself
    if frame[column].dtype.is_numeric():
        known.sort()
    return known + ([None] if len(known) < len(values) else [])


def ranked(frame: polars.DataFrame, column: str, descending: bool) -> polars.DataFrame:
    """Rows ordered by a column, text in natural order, unknown last either way; rows that tie keep their order."""
    import polars

    from modelscope_app.rendering.natural_sort import natural_columns

    values = frame[column]
    keys: tuple[polars.Series, ...] = (values,)
    if values.dtype.is_float():
        keys = (values.set(~values.is_finite(), None),)
    elif values.dtype in (polars.String, polars.Categorical):
        keys = natural_columns(values.cast(polars.String))
    return frame.sort([polars.lit(key) for key in keys], descending=descending, nulls_last=True, maintain_order=True)


def unknown_note(columns: Iterable[numpy.ndarray]) -> tuple[str, ...]:
    """A sentence about the unknown values among those drawn, or none."""
    import numpy

    arrays = list(columns)
    unknown = sum(int(numpy.isnan(values).sum()) for values in arrays)
    total = sum(values.size for values in arrays)
    if not total:
        return ("The table has no rows.",)
    if not unknown:
        return ()
    if unknown == total:
        return (f"All {total:,} values are unknown." if total > 1 else "The only value is unknown.",)
    return (f"{unknown:,} of {total:,} values {'is' if unknown == 1 else 'are'} unknown.",)
