"""Rows with `features` (a list of finite numbers) and `label` (a class, from 0), for `mlp` classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelscope_app.api import LabelledFeatures, Reader
from modelscope_app.data.files import Rows, read_rows, shown

_LARGEST_LABEL = 2**63 - 1


def read_labelled_features(path: str | Path, layer_sizes: Sequence[int] | None = None, readers: Sequence[Reader] = ()) -> LabelledFeatures:
    """All rows of a data file as features (row, feature) float64 and labels (row,) int64.

    With `layer_sizes` of an `mlp`, a row has as many features as it has inputs and a label that is one of its classes; without,
    as many features as the first row and any label from 0. Models compute in float32 mostly: what has no place there is refused, though
    the digits beyond are kept. Raises BadInput naming file, line and reason.
    """
    import numpy
    import torch

    rows = read_rows(path, readers)
    width = layer_sizes[0] if layer_sizes else len(_numbers(rows, 0))
    asked_by = "the model takes" if layer_sizes else "the first row has"
    classes = layer_sizes[-1] if layer_sizes else _LARGEST_LABEL + 1
    features = numpy.empty((len(rows.rows), width), dtype=numpy.float64)
    labels = numpy.empty(len(rows.rows), dtype=numpy.int64)
    with numpy.errstate(over="ignore"):
        for id in range(len(rows.rows)):
            numbers = _numbers(rows, id)
            if len(numbers) != width:
                raise rows.bad_row(id, f"has {len(numbers)} features, and {asked_by} {width}")
            try:
                features[id] = numbers
            except OverflowError:
                features[id] = numpy.inf
            labels[id] = _label(rows, id, classes)
        finite = numpy.isfinite(features.astype(numpy.float32))
    infinite_rows = numpy.flatnonzero(~finite.all(axis=1))
    if len(infinite_rows):
        id = int(infinite_rows[0])
        position = int((~finite[id]).argmax())
        raise rows.bad_row(id, f"feature {position} is {shown(_numbers(rows, id)[position])}, which is not a finite float32")
    return LabelledFeatures(torch.from_numpy(features), torch.from_numpy(labels), rows.rows)


def _numbers(rows: Rows, id: int) -> list[int | float]:
    value = rows.rows[id].get("features")
    if value is None:
        raise rows.bad_row(id, "has no features; a row is {features: [numbers], label: class}")
    if not isinstance(value, list):
        raise rows.bad_row(id, f"features is {shown(value)}, not a list of numbers (csv and txt hold no lists; use jsonl or parquet)")
    if not {int, float}.issuperset(map(type, value)):
        position = next(position for position, number in enumerate(value) if type(number) not in (int, float))
        raise rows.bad_row(id, f"feature {position} is {shown(value[position])}, not a number")
    return value


def _label(rows: Rows, id: int, classes: int) -> int:
    label = rows.rows[id].get("label")
    if label is None:
        raise rows.bad_row(id, "has no label; a row is {features: [numbers], label: class}")
    if type(label) is not int:
        raise rows.bad_row(id, f"label is {shown(label)}, not a whole number")
    if not 0 <= label < classes:
        raise rows.bad_row(id, f"label is {label}, and classes are 0 to {classes - 1}")
    return label
