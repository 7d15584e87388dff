"""Runs exported as files: what is written, where, and that it says what the tables say."""

from __future__ import annotations

import json
import re
from datetime import date, datetime
from pathlib import Path

import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from rendering.written_runs import FACTS, HOSTILE, INF, NAN, WrittenRun, everything, hostile

from modelscope_app.api import BadInput, FactsView, LinesView, TableView, view_from_json
from modelscope_app.rendering.export import EXPORT_FORMATS, export_run, formula_guarded
from modelscope_app.rendering.records import view_json


def mixed(folder: Path) -> WrittenRun:
    frame = polars.DataFrame(
        {
            "word": ["plain", "", None, 'a "quoted", line\nand another', "=SUM(A1)", "'=kept"],
            "number": [1.5, NAN, INF, -INF, None, 1e-300],
            "whole": [1, 2**53 + 1, -3, None, 0, 7],
            "flag": [True, False, None, True, True, False],
            "day": [date(2026, 3, 1)] * 5 + [None],
            "list": [[1.0, NAN], [], None, [2.5], [1.0], [3.0]],
            "struct": [{"a": 1, "b": "x"}] * 6,
            "raw": [b"\x00\xff"] * 6,
        }
    )
    return WrittenRun(folder, {"mixed": frame, "empty": polars.DataFrame(schema={"a": polars.Int64})})


def unguarded(text: str | None) -> str | None:
    """What the documentation says: take one apostrophe off in front of such a beginning."""
    return text[1:] if text is not None and re.match(r"'+[=+\-@\t\r].", text, re.DOTALL) else text


def test_csv_read_back_is_the_table(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run")
    paths = export_run(run, "csv", tmp_path / "out")
    assert sorted(path.name for path in paths) == ["empty.csv", "mixed.csv"]
    stored = run.table("mixed")
    flat = stored.drop("list", "struct", "raw")
    read = polars.read_csv(tmp_path / "out" / "mixed.csv", schema_overrides={**flat.schema, "list": polars.String})
    back = read.with_columns(polars.Series("word", [unguarded(text) for text in read["word"].to_list()], dtype=polars.String))
    assert_frame_equal(back.select(flat.columns), flat)
    assert read["list"].to_list() == ["[1.0, null]", "[]", None, "[2.5]", "[1.0]", "[3.0]"]
    assert [json.loads(text) for text in read["struct"].to_list()] == [{"a": 1, "b": "x"}] * 6
    assert read["raw"].to_list() == ['"00ff"'] * 6
    assert polars.read_csv(tmp_path / "out" / "empty.csv").columns == ["a"]


def test_every_table_of_a_realistic_run_round_trips(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    for format in ("csv", "parquet"):
        for path in export_run(run, format, tmp_path / format):
            stored = run.table(path.stem)
            if format == "parquet":
                assert_frame_equal(polars.read_parquet(path), stored)
                assert path.read_bytes() == run.tables[path.stem].read_bytes()
            else:
                flat = stored.select(name for name, dtype in stored.schema.items() if not dtype.is_nested())
                assert_frame_equal(polars.read_csv(path, schema_overrides=flat.schema).select(flat.columns), flat)


def test_no_csv_cell_begins_a_formula(tmp_path: Path) -> None:
    paths = export_run(hostile(tmp_path / "run"), "csv", tmp_path / "out")
    assert "\n'=HYPERLINK(0)," in next(path for path in paths if path.stem == "names").read_text(encoding="utf-8")
    for text in ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-x"):
        assert formula_guarded(text) == f"'{text}"
    for text in ("-1.5", "+3", "-1e-9", "=", "-", "a=1", "", " -x", "'quoted'"):
        assert formula_guarded(text) == text


@given(st.text(alphabet="'=+-@\t\r1.ex", max_size=6))
def test_guarding_a_text_can_always_be_undone(text: str) -> None:
    assert unguarded(formula_guarded(text)) == text


def test_json_holds_facts_views_and_every_row_with_unknown_as_null(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    (path,) = export_run(run, "json", tmp_path / "out.json")
    text = path.read_text(encoding="utf-8")
    value = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert text.isascii()
    assert value["facts"] == FACTS and value["run"] == "r7f3" and value["status"] == "done"
    assert [view_from_json(view) for view in value["views"]] == list(run.views)
    for name in run.tables:
        rows = value["tables"][name]["rows"]
        stored = run.table(name)
        assert len(rows) == stored.height
        assert list(value["tables"][name]["columns"]) == stored.columns
    assert value["tables"]["scores"]["rows"][0] == {"method": "gradient", "gain": 0.31, "gain_low": 0.25, "gain_high": 0.37}
    assert value["tables"]["scores"]["rows"][5]["gain"] is None
    assert value["tables"]["tensors"]["rows"][0]["top_tokens"] == ["Paris", " Seine"]


def test_json_of_a_broken_view_says_what_is_wrong(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", {}, [LinesView(name="l", title="L", table="gone", x="x", y="y")])
    (path,) = export_run(run, "json")
    assert "no table 'gone'" in json.loads(path.read_text())["views"][0]["error"]


def test_a_view_as_json_has_its_rows_in_order_and_its_own_columns_only(tmp_path: Path) -> None:
    run = WrittenRun(
        tmp_path / "run", {"t": polars.DataFrame({"a": [1.0, INF, 3.0], "b": [HOSTILE[0], "y", "z"]})}, [], {"k": NAN, "other": 1}
    )
    value = view_json(run, TableView(name="t", title="T", table="t", sort_by="a", descending=True))
    assert value["kind"] == "table" and value["rows"] == [{"a": 3.0, "b": "z"}, {"a": 1.0, "b": HOSTILE[0]}, {"a": None, "b": "y"}]
    lines = view_json(run, LinesView(name="l", title="L", table="t", x="a", y="a"))
    assert lines["columns"] == {"a": "Float64"} and lines["notes"] == ["1 of 3 values is unknown.", "1 row with an unknown a left out."]
    assert view_json(run, FactsView(name="f", title="F", keys=("k",)))["facts"] == {"k": None}


def test_every_view_of_every_kind_is_json(tmp_path: Path) -> None:
    for run in (everything(tmp_path / "a"), hostile(tmp_path / "b")):
        for view in run.views:
            json.dumps(view_json(run, view), allow_nan=False)


def test_dates_and_decimals_are_json_too(tmp_path: Path) -> None:
    frame = polars.DataFrame({"when": [datetime(2026, 3, 1, 12)], "price": polars.Series(["1.5"]).cast(polars.Decimal(10, 2))})
    run = WrittenRun(tmp_path / "run", {"t": frame})
    assert view_json(run, TableView(name="t", title="T", table="t"))["rows"] == [{"when": "2026-03-01T12:00:00", "price": 1.5}]


def test_without_a_place_reports_go_into_the_run_folder(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    assert export_run(run, "html") == [run.folder / "report.html"]
    assert export_run(run, "json") == [run.folder / "report.json"]
    assert {path.parent for path in export_run(run, "csv")} == {run.folder / "csv"}
    assert export_run(run, "parquet") == list(run.tables.values())


def test_an_existing_folder_gets_a_file_named_after_the_run(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", {})
    assert export_run(run, "html", tmp_path) == [tmp_path / "r7f3.html"]


def test_exporting_again_replaces_its_own_files_and_touches_no_other(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run")
    out = tmp_path / "out"
    first = {path: path.read_bytes() for path in export_run(run, "csv", out)}
    (out / "notes.txt").write_text("mine")
    next(iter(first)).write_text("stale")
    assert {path: path.read_bytes() for path in export_run(run, "csv", out)} == first
    assert sorted(path.name for path in out.iterdir()) == ["empty.csv", "mixed.csv", "notes.txt"]
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("format", "place"), [("json", "job.json"), ("html", "artifacts/thresholds.json"), ("parquet", "tables"), ("csv", "stages")]
)
def test_what_belongs_to_the_run_is_never_written_over(tmp_path: Path, format: str, place: str) -> None:
    run = everything(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="belongs to the run itself"):
        export_run(run, format, run.folder / place)  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_places_and_formats_that_cannot_be_are_sentences(tmp_path: Path) -> None:
    run = mixed(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file, and csv is exported into a folder"):
        export_run(run, "csv", tmp_path / "file")
    with pytest.raises(BadInput, match="cannot be written"):
        export_run(run, "json", tmp_path / "file" / "out.json")
    with pytest.raises(BadInput, match=f"no export format; choose one of {', '.join(EXPORT_FORMATS)}"):
        export_run(run, "xlsx")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no tables to export as csv"):
        export_run(WrittenRun(tmp_path / "none", {}), "csv")
