"""A worker stops a run when it is asked to, when it is told to by signal, and when the service is gone; and what the run had is kept."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from worker_process import WorkerProcess, events, log_of, wait_until

from modelscope_app.jobs.worker.inbox import LAST_WORDS_SECONDS
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.status import read_status, read_stored_status

pytest_plugins = ["worker_process"]

Start = Callable[..., WorkerProcess]
Queued = Callable[..., RunFolder]

SLOW = {"SURVIVOR_SLEEP": "0.02", "MSCOPE_SAVE_INTERVAL_SECONDS": "1000"}


def under_way(worker: WorkerProcess, run: RunFolder, word: str = '"progress"') -> None:
    """Begin a run and wait until it is in the middle of something."""
    worker.run(run)
    assert worker.hear_of("begun")["folder"] == str(run.folder)
    wait_until(lambda: word in log_of(run) or any(word.strip('"') == event["kind"] for event in events(run)), word)


def states(run: RunFolder) -> list[str]:
    return [event["state"] for event in events(run) if event["kind"] == "state"]


def saved_states(run: RunFolder, stage: str) -> list[Path]:
    return list((run.folder / "stages" / stage).glob("state-*.safetensors"))


def test_a_running_fold_is_cancelled_at_its_next_step_and_goes_on_where_it_was(start_worker: Start, queued_run: Queued) -> None:
    run, whole = queued_run("survivor.training", rows=300), queued_run("survivor.training", rows=300)
    worker = start_worker(**SLOW)
    under_way(worker, run)
    worker.cancel(run)
    worker.hear_of("ended")
    status = read_status(run.folder)
    assert (status.state, status.error, status.exit_code) == ("cancelled", "cancelled", 130)
    assert states(run) == ["running", "cancelling", "cancelled"]
    assert len(saved_states(run, "train")) == 1  # though no save was due
    fast = start_worker()
    assert (fast.ended(run).state, fast.ended(whole).state) == ("done", "done")
    result = "artifacts/result.safetensors"
    assert (run.folder / result).read_bytes() == (whole.folder / result).read_bytes()
    assert worker.ended(queued_run("survivor.printing")).state == "done"


def test_while_it_is_being_cancelled_its_status_says_so(worker: WorkerProcess, queued_run: Queued) -> None:
    run = queued_run("survivor.sleeping")
    under_way(worker, run, "sleeping")
    worker.cancel(run)
    wait_until(lambda: read_status(run.folder).state == "cancelling", "cancelling")
    worker.cancel(run)  # once more changes nothing
    os.killpg(worker.process.pid, signal.SIGTERM)
    assert worker.exit_code() == 130
    status = read_status(run.folder)
    assert (status.state, status.error, status.exit_code) == ("cancelled", "cancelled", 130)
    assert states(run) == ["running", "cancelling", "cancelled"]


@pytest.mark.parametrize("analysis", ["survivor.long-kernel", "survivor.sleeping"])
def test_a_signal_ends_a_run_that_does_not_come_to_a_step(worker: WorkerProcess, queued_run: Queued, analysis: str) -> None:
    run = queued_run(analysis)
    under_way(worker, run, "backward" if "kernel" in analysis else "sleeping")
    os.killpg(worker.process.pid, signal.SIGTERM)
    assert worker.exit_code() == 143
    status = read_status(run.folder)
    assert (status.state, status.error, status.exit_code) == ("cancelled", "ended by SIGTERM", 143)


def test_a_worker_outlives_a_signal_that_its_run_heeds(start_worker: Start, queued_run: Queued) -> None:
    worker, run = start_worker(**SLOW), queued_run("survivor.sampling", rows=10000)
    under_way(worker, run)
    os.killpg(worker.process.pid, signal.SIGTERM)
    worker.hear_of("ended")
    assert read_status(run.folder).state == "cancelled"
    assert worker.ended(queued_run("survivor.printing")).state == "done"


def test_an_idle_worker_ends_by_signal(worker: WorkerProcess) -> None:
    os.killpg(worker.process.pid, signal.SIGTERM)
    assert worker.exit_code() == -signal.SIGTERM


def test_a_run_cancelled_before_its_turn_ends_cancelled_and_its_analysis_is_never_called(start_worker: Start, queued_run: Queued) -> None:
    worker = start_worker(**SLOW)
    first, second, third = queued_run("survivor.sampling", rows=60), queued_run("survivor.printing"), queued_run("survivor.printing")
    for run in (first, second, third):
        worker.run(run)
    worker.cancel(second)
    assert [worker.hear_of("ended")["folder"] for _ in range(3)] == [str(run.folder) for run in (first, second, third)]
    assert [run.status for run in (first, second, third)] == ["done", "cancelled", "done"]
    assert states(second) == ["cancelled"]
    status = read_status(second.folder)
    assert (status.error, status.exit_code, status.attempts) == ("cancelled", 130, 0)
    assert not log_of(second)
    begun = [said["folder"] for said in worker.heard if said["say"] == "begun"]
    assert str(second.folder) not in begun


def test_a_cancelled_run_may_come_again_and_an_old_request_does_not_stick(worker: WorkerProcess, queued_run: Queued) -> None:
    run = queued_run("survivor.printing")
    worker.run(run)
    worker.cancel(run)
    worker.hear_of("ended")
    worker.cancel(run)  # too late for that one
    again = queued_run("survivor.printing")
    assert worker.ended(again).state == "done"
    if run.status == "cancelled":
        assert worker.ended(run).state == "done"


def test_an_idle_worker_ends_with_the_service(worker: WorkerProcess, queued_run: Queued) -> None:
    assert worker.ended(queued_run("survivor.printing")).state == "done"
    worker.end_input()
    assert worker.exit_code() == 0
    assert worker.hear() is None


def test_a_worker_that_is_still_starting_ends_with_the_service(worker_environment: dict[str, str], tmp_path: Path) -> None:
    worker = WorkerProcess(worker_environment, tmp_path / "log")
    try:
        worker.end_input()
        assert worker.exit_code() == 0
    finally:
        worker.kill()


def test_when_the_service_ends_a_running_fold_saves_its_state_and_is_lost(start_worker: Start, queued_run: Queued) -> None:
    run, waiting, whole = (
        queued_run("survivor.training", rows=300),
        queued_run("survivor.printing"),
        queued_run("survivor.training", rows=300),
    )
    worker = start_worker(**SLOW)
    under_way(worker, run)
    worker.run(waiting)
    worker.end_input()
    assert worker.exit_code() == 0
    status = read_stored_status(run.folder)
    assert (status.state, status.error, status.exit_code) == ("lost", "the service ended while it ran", 4)
    assert states(run) == ["running", "lost"]
    assert len(saved_states(run, "train")) == 1
    assert waiting.status == "queued"
    other = start_worker()
    assert (other.ended(run).state, other.ended(whole).state) == ("done", "done")
    result = "artifacts/result.safetensors"
    assert (run.folder / result).read_bytes() == (whole.folder / result).read_bytes()


def test_when_the_service_ends_a_run_that_does_not_stop_is_cut_short(worker: WorkerProcess, queued_run: Queued) -> None:
    run = queued_run("tenant.deeds", deed="stuck", seconds=3600.0)
    under_way(worker, run, "stuck")
    began = time.monotonic()
    worker.end_input()
    assert worker.exit_code() == 1
    assert time.monotonic() - began >= LAST_WORDS_SECONDS
    assert read_stored_status(run.folder).state == "running"  # nobody was there to write more
    assert read_status(run.folder).state == "lost"


def test_when_the_service_ends_while_a_run_is_cancelled_it_stays_cancelled(start_worker: Start, queued_run: Queued) -> None:
    worker, run = start_worker(SURVIVOR_SLEEP="0.5"), queued_run("survivor.sampling", rows=1000)
    under_way(worker, run)
    worker.cancel(run)
    wait_until(lambda: read_stored_status(run.folder).state != "running", "cancelling")
    worker.end_input()
    assert worker.exit_code() == 0
    assert read_status(run.folder).state == "cancelled"


def test_a_service_that_died_without_a_word_is_noticed_too(worker: WorkerProcess, queued_run: Queued) -> None:
    """Nobody reads what the worker says any more: that is no error of the run."""
    assert worker.process.stdout is not None
    run = queued_run("survivor.printing")
    worker.process.stdout.close()
    worker.run(run)
    wait_until(lambda: run.status == "done", "the run")
    worker.end_input()
    assert worker.exit_code() == 0
