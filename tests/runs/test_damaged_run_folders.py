"""Whatever lies in a run folder is read as it should be, or refused with a sentence that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest
import torch
from runs.made_runs import made_run

from modelscope_app.api import BadInput, FactsView, HeatMapView
from modelscope_app.runs.atomic import replacing, write_json
from modelscope_app.runs.events import EventLog, read_events
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import all_runs, find_run, found_runs, register, runs_dir

NESTED = "[" * 100_000


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("created", 5),
        ("created", "yesterday"),
        ("id", 5),
        ("analysis", 5),
        ("analysis_version", "1"),
        ("params", [1]),
        ("plugin", {"version": 1}),
        ("checkpoints", 5),
        ("checkpoints", ["/models/tiny"]),
        ("checkpoints", [{"path": 5, "fingerprint": "a"}]),
        ("checkpoints", [{"path": "/models/tiny"}]),
        ("inputs", [{"param": "data", "kind": "file", "path": None, "fingerprint": "a"}]),
        ("seed", True),
        ("threads", float("nan")),
        ("format", "1"),
        ("colour", "red"),
    ],
)
def test_a_job_of_the_wrong_shape_is_refused_and_the_other_runs_are_found(tmp_path: Path, field: str, value: Any) -> None:
    whole = made_run(runs_dir() / "20260101-whole")
    broken = made_run(runs_dir() / "20260102-broken")
    changed(broken.folder / "job.json", **{field: value})
    with pytest.raises(BadInput, match=r"20260102-broken/job\.json: not a readable job\.json \(.*" + field):
        RunFolder.open(broken.folder)
    assert [run.id for run in all_runs()] == [whole.id]
    assert find_run("latest").id == whole.id
    assert find_run("2026").id == whole.id
    (unreadable,) = found_runs().unreadable
    assert unreadable.folder == broken.folder
    assert "job.json" in unreadable.error


@pytest.mark.parametrize(
    ("field", "value"),
    [("started", "x"), ("pid", "a"), ("pid", True), ("done", "1"), ("error", 5), ("exit_code", "3"), ("attempts", None), ("state", [])],
)
def test_a_status_of_the_wrong_shape_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    run = made_run(tmp_path / "run")
    changed(run.folder / "status.json", **{field: value})
    with pytest.raises(BadInput, match=rf"status\.json: not a readable status \(.*{field}"):
        run.read_status()


def test_text_that_a_terminal_would_obey_is_neutralised_as_it_is_read(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", id="a\x1b[2Jb")
    changed(run.folder / "status.json", state="failed", error="line\nand \x1b[31m")
    again = RunFolder.open(run.folder)
    assert again.id == "a\\x1b[2Jb"
    assert again.error == "line\\nand \\x1b[31m"


@pytest.mark.parametrize("content", ["[1]", "5", "null", '"x"', "{", NESTED, "\ud800"])
def test_facts_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    run = made_run(tmp_path / "run")
    (run.folder / "facts.json").write_text(content, errors="surrogatepass")
    with pytest.raises(BadInput, match=r"facts\.json"):
        _ = run.facts


def test_a_number_that_is_none_is_read_as_unknown(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    (run.folder / "facts.json").write_text('{"x": NaN, "y": [1e999, 2]}')
    assert run.facts == {"x": None, "y": [None, 2]}
    json.dumps(run.summary(), allow_nan=False)


@pytest.mark.parametrize(
    "content",
    [
        "5",
        "{}",
        "[5]",
        '[{"kind": "facts", "name": 5, "title": "t"}]',
        '[{"kind": "facts", "name": "n", "title": 5}]',
        '[{"kind": "facts", "name": "n", "title": "t", "keys": [5]}]',
        '[{"kind": "facts", "name": "n", "title": "t", "keys": "all"}]',
        '[{"kind": "lines", "name": "n", "title": "t", "table": "t", "x": "x", "y": "y", "x_scale": "cubic"}]',
        '[{"kind": "heat_map", "name": "n", "title": "t", "table": "t", "row": "r", "column": "c", "value": "v", "center": "middle"}]',
        '[{"kind": "facts"}]',
        NESTED,
    ],
)
def test_views_of_the_wrong_shape_are_refused(tmp_path: Path, content: str) -> None:
    run = made_run(tmp_path / "run")
    (run.folder / "views.json").write_text(content)
    with pytest.raises(BadInput, match=r"views\.json"):
        _ = run.views


def test_every_view_that_was_written_reads_back(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    views = [
        FactsView(name="facts", title="Facts", keys=("a",)),
        HeatMapView(name="map", title="Map", table="t", row="r", column="c", value="v", center=0.5),
        HeatMapView(name="map of integers", title="Map", table="t", row="r", column="c", value="v", center=1),
    ]
    for view in views:
        run.write_view(view)
    write_json(run.folder / "views.json", [{"kind": ["a", "later", "idea"]}, *json.loads((run.folder / "views.json").read_text())])
    assert list(run.views) == views


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def nothing(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [half, zeros, nothing])
def test_a_damaged_table_or_artifact_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    run = made_run(tmp_path / "run")
    run.write_table("rows", polars.DataFrame({"a": range(100)}))
    run.write_tensors("weights", {"w": torch.ones(100)})
    run.write_json("notes", {"x": 1})
    for path in (*run.tables.values(), *run.artifacts.values()):
        damage(path)
    for read in (lambda: run.table("rows"), run.check_tables):
        with pytest.raises(BadInput, match=r"rows\.parquet: damaged"):
            read()
    with pytest.raises(BadInput, match=r"weights\.safetensors: damaged"):
        run.tensors("weights")
    with pytest.raises(BadInput, match=r"notes\.json: not readable"):
        run.json("notes")


@pytest.mark.parametrize("name", ["status.json", "facts.json", "views.json", "events.jsonl", "job.json"])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    for kind, make in (("pipe", os.mkfifo), ("folder", os.mkdir)):
        run = made_run(tmp_path / kind)
        (run.folder / name).unlink(missing_ok=True)
        make(run.folder / name)
        with pytest.raises(BadInput, match=name.replace(".", r"\.")):
            _ = RunFolder.open(run.folder).summary(), run.views, list(read_events(run.folder))
        if name == "events.jsonl":
            with pytest.raises(BadInput, match=r"events\.jsonl"):
                EventLog(run.folder)


def test_pipes_among_the_results_are_no_results(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    os.mkfifo(run.folder / "tables" / "rows.parquet")
    os.mkfifo(run.folder / "artifacts" / "notes.json")
    assert run.tables == {}
    assert run.artifacts == {}


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    lines = [
        "5",
        "null",
        "[1]",
        '{"seq": "0", "kind": "state"}',
        '{"seq": 1}',
        '{"seq": 2, "kind": 5}',
        NESTED,
        '{"seq": 3, "kind": "state"}',
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    assert list(read_events(tmp_path)) == [{"seq": 3, "kind": "state"}]


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link to a pipe").symlink_to("pipe")
    for name in ("pipe", "folder", "link to a pipe"):
        with pytest.raises(BadInput, match="no regular file"), replacing(tmp_path / name) as part:
            part.write_text("new")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link to a pipe").is_symlink()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_link_stays_and_what_it_points_at_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "report").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/report")
    (tmp_path / "new link").symlink_to("elsewhere/new")
    for name in ("link", "new link"):
        with replacing(tmp_path / name) as part:
            part.write_text(name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == name
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["new", "report"]


def test_a_name_as_long_as_the_system_allows_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)
    with replacing(path) as part:
        part.write_text("whole")
    assert path.read_text() == "whole"


def test_runs_of_one_second_are_in_order_and_both_forms_of_a_time_are_read(tmp_path: Path) -> None:
    times = {
        "c": "2026-01-01T00:00:00Z",
        "b": "2026-01-01T00:00:00.000002Z",
        "a": "2026-01-01T00:00:00.5Z",
        "d": "2026-01-01T02:00:00.400000+02:00",
        "e": "2025-12-31T23:59:59",
    }
    for name, created in times.items():
        made_run(runs_dir() / name, created=created)
    assert [run.id for run in all_runs()] == ["a", "d", "b", "c", "e"]
    assert find_run("latest").id == "a"


def test_a_run_that_cannot_be_indexed_is_not_registered_and_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(tmp_path / "out")
    odd = made_run(tmp_path / "two\nlines", id="odd")
    assert register(odd) is False
    assert register(run) is True
    (tmp_path / "file").write_text("")
    for place in ("~nosuchuser", str(tmp_path / "file")):
        monkeypatch.setenv("MSCOPE_STATE_DIR", place)
        assert register(run) is False
    assert find_run(str(tmp_path / "out")).id == run.id
    assert register(made_run(runs_dir() / "inside")) is True
    found = found_runs()
    assert [run.id for run in found.runs] == ["inside"]
    assert "so runs outside" in found.problems[0]
