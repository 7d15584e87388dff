"""A run that was lost, cancelled or failed, or never began, goes back to the service; any other is refused."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child_on_pipes import DEADLINE_SECONDS
from preparer_process import PreparerProcess

from modelscope_app.runs.events import read_events
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import find_run
from modelscope_app.runs.queue_record import drop_queue_record, read_queue_record
from modelscope_app.runs.status import RunLock, Status, write_status
from modelscope_app.testing import write_checkpoint

pytest_plugins = ["preparer_process"]


@pytest.fixture
def run(preparer: PreparerProcess) -> RunFolder:
    """A run of submitted.plain that no service has any more."""
    run = RunFolder.open(Path(preparer.prepared("submitted.plain", params={"rows": 7})["folder"]))
    drop_queue_record(run.folder)
    return run


def readmit(preparer: PreparerProcess, run: RunFolder | Path) -> dict[str, Any]:
    return preparer.ask(do="readmit", id=3, folder=str(run.folder if isinstance(run, RunFolder) else run))


ENDED: list[Status] = [
    Status(state="failed", error="it failed", exit_code=4, started=1.0, finished=2.0, attempts=1, device="cuda:1", threads=3, pid=1),
    Status(state="cancelled", error="cancelled", exit_code=130, finished=2.0, attempts=2, device="cpu", threads=1, stage="first", done=3),
    Status(state="lost", error="its worker died", exit_code=4, finished=2.0, attempts=1, device="cpu", threads=2),
    Status(state="running", started=1.0, attempts=1, device="cpu", threads=2, pid=1, host="elsewhere"),
    Status(state="queued"),
]


@pytest.mark.parametrize("before", ENDED, ids=[*(status.state for status in ENDED[:3]), "lost without a word", "never began"])
def test_a_run_that_can_be_resumed_is_queued_again(preparer: PreparerProcess, run: RunFolder, before: Status) -> None:
    write_status(run.folder, before)
    began = time.time()
    said = readmit(preparer, run)
    assert said == {"say": "prepared", "id": 3, "run": run.id, "folder": str(run.folder), "warnings": []}
    assert run.read_status() == Status(state="queued", attempts=before.attempts, device=before.device, threads=before.threads)
    record = read_queue_record(run.folder)
    assert record is not None and record.submitted >= began and record.requeues == 0
    [event] = read_events(run.folder)
    assert (event["kind"], event["state"]) == ("state", "queued")
    assert find_run(run.id).folder == run.folder


def test_a_run_that_is_done_is_refused(preparer: PreparerProcess, run: RunFolder) -> None:
    write_status(run.folder, Status(state="done", exit_code=0, attempts=1))
    assert_refused(readmit(preparer, run), 3, f"run {run.id} is done; only a run that failed, was cancelled or was lost")
    assert run.status == "done" and read_queue_record(run.folder) is None


def test_a_run_that_somebody_executes_is_refused(preparer: PreparerProcess, run: RunFolder) -> None:
    lock = RunLock(run.folder)
    try:
        write_status(run.folder, Status(state="running", attempts=1))
        assert_refused(readmit(preparer, run), 3, f"run {run.id} is running; only a run that failed")
        write_status(run.folder, Status(state="failed", attempts=1))  # it has just written how it ended, and not let go yet
        assert_refused(readmit(preparer, run), 3, "another process is running this")
        assert run.status == "failed" and read_queue_record(run.folder) is None
    finally:
        lock.release()
    assert readmit(preparer, run)["say"] == "prepared"


def test_a_run_that_another_process_finished_meanwhile_is_refused(start_preparer: Callable[..., PreparerProcess], tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    preparer = start_preparer(SUBMITTED_GO_ON=str(go_on))
    go_on.touch()
    run = RunFolder.open(Path(preparer.prepared("submitted.hostile", params={"how": "wait"})["folder"]))
    go_on.unlink()
    drop_queue_record(run.folder)
    waited = preparer.log.read_text().count("waiting")
    preparer.write(json.dumps({"do": "readmit", "id": 3, "folder": str(run.folder)}).encode())
    deadline = time.monotonic() + DEADLINE_SECONDS
    while preparer.log.read_text().count("waiting") == waited:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    write_status(run.folder, Status(state="done", exit_code=0, attempts=1))
    go_on.touch()
    said = preparer.hear()
    assert said is not None
    assert_refused(said, 3, f"run {run.id} is done; there is nothing to resume")
    assert run.status == "done" and read_queue_record(run.folder) is None


def test_a_run_that_was_given_to_a_service_is_refused(preparer: PreparerProcess, run: RunFolder) -> None:
    assert readmit(preparer, run)["say"] == "prepared"
    record = (run.folder / "queue.json").read_text()
    assert_refused(readmit(preparer, run), 3, f"run {run.id} is queued and has already been given to the service on {os.uname().nodename}")
    assert (run.folder / "queue.json").read_text() == record
    write_status(run.folder, Status(state="waiting", waiting_for="it waits for 1 GB"))
    assert_refused(readmit(preparer, run), 3, "has already been given to the service")


def test_what_a_killed_service_left_beside_a_run_that_ended_is_replaced(preparer: PreparerProcess, run: RunFolder) -> None:
    assert readmit(preparer, run)["say"] == "prepared"
    old = read_queue_record(run.folder)
    write_status(run.folder, Status(state="failed", attempts=1))
    assert readmit(preparer, run)["say"] == "prepared"
    new = read_queue_record(run.folder)
    assert old is not None and new is not None and new.submitted > old.submitted


def test_a_damaged_queue_record_is_replaced(preparer: PreparerProcess, run: RunFolder) -> None:
    (run.folder / "queue.json").write_text("{")
    assert readmit(preparer, run)["say"] == "prepared"
    assert read_queue_record(run.folder) is not None


def test_a_folder_that_is_no_run_is_refused(preparer: PreparerProcess, run: RunFolder, tmp_path: Path) -> None:
    assert_refused(readmit(preparer, tmp_path), 3, "not a run folder")
    assert_refused(readmit(preparer, tmp_path / "nowhere"), 3, "not a run folder")
    assert_refused(preparer.ask(do="readmit", id=1, folder="run"), 2, "takes the absolute path of a run folder")
    assert_refused(preparer.ask(do="readmit", id=1, folder=None), 2, "'folder' in the request is null and should be text")
    (run.folder / "status.json").write_text("[]")
    assert_refused(readmit(preparer, run), 3, "not a readable status")
    (run.folder / "job.json").write_text("{}")
    assert_refused(readmit(preparer, run), 3, "not a readable job.json")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_run_of_another_user_is_refused(preparer: PreparerProcess, run: RunFolder) -> None:
    os.chown(run.folder, 12345, -1)
    assert_refused(readmit(preparer, run), 3, "belongs to another user")


def test_a_run_whose_checkpoint_or_data_is_another_is_refused(preparer: PreparerProcess, tmp_path: Path) -> None:
    tiny = write_checkpoint(tmp_path / "tiny", {"w": [1.0]})
    run = RunFolder.open(Path(preparer.prepared("submitted.weights", tiny)["folder"]))
    drop_queue_record(run.folder)
    write_checkpoint(tiny, {"w": [2.0]})
    assert_refused(readmit(preparer, run), 3, f"{tiny}: its content is not what run {run.id} was begun with")
    data = tmp_path / "rows.txt"
    data.write_text("one\n")
    run = RunFolder.open(Path(preparer.prepared("submitted.plain", params={"data": str(data)})["folder"]))
    drop_queue_record(run.folder)
    data.write_text("two\n")
    assert_refused(readmit(preparer, run), 3, f"{data}: its content is not what run {run.id} was begun with")
    assert run.status == "queued" and not (run.folder / "queue.json").exists()


def test_a_run_of_another_version_or_of_an_analysis_that_is_gone_is_refused(preparer: PreparerProcess, run: RunFolder) -> None:
    edit_job(run, analysis_version=2)
    assert_refused(readmit(preparer, run), 3, "was begun with version 2 of submitted.plain, and version 1 is installed")
    edit_job(run, analysis="submitted.plan")
    assert_refused(readmit(preparer, run), 2, "no analysis 'submitted.plan'")
    edit_job(run, analysis="submitted.plain", analysis_version=1)
    assert readmit(preparer, run)["say"] == "prepared"


@pytest.mark.parametrize("limit_bytes", [100, 1000], ids=["queue.json", "status.json"])
def test_a_run_whose_files_cannot_be_written_is_refused_and_left_as_it_was(
    start_preparer: Callable[..., PreparerProcess], run: RunFolder, limit_bytes: int
) -> None:
    """A limit on the size of files stands for a full disk; a long name of a device makes status.json the larger one."""
    before = Status(state="failed", error="it failed", attempts=1, device="x" * 1000)
    write_status(run.folder, before)
    poor = start_preparer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)))
    assert_refused(readmit(poor, run), 3, "cannot be written (File too large)")
    assert run.read_status() == before and not (run.folder / "queue.json").exists()


def test_an_estimate_that_fails_is_a_warning(preparer: PreparerProcess) -> None:
    run = RunFolder.open(Path(preparer.prepared("submitted.hostile", params={"how": "raise"})["folder"]))
    write_status(run.folder, Status(state="cancelled", attempts=1))
    said = readmit(preparer, run)
    assert said["say"] == "prepared" and "the estimate of submitted.hostile failed" in said["warnings"][0]


def assert_refused(said: dict[str, Any], exit_code: int, sentence: str) -> None:
    assert said["say"] == "refused", said
    assert (said["exit_code"], sentence in said["error"]) == (exit_code, True), said


def edit_job(run: RunFolder, **changes: Any) -> None:
    file = run.folder / "job.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
