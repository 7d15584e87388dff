"""Rows with `features` (a list of finite numbers) and `label` (a class, from 0), for `mlp` classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelscope_app.api import BadInput, LabelledFeatures, Reader
from modelscope_app.data.files import Rows, read_rows
from modelscope_app.data.json_lines import Row, RowsOnDisk
from modelscope_app.data.quoting import shown
from modelscope_app.locations import cache_dir

if TYPE_CHECKING:
    import numpy

_LARGEST_LABEL = 2**63 - 1


def read_labelled_features(path: str | Path, layer_sizes: Sequence[int] | None = None, readers: Sequence[Reader] = ()) -> LabelledFeatures:
    """All rows of a data file as features (row, feature) float64 and labels (row,) int64; those of a large jsonl file lie on disk.

    With `layer_sizes` of an `mlp`, a row has as many features as it has inputs and a label that is one of its classes; without,
    as many features as the first row and any label from 0. Models compute in float32 mostly: what has no place there is refused, though
    the digits beyond are kept. Raises BadInput naming file, line and reason.
    """
    import numpy
    import torch

    rows = read_rows(path, readers)
    width = layer_sizes[0] if layer_sizes else len(_numbers(rows, 0, rows.rows[0]))
    asked_by = "the model takes" if layer_sizes else "the first row has"
    classes = layer_sizes[-1] if layer_sizes else _LARGEST_LABEL + 1
    features = _empty((len(rows.rows), width), isinstance(rows.rows, RowsOnDisk))
    labels = numpy.empty(len(rows.rows), dtype=numpy.int64)
    with numpy.errstate(over="ignore"):
        for id, row in enumerate(rows.rows):
            numbers = _numbers(rows, id, row)
            if len(numbers) != width:
                raise rows.bad_row(id, f"has {len(numbers)} features, and {asked_by} {width}")
            try:
                features[id] = numbers
            except OverflowError:
                features[id] = numpy.inf
            labels[id] = _label(rows, id, row, classes)
            finite = numpy.isfinite(features[id].astype(numpy.float32))
            if not finite.all():
                position = int((~finite).argmax())
                raise rows.bad_row(id, f"feature {position} is {shown(numbers[position])}, which is not a finite float32")
    return LabelledFeatures(torch.from_numpy(features), torch.from_numpy(labels), rows.rows)


def _empty(shape: tuple[int, int], on_disk: bool) -> numpy.ndarray:
    """(row, feature) float64: in memory, or in a nameless file whose pages the system may write out. Raises BadInput without room."""
    import os
    import tempfile

    import numpy

    if not on_disk or not shape[1]:
        return numpy.empty(shape, dtype=numpy.float64)
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the array keeps its pages
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, shape[0] * shape[1] * 8)
        else:
            stream.truncate(shape[0] * shape[1] * 8)
    except OSError as error:
        raise BadInput(f"{folder}: the features of the data file cannot be kept there ({error.strerror})") from None
    with stream:
        return numpy.memmap(stream, dtype=numpy.float64, mode="r+", shape=shape)


def _numbers(rows: Rows, id: int, row: Row) -> list[int | float]:
    value = row.get("features")
    if value is None:
        raise rows.bad_row(id, "has no features; a row is {features: [numbers], label: class}")
    if not isinstance(value, list):
        raise rows.bad_row(id, f"features is {shown(value)}, not a list of numbers (csv and txt hold no lists; use jsonl or parquet)")
    if not {int, float}.issuperset(map(type, value)):
        position = next(position for position, number in enumerate(value) if type(number) not in (int, float))
        raise rows.bad_row(id, f"feature {position} is {shown(value[position])}, not a number")
    return value


def _label(rows: Rows, id: int, row: Row, classes: int) -> int:
    label = row.get("label")
    if label is None:
        raise rows.bad_row(id, "has no label; a row is {features: [numbers], label: class}")
    if type(label) is not int:
        raise rows.bad_row(id, f"label is {shown(label)}, not a whole number")
    if not 0 <= label < classes:
        raise rows.bad_row(id, f"label is {label}, and classes are 0 to {classes - 1}")
    return label
