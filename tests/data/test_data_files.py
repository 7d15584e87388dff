"""Reading rows, and saying which of them is wrong."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelscope_app.api import BadInput, Reader
from modelscope_app.data import read_rows

Write = Callable[[str, Any], Path]


def refusal(path: Path, *readers: Reader) -> str:
    with pytest.raises(BadInput) as caught:
        read_rows(path, readers)
    return str(caught.value)


def test_jsonl_keeps_every_value_as_it_is_written(write: Write) -> None:
    written = [
        {"label": 1},
        {"label": "1", "other": None},
        {"label": 1.0},
        {"label": True},
        {"big": 2**70},
        {"deep": [{"a": [1, "x"]}]},
        {},
    ]
    rows = read_rows(write("rows.jsonl", written)).rows
    assert [json.dumps(row) for row in rows] == [json.dumps(row) for row in written]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.dictionaries(
            st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
        ),
        min_size=1,
        max_size=6,
    ),
    ascii_only=st.booleans(),
)
def test_what_json_writes_is_what_is_read(rows: list[dict[str, Any]], ascii_only: bool, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows), encoding="utf-8", newline="")
    assert read_rows(file).rows == rows


def test_blank_lines_are_no_rows_and_still_count_as_lines(write: Write) -> None:
    rows = read_rows(write("rows.jsonl", '\n{"a": 1}\r\n  \n{"a": 2}'))
    assert rows.rows == [{"a": 1}, {"a": 2}]
    assert rows.place(1).endswith("rows.jsonl, line 4")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": ', "is not JSON"),
        ('{"a": "x\ty"}', "is not JSON (Invalid control character"),
        ("[1, 2]", "is [1, 2], a list, not an object"),
        ('"text"', "is 'text', a string, not an object"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "has the key 'a' twice"),
        ('{"a": "\\ud83d"}', "has \\ud83d, half of a surrogate pair"),
        ('{"a": ' * 100_000, "is nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "holds a number of thousands of digits"),
    ],
)
def test_a_bad_json_line_is_named_with_its_reason(write: Write, line: str, reason: str) -> None:
    message = refusal(write("rows.jsonl", '{"a": 1}\n\n' + line + '\n{"a": 2}\n'))
    assert message.startswith(str(write("rows.jsonl", "")) + ", line 3: ")
    assert reason in message


def test_a_surrogate_pair_is_a_character(write: Write) -> None:
    assert read_rows(write("rows.jsonl", '{"a": "\\ud83d\\ude00"}')).rows == [{"a": "😀"}]


def test_a_byte_order_mark_is_no_part_of_the_first_row(write: Write) -> None:
    mark = b"\xef\xbb\xbf"
    assert read_rows(write("rows.jsonl", mark + b'{"a": 1}\n')).rows == [{"a": 1}]
    assert read_rows(write("rows.csv", mark + b"text,n\nx,1\n")).rows == [{"text": "x", "n": 1}]
    assert read_rows(write("rows.txt", mark + b"x\n")).rows == [{"text": "x"}]


@pytest.mark.parametrize(("name", "first_line"), [("rows.jsonl", b"{}"), ("rows.csv", b"text"), ("rows.txt", b"text")])
def test_text_that_is_not_utf_8_is_named_with_line_and_byte(write: Write, name: str, first_line: bytes) -> None:
    assert "line 2: byte 3 is 0xe9, which is not UTF-8" in refusal(write(name, first_line + b"\nab\xe9\n"))
    assert "is UTF-16 text" in refusal(write(name, "text\nx\n".encode("utf-16")))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.txt"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_rows_is_refused(write: Write, name: str, content: str) -> None:
    assert "has no rows" in refusal(write(name, content))


def test_a_table_with_only_a_header_is_refused(write: Write, tmp_path: Path) -> None:
    assert "has no rows" in refusal(write("rows.csv", "text,label\n"))
    polars.DataFrame({"text": []}).write_parquet(tmp_path / "rows.parquet")
    assert "has no rows" in refusal(tmp_path / "rows.parquet")


def test_a_missing_file_a_folder_and_an_unknown_suffix_are_refused(write: Write, tmp_path: Path) -> None:
    assert refusal(tmp_path / "rows.jsonl") == f"{tmp_path / 'rows.jsonl'}: no such file"
    assert "is a folder" in refusal(tmp_path)
    message = refusal(write("rows.xml", "x"), Reader(".arrow", "some.module:read"))
    assert "what is read: .jsonl, .ndjson, .parquet, .csv, .txt, .arrow" in message


def test_every_line_of_a_txt_file_that_is_not_blank_is_a_text(write: Write) -> None:
    rows = read_rows(write("rows.txt", "one\r\n\n  two \n \t\nthree\u2028still three"))
    assert rows.rows == [{"text": "one"}, {"text": "  two "}, {"text": "three\u2028still three"}]
    assert [rows.place(id).rpartition(" ")[2] for id in range(3)] == ["1", "3", "5"]


def test_a_csv_column_of_numbers_is_numbers_and_codes_stay_text(write: Write) -> None:
    content = "text,label,weight,code,mixed,truth\n1,0,0.5,007,1,true\n2,1,1e-3,8,x,false\n,,,,,\n"
    rows = read_rows(write("rows.csv", content)).rows
    assert rows[0] == {"text": "1", "label": 0, "weight": 0.5, "code": "007", "mixed": "1", "truth": "true"}
    assert rows[1] == {"text": "2", "label": 1, "weight": 1e-3, "code": "8", "mixed": "x", "truth": "false"}
    assert rows[2] == dict.fromkeys(rows[0])


def test_csv_rows_keep_their_lines_across_quoted_line_breaks(write: Write) -> None:
    rows = read_rows(write("rows.csv", 'text,n\n"a\nb, ""c""",1\n\nd,2\n'))
    assert rows.rows == [{"text": 'a\nb, "c"', "n": 1}, {"text": "d", "n": 2}]
    assert [rows.place(id).rpartition(" ")[2] for id in range(2)] == ["2", "5"]


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        ("text,n\na,1\nb\n", "line 3", "has 1 cell, and the header has 2"),
        ("text,n\na,1,2\n", "line 2", "has 3 cells, and the header has 2"),
        ('text,n\n"a\nb",1\n"c,1\nd,2\n', "line 4", "is not a CSV record"),
        ('text,n\n"a"b,1\n', "line 2", "is not a CSV record"),
        ("text,text\na,b\n", "", "the header names the column 'text' twice"),
    ],
)
def test_a_bad_csv_record_is_named_by_the_line_it_begins_on(write: Write, content: str, place: str, reason: str) -> None:
    message = refusal(write("rows.csv", content))
    assert place in message
    assert reason in message


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)] * 2), min_size=1, max_size=5))
def test_what_a_csv_writer_writes_is_what_is_read(cells: list[tuple[str, str]], tmp_path: Path) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "prompt"), *cells])
    file = tmp_path / "rows.csv"
    file.write_text(stream.getvalue(), encoding="utf-8", newline="")
    assert [(row["text"] or "", row["prompt"] or "") for row in read_rows(file).rows] == cells


def test_a_long_csv_cell_is_read_and_the_process_keeps_its_csv_limit(write: Write) -> None:
    before = csv.field_size_limit()
    rows = read_rows(write("rows.csv", "text,n\n" + "x" * 300_000 + ",1\n")).rows
    assert len(rows[0]["text"]) == 300_000
    assert csv.field_size_limit() == before


def test_parquet_rows_are_read_and_placed_by_row(tmp_path: Path) -> None:
    rows = [{"input_ids": [1, 2], "label": "1"}, {"input_ids": [3], "label": None}]
    polars.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    read = read_rows(tmp_path / "rows.parquet")
    assert read.rows == rows
    assert read.place(1) == f"{tmp_path / 'rows.parquet'}, row 1"


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    polars.DataFrame({"a": list(range(100))}).write_parquet(file)
    whole = file.read_bytes()
    for content in (b"", b"hello", whole[:-10], whole[: len(whole) // 2], b"PAR1" + b"\0" * len(whole)):
        file.write_bytes(content)
        assert "is not a readable parquet file" in refusal(file)


def test_a_glob_in_a_name_is_a_name(tmp_path: Path) -> None:
    polars.DataFrame({"a": [1]}).write_parquet(tmp_path / "x.parquet")
    polars.DataFrame({"a": [2]}).write_parquet(tmp_path / "[x].parquet")
    assert read_rows(tmp_path / "[x].parquet").rows == [{"a": 2}]


@pytest.fixture
def plugin_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "pipes_reader.py").write_text(
        "import polars\n"
        "from modelscope_app.api import BadInput\n"
        "def read(path):\n"
        "    text = path.read_text()\n"
        "    if text == 'refuse': raise BadInput('not with me')\n"
        "    return polars.DataFrame({'text': text.split('|')}) if text else None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "pipes_reader"


def test_a_plugin_reads_its_own_format(write: Write, plugin_module: str) -> None:
    reader = Reader(".data.pipes", f"{plugin_module}:read")
    assert read_rows(write("rows.DATA.pipes", "a|b"), [Reader(".pipes", "no.such:reader"), reader]).rows == [{"text": "a"}, {"text": "b"}]


def test_a_failing_reader_is_named(write: Write, plugin_module: str) -> None:
    assert refusal(write("rows.pipes", "refuse"), Reader(".pipes", f"{plugin_module}:read")) == "not with me"
    assert "returned a NoneType, not a polars DataFrame" in refusal(write("rows.pipes", ""), Reader(".pipes", f"{plugin_module}:read"))
    assert "no.such:reader failed with ModuleNotFoundError" in refusal(write("rows.pipes", ""), Reader(".pipes", "no.such:reader"))


def test_control_characters_of_a_row_are_visible_in_the_message(write: Write) -> None:
    assert "\x1b" not in refusal(write("rows.jsonl", '"\\u001b[31mred"'))


def test_reading_lines_imports_neither_torch_nor_polars(write: Write) -> None:
    file = write("rows.jsonl", [{"a": 1}])
    script = (
        f"import sys; from modelscope_app.data import read_rows; read_rows({str(file)!r});"
        "print(sorted({'torch', 'polars', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
