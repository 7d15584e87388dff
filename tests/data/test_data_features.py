"""Labelled features for `mlp` classifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest
import torch

from modelscope_app.api import BadInput
from modelscope_app.data import read_labelled_features

Write = Callable[[str, Any], Path]
SIZES = [3, 5, 2]


def test_features_and_labels_are_read_with_their_rows(write: Write) -> None:
    rows = [{"features": [0, 0.5, -1e-3], "label": 1, "who": "a"}, {"features": [1, 2, 3], "label": 0}]
    data = read_labelled_features(write("rows.jsonl", rows), SIZES)
    assert torch.equal(data.features, torch.tensor([[0, 0.5, -1e-3], [1, 2, 3]], dtype=torch.float64)), "every digit of the file"
    assert torch.equal(data.labels, torch.tensor([1, 0]))
    assert data.labels.dtype == torch.int64
    assert data.rows == rows


def test_parquet_gives_the_same_as_jsonl(write: Write, tmp_path: Path) -> None:
    rows = [{"features": [0.1, 0.2, 0.3], "label": 1}, {"features": [1.5, 2.0, 3.0], "label": 0}]
    polars.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    a, b = read_labelled_features(tmp_path / "rows.parquet", SIZES), read_labelled_features(write("rows.jsonl", rows), SIZES)
    assert torch.equal(a.features, b.features)
    assert torch.equal(a.labels, b.labels)


def test_without_layer_sizes_the_first_row_sets_the_width_and_any_label_counts(write: Write) -> None:
    file = write("rows.jsonl", [{"features": [1, 2], "label": 700}, {"features": [1, 2], "label": 0}])
    assert read_labelled_features(file).labels.tolist() == [700, 0]
    with pytest.raises(BadInput, match="line 2: has 1 features, and the first row has 2"):
        read_labelled_features(write("rows.jsonl", [{"features": [1, 2], "label": 0}, {"features": [1], "label": 0}]))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"label": 1}, "has no features"),
        ({"features": None, "label": 1}, "has no features"),
        ({"features": "1 2 3", "label": 1}, "features is '1 2 3', a string, not a list"),
        ({"features": [1, 2], "label": 1}, "has 2 features, and the model takes 3"),
        ({"features": [1, 2, 3, 4], "label": 1}, "has 4 features, and the model takes 3"),
        ({"features": [1, "2", 3], "label": 1}, "feature 1 is '2', a string, not a number"),
        ({"features": [1, None, 3], "label": 1}, "feature 1 is None, not a number"),
        ({"features": [1, 2, True], "label": 1}, "feature 2 is True, a boolean, not a number"),
        ({"features": [1, 2, 1e39], "label": 1}, "feature 2 is 1e+39, a number, which is not a finite float32"),
        ({"features": [1, 10**400, 3], "label": 1}, "which is not a finite float32"),
        ({"features": [1, 2, 3]}, "has no label"),
        ({"features": [1, 2, 3], "label": "1"}, "label is '1', a string, not a whole number"),
        ({"features": [1, 2, 3], "label": 1.0}, "label is 1.0, a number, not a whole number"),
        ({"features": [1, 2, 3], "label": True}, "label is True, a boolean"),
        ({"features": [1, 2, 3], "label": 2}, "label is 2, and classes are 0 to 1"),
        ({"features": [1, 2, 3], "label": -1}, "label is -1, and classes are 0 to 1"),
    ],
)
def test_a_bad_row_is_named_with_file_line_and_reason(write: Write, row: dict[str, Any], reason: str) -> None:
    file = write("rows.jsonl", [{"features": [1, 2, 3], "label": 0}, row, {"features": [1, 2, 3], "label": 1}])
    with pytest.raises(BadInput) as caught:
        read_labelled_features(file, SIZES)
    assert str(caught.value).startswith(f"{file}, line 2: ")
    assert reason in str(caught.value)


def test_infinity_written_as_a_huge_number_is_refused(write: Write) -> None:
    with pytest.raises(BadInput, match="feature 0 is inf, a number, which is not a finite float32"):
        read_labelled_features(write("rows.jsonl", '{"features": [1e999, 2, 3], "label": 0}'), SIZES)


def test_nan_in_a_parquet_file_is_refused_by_row(tmp_path: Path) -> None:
    polars.DataFrame({"features": [[1.0, 2.0, 3.0], [1.0, float("nan"), 3.0]], "label": [0, 1]}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(BadInput, match="row 1: feature 1 is nan"):
        read_labelled_features(tmp_path / "rows.parquet", SIZES)
