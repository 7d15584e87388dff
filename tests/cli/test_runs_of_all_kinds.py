"""`mscope runs` among damaged runs, odd references and runs that other processes are at."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars
import pytest
from runs.made_runs import made_run

from modelscope_app.api import TableView
from modelscope_app.cli.main import exit_code_of
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import runs_dir
from modelscope_app.runs.job import JobCheckpoint
from modelscope_app.runs.status import Status, write_status

Mscope = Callable[..., tuple[int, str, str]]

HOLD = """
import sys, time
from pathlib import Path
from modelscope_app.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]), sys.argv[2])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def mscope(capsys: pytest.CaptureFixture[str]) -> Mscope:
    """Exit code, stdout and stderr of `mscope`, which printed no traceback and nothing that a terminal would obey."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = exit_code_of([*map(str, words)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        assert "internal error" not in printed.err
        assert "\x1b" not in printed.out + printed.err
        return code, printed.out, printed.err

    return run


def finished(folder: Path, **changes: object) -> RunFolder:
    run: RunFolder = made_run(folder, **changes)
    write_status(run.folder, Status(state="done", exit_code=0, started=1.0, finished=2.0))
    return run


def test_a_damaged_run_is_listed_as_unreadable_with_its_folder_and_the_others_as_they_are(mscope: Mscope) -> None:
    whole = finished(runs_dir() / "whole")
    no_job = finished(runs_dir() / "no-job")
    (no_job.folder / "job.json").write_text("5")
    no_status = finished(runs_dir() / "no-status")
    (no_status.folder / "status.json").write_text('{"state": "done", "started": "x"}')
    job_folder = finished(runs_dir() / "job-folder")
    (job_folder.folder / "job.json").unlink()
    (job_folder.folder / "job.json").mkdir()

    code, listed, _ = mscope("runs", "list")
    assert code == 0
    states = {line.split()[0]: (line.split()[1], line) for line in listed.splitlines()}
    assert {name: state for name, (state, _) in states.items()} == {
        "whole": "done",
        "no-job": "unreadable",
        "no-status": "unreadable",
        "job-folder": "unreadable",
    }
    assert str(no_job.folder / "job.json") in states["no-job"][1]
    assert str(no_status.folder / "status.json") in states["no-status"][1]

    code, printed, _ = mscope("runs", "list", "--json")
    assert code == 0
    by_name = {run["run"]: run for run in json.loads(printed)["runs"]}
    assert by_name["whole"]["status"] == "done"
    assert by_name["whole"]["error"] is None
    assert by_name["whole"]["exit_code"] == 0
    for broken in (no_job, no_status, job_folder):
        entry = by_name[broken.folder.name]
        assert entry["status"] == "unreadable"
        assert entry["folder"] == str(broken.folder)
        assert ".json" in entry["error"]
    for reference in ("latest", "who"):
        assert json.loads(mscope("runs", "show", reference, "--json")[1])["folder"] == str(whole.folder)


def test_a_run_with_damaged_facts_is_unreadable_as_json(mscope: Mscope) -> None:
    run = finished(runs_dir() / "run")
    (run.folder / "facts.json").write_text("[1]")
    code, printed, _ = mscope("runs", "list", "--json")
    (entry,) = json.loads(printed)["runs"]
    assert code == 0
    assert (entry["status"], entry["run"]) == ("unreadable", "run")
    assert "facts.json" in entry["error"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("status.json", '{"state": "done", "pid": "a"}'),
        ("facts.json", "[1]"),
        ("views.json", "5"),
        ("views.json", '[{"kind": "facts", "name": "n", "title": 5}]'),
        ("tables/rows.parquet", "PAR1 and nothing more"),
    ],
)
def test_showing_and_exporting_a_damaged_run_names_the_file(mscope: Mscope, file: str, content: str) -> None:
    run = finished(runs_dir() / "run")
    run.write_table("rows", polars.DataFrame({"a": [1]}))
    run.write_facts({"x": 1})
    (run.folder / file).write_text(content)
    for words in (["show", "run"], ["export", "run", "--format", "html"], ["export", "run", "--format", "json"]):
        code, _, said = mscope("runs", *words)
        assert code == 3
        assert str(run.folder / file) in said


def test_a_damaged_table_leaves_the_rest_of_a_run_to_be_shown(mscope: Mscope) -> None:
    run = finished(runs_dir() / "run")
    run.write_table("rows", polars.DataFrame({"a": range(50)}))
    run.write_view(TableView(name="rows", title="The rows", table="rows"))
    run.write_facts({"answer": 42})
    path = run.tables["rows"]
    path.write_bytes(path.read_bytes()[:60])
    code, shown, said = mscope("runs", "show", "run")
    assert code == 3
    assert re.search(r"answer +42", shown)
    assert str(path) in said


def test_names_that_a_terminal_would_obey_are_shown_as_text(mscope: Mscope) -> None:
    escape = "\x1b]0;owned\x07"
    checkpoints = (JobCheckpoint(f"/m/{escape}", "0"),)
    run = made_run(runs_dir() / "run", id=f"a{escape}", command=f"mscope {escape}", checkpoints=checkpoints, analysis=f"x{escape}")
    write_status(run.folder, Status(state="failed", error=f"broke {escape}", exit_code=4))
    events: list[dict[str, object]] = [
        {"kind": "stage", "name": escape, "resumed": True},
        {"kind": "warning", "message": escape},
        {"kind": "stage", "name": 5},
        {"kind": "?"},
    ]
    lines = [json.dumps({"seq": number, **event}) for number, event in enumerate(events)]
    (run.folder / "events.jsonl").write_text("5\n" + "\n".join(lines) + "\n")
    assert "\\x1b]0;owned" in mscope("runs", "list")[1]
    assert "\\x1b]0;owned" in mscope("runs", "show", "run")[1]
    code, ended, said = mscope("runs", "watch", "run")
    assert code == 4
    assert "failed: broke \\x1b]0;owned" in ended
    assert "already there" in said
    assert "warning: \\x1b" in said
    assert mscope("runs", "resume", "run")[0] in (2, 3)
    assert mscope("runs", "cancel", "run")[0] == 3


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("a" * 5000, "no run 'aaa"),
        ("./" + "a" * 5000, "not a run folder"),
        ("~nosuchuser", "~nosuchuser"),
        ("~nosuchuser/run", "~nosuchuser"),
        ("", "not a run folder"),
        ("latest", "no run 'latest'"),
        ("..", "not a run folder"),
    ],
)
def test_a_reference_to_no_run_is_a_short_sentence(
    mscope: Mscope, reference: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("show", "watch", "cancel", "export"):
        code, printed, said = mscope("runs", command, reference)
        assert (code, printed) == (3, "")
        assert sentence in said
        assert len(said) < 400


def test_runs_are_listed_where_the_index_cannot_be_read(mscope: Mscope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(runs_dir() / "run")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/dev/null")):
        monkeypatch.setenv("MSCOPE_STATE_DIR", str(place))
        code, printed, said = mscope("runs", "list", "--json")
        assert code == 0
        assert [run["run"] for run in json.loads(printed)["runs"]] == ["run"]
        assert f"{place / 'runs.txt'}: not readable" in said
        assert mscope("runs", "show", "run")[0] == 0


def test_a_linked_run_folder_is_not_removed_through_the_link(mscope: Mscope, tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    code, _, said = mscope("runs", "remove", tmp_path / "link", "--yes")
    assert code == 3
    assert f"name the run folder it points at, {run.folder}" in said
    assert (run.folder / "job.json").is_file()
    assert mscope("runs", "remove", run.folder, "--yes")[0] == 0
    assert not run.folder.exists()


def test_an_export_replaces_no_pipe_and_keeps_a_link(mscope: Mscope, tmp_path: Path) -> None:
    finished(runs_dir() / "run").write_facts({"x": 1})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    for file_format in ("html", "json", "csv", "parquet"):
        assert mscope("runs", "export", "run", "--format", file_format, "--out", tmp_path / "pipe")[0] == 3
        assert (tmp_path / "pipe").is_fifo()
    assert mscope("runs", "export", "run", "--out", tmp_path / "link.html")[0] == 0
    assert (tmp_path / "link.html").is_symlink()
    assert "<html" in (tmp_path / "real.html").read_text()


def test_watching_a_run_that_never_began_ends_and_says_how_to_begin_it(mscope: Mscope) -> None:
    run = made_run(runs_dir() / "run")
    began = time.monotonic()
    code, _, said = mscope("runs", "watch", "run")
    assert code == 3
    assert "run run is queued and nobody executes it; to begin: mscope runs resume run" in said
    assert time.monotonic() - began < 20
    assert run.status == "queued"


@pytest.mark.parametrize("purpose", ["execute", "remove"])
def test_only_the_process_that_executes_a_run_is_asked_to_stop(mscope: Mscope, purpose: str) -> None:
    run = made_run(runs_dir() / "run")
    bystander = subprocess.Popen(["sleep", "60"])
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.folder), purpose], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        write_status(run.folder, Status(state="failed", pid=bystander.pid, host=os.uname().nodename))
        code, _, said = mscope("runs", "cancel", "run")
        if purpose == "execute":
            assert code == 0
            assert holder.wait(timeout=20) == -15
        else:
            assert code == 3
            assert "is being removed" in said
            assert holder.poll() is None
        time.sleep(0.2)
        assert bystander.poll() is None
    finally:
        for process in (bystander, holder):
            process.kill()
            process.communicate()


def test_a_run_that_nobody_executes_is_not_cancelled(mscope: Mscope) -> None:
    run = made_run(runs_dir() / "run")
    bystander = subprocess.Popen(["sleep", "60"])
    write_status(run.folder, Status(state="running", pid=bystander.pid, host=os.uname().nodename))
    code, _, said = mscope("runs", "cancel", "run")
    assert code == 3
    assert "is lost, not running" in said
    assert bystander.poll() is None
    bystander.kill()
    bystander.communicate()


def test_the_list_is_a_line_a_run_within_80_columns(mscope: Mscope) -> None:
    now = datetime.now(UTC)
    for number, age in enumerate([1, 200, 100_000, 10_000_000, -50]):
        created = (now - timedelta(seconds=age)).isoformat()
        made_run(
            runs_dir() / f"20260101-00000{number}-weights-stats-abcd",
            created=created,
            checkpoints=(JobCheckpoint("/m/a-small-model", "0"),),
        )
    lines = mscope("runs", "list")[1].splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert [line.split()[2:4] for line in lines] == [["0", "s"], ["1", "s"], ["3", "min"], ["1", "d"], ["115", "d"]]


def test_listing_reads_no_results(mscope: Mscope) -> None:
    for number in range(3):
        run = finished(runs_dir() / f"run-{number}")
        for name in ("facts.json", "views.json", "events.jsonl"):
            (run.folder / name).write_text("damaged")
        (run.folder / "tables" / "rows.parquet").write_text("damaged")
    code, listed, _ = mscope("runs", "list")
    assert code == 0
    assert listed.count("done") == 3
