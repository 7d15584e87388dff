"""Columns of tables: numbers as polars takes them, with null for unknown, so that nothing unknown is ever ranked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import polars as pl

from modelscope_app.api import TensorHeader
from modelscope_weights.tensor_names import module_labels, placed


def known(values: Iterable[float]) -> pl.Series:
    """A float column; NaN and infinity become null."""
    return pl.Series([value if math.isfinite(value) else None for value in values], dtype=pl.Float64)


def known_counts(values: Iterable[float]) -> pl.Series:
    """An integer column from whole numbers in floating point; NaN becomes null."""
    return pl.Series([int(value) if math.isfinite(value) else None for value in values], dtype=pl.Int64)


def identity_columns(headers: Sequence[TensorHeader]) -> dict[str, pl.Series]:
    """What a table of tensors begins with: tensor, stack, layer, module, dtype, shape, parameters."""
    names = [header.name for header in headers]
    labels = module_labels(names)
    places = [placed(name) for name in names]
    return {
        "tensor": pl.Series(names, dtype=pl.String),
        "stack": pl.Series([place.stack for place in places], dtype=pl.String),
        "layer": pl.Series([place.layer for place in places], dtype=pl.Int64),
        "module": pl.Series([labels[name] for name in names], dtype=pl.String),
        "dtype": pl.Series([header.dtype for header in headers], dtype=pl.String),
        "shape": pl.Series([str(list(header.shape)) for header in headers], dtype=pl.String),
        "parameters": pl.Series([header.parameters for header in headers], dtype=pl.Int64),
    }


def largest(frame: pl.DataFrame, column: str, label: str = "tensor") -> tuple[str | None, float | None]:
    """Label and value of the row with the largest known value in `column`, the first of equals; (None, None) without any."""
    ranked = frame.filter(pl.col(column).is_not_null())
    if ranked.is_empty():
        return None, None
    position = ranked[column].arg_max() or 0
    return ranked[label][position], ranked[column][position]


def root(expression: pl.Expr) -> pl.Expr:
    """Square root, unknown where it is not a finite number."""
    return finite(expression.sqrt())


def finite(expression: pl.Expr) -> pl.Expr:
    """The number where it is finite, else null."""
    return pl.when(expression.is_finite()).then(expression)
