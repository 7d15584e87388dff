"""Run folders: created once, read anywhere, and honest about how they stand."""

from __future__ import annotations

import json
from pathlib import Path

import polars
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelscope_app.api import BadInput, FactsView, LinesView
from modelscope_app.runs.atomic import finite, replacing, write_json
from modelscope_app.runs.events import EventLog, EventReader, read_events
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import all_runs, find_run, register, runs_dir
from modelscope_app.runs.job import Job
from modelscope_app.runs.status import RunLock, Status, is_locked, write_status


def job(run_id: str = "20260101-000000-weights-stats-abcd", created: str = "2026-01-01T00:00:00Z") -> Job:
    return Job(
        id=run_id,
        analysis="weights.stats",
        analysis_version=1,
        plugin={"distribution": "modelscope-app", "version": "0"},
        params={"bins": 64},
        checkpoints=(),
        inputs=(),
        device="cpu",
        dtype="auto",
        seed=0,
        created=created,
        command="mscope run weights.stats",
        interpreter="python",
    )


def test_a_run_reads_back_what_was_written(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", job())
    frame = polars.DataFrame({"a": [1, 2], "b": [float("nan"), None]})
    run.write_table("rows", frame)
    run.write_tensors("weights", {"w": torch.arange(6.0).reshape(2, 3).T, "tied": torch.ones(2)})
    run.write_json("notes", {"x": (1, float("inf"))})
    run.write_facts({"nan": float("nan"), "best": {"value": 0.5, "ci_low": 0.25}})
    run.write_view(FactsView(name="facts", title="Facts"))
    run.write_view(LinesView(name="lines", title="Lines", table="rows", x="a", y="b"))
    run.write_view(FactsView(name="facts", title="Facts again", keys=("best",)))

    again = RunFolder.open(tmp_path / "run")
    assert again.job == job()
    assert again.table("rows").equals(frame, null_equal=True)
    assert torch.equal(again.tensors("weights")["w"], torch.arange(6.0).reshape(2, 3).T)
    assert again.json("notes") == {"x": [1, None]}
    assert again.facts == {"nan": None, "best": {"value": 0.5, "ci_low": 0.25}}
    assert [view.title for view in again.views] == ["Facts again", "Lines"]
    assert again.views[0].to_json()["keys"] == ("best",)


def test_tensors_and_a_document_of_one_name_stay_apart(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", job())
    run.write_tensors("probe", {"direction": torch.ones(2)})
    run.write_json("probe", {"layers": [3]})
    run.write_json("notes", {"x": 1})
    assert {name: path.name for name, path in run.artifacts.items()} == {
        "notes": "notes.json",
        "probe": "probe.safetensors",
        "probe.json": "probe.json",
    }
    assert run.json("probe") == {"layers": [3]}
    assert torch.equal(run.tensors("probe")["direction"], torch.ones(2))


def test_a_table_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", job())
    run.write_table("rows", polars.DataFrame({"a": [1]}))
    with pytest.raises(BadInput, match="no table 'row'; it has: rows"):
        run.table("row")


def test_a_folder_with_files_is_not_made_a_run(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(BadInput, match="holds files"):
        RunFolder.create(tmp_path, job())
    with pytest.raises(BadInput, match="a file stands where"):
        RunFolder.create(tmp_path / "precious.txt", job())
    assert (tmp_path / "precious.txt").read_text() == "keep"


def test_an_unfinished_run_whose_lock_is_free_is_lost(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", job())
    assert run.status == "queued"
    lock = RunLock(run.folder)
    write_status(run.folder, Status(state="running"))
    assert run.status == "running"
    with pytest.raises(BadInput, match="another process"):
        RunLock(run.folder)
    lock.release()
    assert run.status == "lost"
    assert not is_locked(run.folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 99}', '{"format": "1"}', "null"])
def test_a_broken_job_file_is_a_sentence(tmp_path: Path, content: str) -> None:
    run = RunFolder.create(tmp_path / "run", job())
    (run.folder / "job.json").write_text(content)
    with pytest.raises(BadInput, match=r"job\.json"):
        RunFolder.open(run.folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "asleep"}', '{"state": "done", "colour": 1}'])
def test_a_broken_status_is_a_sentence(tmp_path: Path, content: str) -> None:
    run = RunFolder.create(tmp_path / "run", job())
    (run.folder / "status.json").write_text(content)
    with pytest.raises(BadInput, match=r"status\.json"):
        run.read_status()


def test_views_of_a_newer_version_are_left_out(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", job())
    run.write_view(FactsView(name="facts", title="Facts"))
    stored = json.loads((run.folder / "views.json").read_text())
    write_json(run.folder / "views.json", [{"kind": "hologram", "name": "h"}, *stored])
    assert [view.name for view in run.views] == ["facts"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_is_stored_is_json_with_finite_numbers(value: object) -> None:
    text = json.dumps(finite(value), allow_nan=False)
    assert json.loads(text) == finite(value)


def test_events_are_numbered_through_and_a_torn_last_line_is_cut(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.add("state", state="running")
    log.add("progress", done=float("nan"))
    log.close()
    with (tmp_path / "events.jsonl").open("a") as stream:
        stream.write('{"seq": 2, "kind": "prog')
    assert [event["seq"] for event in read_events(tmp_path)] == [0, 1]
    log = EventLog(tmp_path)
    log.add("state", state="done")
    log.close()
    assert [(event["seq"], event["kind"]) for event in read_events(tmp_path, since=1)] == [(1, "progress"), (2, "state")]


def test_a_reader_goes_on_where_it_stopped_and_leaves_an_unfinished_line_for_later(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    assert list(reader.new()) == []
    path = tmp_path / "events.jsonl"
    path.write_text('{"seq": 0, "kind": "a"}\n{"seq": 1, "kind": "b"}\n{"seq": 2, ')
    assert [event["seq"] for event in reader.new()] == [0, 1]
    assert list(reader.new()) == []
    with path.open("a") as stream:
        stream.write('"kind": "c"}\nnot an event\n{"seq": 3, "kind": "d"}\n')
    assert [event["seq"] for event in reader.new()] == [2, 3]


def test_runs_are_found_by_id_beginning_folder_and_latest(tmp_path: Path) -> None:
    first = RunFolder.create(runs_dir() / "20260101-000000-weights-stats-abcd", job())
    elsewhere = RunFolder.create(tmp_path / "out", job("20260102-000000-weights-stats-ffff", "2026-01-02T00:00:00Z"))
    register(first)
    register(elsewhere)
    register(elsewhere)
    assert [run.id for run in all_runs()] == [elsewhere.id, first.id]
    assert find_run("latest").id == elsewhere.id
    assert find_run("20260101").folder == first.folder
    assert find_run(elsewhere.id).folder == tmp_path / "out"
    assert find_run(str(tmp_path / "out")).id == elsewhere.id
    with pytest.raises(BadInput, match="beginning of 2 run ids"):
        find_run("2026")
    with pytest.raises(BadInput, match="no run 'nothing'"):
        find_run("nothing")
    with pytest.raises(BadInput, match="not a run folder"):
        find_run(str(tmp_path))


def test_a_run_that_was_moved_away_is_passed_over(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "out", job())
    register(run)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert all_runs() == []
    assert find_run(str(tmp_path / "moved")).id == run.id
