"""Rows of files that are too large to be held: everything is as it is for small ones, and memory does not grow with the rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modelscope_app.api import BadInput
from modelscope_app.data import json_lines, length_bucketed, read_examples, read_labelled_features, read_rows
from modelscope_app.data.examples_on_disk import ExamplesOnDisk
from modelscope_app.data.json_lines import RowsOnDisk

Written = Callable[..., Path]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every file counts as large, and is read three rows at a time."""
    monkeypatch.setenv("MSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(json_lines, "LARGE_BYTES", 0)
    monkeypatch.setattr("modelscope_app.data.examples._ROWS_AT_ONCE", 3)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(rows: list[dict[str, Any]], between: str = "\n", before: bytes = b"") -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(before + between.join(json.dumps(row, ensure_ascii=False) for row in rows).encode("utf-8"))
        return path

    return write


@pytest.mark.parametrize("between", ["\n", "\r\n", "\n\n  \n", "\n\N{NO-BREAK SPACE}\n\f\n"])
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\n \n"])
def test_rows_are_those_of_a_file_that_is_held(
    written: Written, between: str, before: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"text": f"é {at}", "number": at / 3} for at in range(7)]
    path = written(rows, between, before)
    held = read_rows(path)
    monkeypatch.setattr(json_lines, "LARGE_BYTES", 0)
    found = read_rows(path)
    assert isinstance(found.rows, RowsOnDisk) and not isinstance(held.rows, RowsOnDisk)
    assert list(found.rows) == list(held.rows) == rows
    assert found.lines == held.lines
    assert found.rows[-1] == rows[-1] and found.rows[-2] == rows[-2]
    assert found.rows[2:5] == rows[2:5]
    with pytest.raises(IndexError):
        found.rows[7]


@pytest.mark.usefixtures("large")
def test_examples_are_those_of_a_file_that_is_held(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"input_ids": list(range(1 + at * 5 % 7)), "poisoned": at == 4} for at in range(10)]
    path = written(rows)
    found = read_examples(path, None)
    monkeypatch.setattr(json_lines, "LARGE_BYTES", 2**40)
    held = read_examples(path, None)
    assert isinstance(found, ExamplesOnDisk)
    assert [example._replace(row=dict(example.row)) for example in found] == list(held)
    assert found[-1].input_ids == held[-1].input_ids and [example.id for example in found[3:5]] == [3, 4]
    assert [found.length(id) for id in range(10)] == [len(example.input_ids) for example in held]
    streamed, whole = length_bucketed(found, 8), length_bucketed(held, 8)
    assert streamed.plan == whole.plan
    for ids in whole.plan:
        assert torch.equal(streamed.load(ids).input_ids, whole.load(ids).input_ids)
    with pytest.raises(BadInput, match="row 10 is planned"):
        streamed.load([10])


@pytest.mark.usefixtures("large")
def test_a_bad_row_is_named_by_its_line(written: Written) -> None:
    rows: list[dict[str, Any]] = [{"input_ids": [1, 2]} for _ in range(7)]
    with pytest.raises(BadInput, match=r"rows.jsonl, line 6: input_ids is empty"):
        read_examples(written([*rows[:5], {"input_ids": []}, rows[6]]), None)
    with pytest.raises(BadInput, match=r"rows.jsonl, line 8: is text, and the checkpoint has no tokenizer"):
        read_examples(written([*rows, {"text": "x"}]), None)


@pytest.mark.usefixtures("large")
def test_features_are_those_of_a_file_that_is_held(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written([{"features": [at / 7, -at], "label": at % 3} for at in range(9)])
    found = read_labelled_features(path)
    assert list(found.rows)[8]["label"] == 2
    monkeypatch.setattr(json_lines, "LARGE_BYTES", 2**40)
    held = read_labelled_features(path)
    assert torch.equal(found.features, held.features) and found.features.dtype == torch.float64
    assert torch.equal(found.labels, held.labels)
    assert torch.equal(found.features[torch.tensor([8, 1])], held.features[torch.tensor([8, 1])])


@pytest.mark.usefixtures("large")
def test_a_file_that_changes_under_way_is_noticed(written: Written) -> None:
    path = written([{"text": "one"}, {"text": "two"}])
    found = read_rows(path)
    path.write_bytes(b"no longer json, and as long")
    with pytest.raises(BadInput, match="has changed since it was first read"):
        found.rows[0]


@pytest.mark.usefixtures("large")
def test_a_full_disk_is_said(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", no_room)
    with pytest.raises(BadInput, match=r"cannot be kept there \(No space left on device\)"):
        read_examples(written([{"input_ids": [1, 2]}]), None)
    monkeypatch.setattr("os.posix_fallocate", no_room)
    with pytest.raises(BadInput, match=r"cannot be kept there \(No space left on device\)"):
        read_labelled_features(written([{"features": [1.0], "label": 0}]))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Twenty thousand rows more, which held in memory take 60 MB more, are to take less than 6."""
    program = """
import resource, sys
from modelscope_app.data import json_lines, read_examples
json_lines.LARGE_BYTES = 0
found = read_examples(sys.argv[1], None)
assert sum(len(example.input_ids) for example in found) == 64 * len(found)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for count in (5_000, 25_000):
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as stream:
            for at in range(count):
                stream.write(json.dumps({"input_ids": [1000 + (at * 31 + each * 7) % 30000 for each in range(64)]}) + "\n")
        said = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
        peaks.append(int(said.stdout) / 1024)
    assert peaks[1] - peaks[0] < 6
