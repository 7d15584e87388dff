"""A worker executes what it is told to, one run after the other, and each leaves the process as it found it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import Mscope
from worker_process import WorkerProcess, events, log_of, wait_until

from modelscope_app.jobs.protocol import API_VERSION, DEVICE_LOST
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.lock import RunLock
from modelscope_app.runs.queue_record import QueueRecord
from modelscope_app.runs.status import Status, read_status, write_status

pytest_plugins = ["worker_process"]

Start = Callable[..., WorkerProcess]
Queued = Callable[..., RunFolder]


def test_its_hello_says_what_it_has(start_worker: Start) -> None:
    (hello,) = start_worker().heard
    cpu = hello["devices"][0]
    memory = Path("/proc/meminfo").read_text().split()
    assert hello == {"say": "hello", "api": API_VERSION, "devices": hello["devices"], "threads": 1, "torch": torch.__version__}
    assert [device["device"] for device in hello["devices"]] == ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    assert cpu["name"]
    assert 0 < cpu["capacity_bytes"] <= int(memory[memory.index("MemTotal:") + 1]) * 1024


def test_a_run_is_what_it_would_have_been_in_the_foreground(
    worker: WorkerProcess, queued_run: Queued, mscope: Mscope, tmp_path: Path
) -> None:
    assert mscope("run", "survivor.training", "--rows", 30, "--out", tmp_path / "here", "--quiet").returncode == 0
    run = queued_run("survivor.training", rows=30)
    status = worker.ended(run)
    assert (status.state, status.exit_code, status.device, status.threads) == ("done", 0, "cpu", 1)
    assert [said["say"] for said in worker.heard] == ["hello", "begun", "ended"]
    result = "artifacts/result.safetensors"
    assert (run.folder / result).read_bytes() == (tmp_path / "here" / result).read_bytes()
    kinds = [event["kind"] for event in events(run)]
    assert kinds == [json.loads(line)["kind"] for line in (tmp_path / "here" / "events.jsonl").read_text().splitlines()]


def test_runs_are_executed_in_the_order_they_came(worker: WorkerProcess, queued_run: Queued) -> None:
    runs = [queued_run("survivor.sampling", rows=rows) for rows in (6, 3, 9)]
    for run in runs:
        worker.run(run)
    for run in runs:
        assert worker.hear_of("begun")["folder"] == str(run.folder)
        assert worker.hear_of("ended")["folder"] == str(run.folder)
        assert run.status == "done"


def test_what_an_analysis_prints_is_no_message_and_its_standard_input_is_empty(worker: WorkerProcess, queued_run: Queued) -> None:
    printing, reading = queued_run("tenant.deeds", deed="print"), queued_run("tenant.deeds", deed="read")
    worker.run(printing)
    worker.run(reading)  # lies in the worker's standard input when a child of the first could read it
    for _ in range(2):
        worker.hear_of("ended")
    assert [said["say"] for said in worker.heard] == ["hello", "begun", "ended", "begun", "ended"]
    assert "not a message" in log_of(printing)
    assert reading.facts == {"read": "", "child": ""}


def test_a_run_that_waited_for_memory_is_executed(worker: WorkerProcess, queued_run: Queued) -> None:
    run = queued_run("survivor.printing")
    write_status(run.folder, Status(state="waiting", waiting_for="memory"))
    status = worker.ended(run)
    assert (status.state, status.waiting_for) == ("done", None)


def test_a_lost_run_goes_on_from_what_it_saved(start_worker: Start, queued_run: Queued) -> None:
    run = queued_run("survivor.training", rows=30)
    first = start_worker(SURVIVOR_KILL="train:20", MSCOPE_SAVE_INTERVAL_SECONDS="0")
    first.run(run)
    assert first.exit_code() == -signal.SIGKILL
    assert run.status == "lost"
    whole = queued_run("survivor.training", rows=30)
    second = start_worker()
    assert (second.ended(run).state, second.ended(whole).state) == ("done", "done")
    assert read_status(run.folder).attempts == 2
    result = "artifacts/result.safetensors"
    assert (run.folder / result).read_bytes() == (whole.folder / result).read_bytes()
    resumed = [event["done"] for event in events(run) if event["kind"] == "progress"]
    assert 19 in resumed  # from the state saved after the last whole step


def refusal(worker: WorkerProcess, run: RunFolder | Path, **changes: object) -> tuple[int, str]:
    worker.run(run, **changes)
    said = worker.hear_of("refused", "begun")
    assert said["say"] == "refused"
    return said["exit_code"], said["error"]


def test_what_cannot_be_executed_is_refused_with_a_sentence(worker: WorkerProcess, queued_run: Queued, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    from modelscope_app.testing import write_checkpoint

    write_checkpoint(checkpoint, {"weight": [[1.0, 2.0]]}, {"model_type": "mlp", "layer_sizes": [2, 1], "activation": "tanh"})
    done, changed, versioned, held, gone = (queued_run("tenant.weights", checkpoint) for _ in range(5))
    assert worker.ended(done).state == "done"

    assert refusal(worker, queued_run("survivor.printing"), device="cuda:7")[0] == 2
    assert "--device cuda:7" in refusal(worker, queued_run("survivor.printing"), device="cuda:7")[1]
    assert refusal(worker, tmp_path / "nowhere") == (3, f"{tmp_path / 'nowhere'}: not a run folder (it has no job.json)")
    code, error = refusal(worker, done)
    assert (code, "is done" in error) == (3, True)

    job = json.loads((versioned.folder / "job.json").read_text())
    (versioned.folder / "job.json").write_text(json.dumps({**job, "analysis_version": 7}))
    code, error = refusal(worker, versioned)
    assert (code, "begun with version 7" in error) == (3, True)
    (gone.folder / "job.json").write_text(json.dumps({**job, "analysis": "tenant.nothing"}))
    code, error = refusal(worker, gone)
    assert (code, "tenant.nothing" in error) == (2, True)

    lock = RunLock(held.folder)
    code, error = refusal(worker, held)
    assert (code, "another process" in error or "is running" in error) == (3, True)
    lock.release()

    write_checkpoint(checkpoint, {"weight": [[1.0, 3.0]]}, {"model_type": "mlp", "layer_sizes": [2, 1], "activation": "tanh"})
    code, error = refusal(worker, changed)
    assert (code, "its content is not what" in error) == (3, True)
    for run in (changed, versioned, gone, held):
        assert json.loads((run.folder / "status.json").read_text())["state"] == "queued"  # what follows is the service's to write
    assert worker.ended(queued_run("survivor.printing")).state == "done"


def test_a_resumed_run_goes_where_it_began_or_nowhere(worker: WorkerProcess, queued_run: Queued) -> None:
    run = queued_run("survivor.printing")
    write_status(run.folder, Status(state="lost", device="cuda:5", threads=1))
    code, error = refusal(worker, run, device="cpu")
    assert (code, "cuda:5" in error) == (2, True)


def test_messages_nobody_understands_are_passed_over(worker: WorkerProcess, queued_run: Queued) -> None:
    for line in (b"", b"no json", b"[]", b'{"do": "dance"}', b'{"do": "run"}', b'{"do": "cancel", "folder": "/nowhere"}', b"\xff\xfe"):
        worker.write(line)
    assert worker.ended(queued_run("survivor.printing")).state == "done"
    assert "dance" in worker.log.read_text()


@pytest.mark.parametrize(("deed", "code"), [("end", 9), ("kill", -signal.SIGKILL)])
def test_an_analysis_that_ends_the_process_loses_its_own_run(worker: WorkerProcess, queued_run: Queued, deed: str, code: int) -> None:
    run, next_run = queued_run("tenant.deeds", deed=deed), queued_run("survivor.printing")
    worker.run(run)
    worker.run(next_run)
    assert worker.exit_code() == code
    assert (run.status, next_run.status) == ("lost", "queued")
    assert [said["say"] for said in worker.heard] == ["hello"]
    assert worker.hear_of("begun")["folder"] == str(run.folder)
    assert worker.hear() is None


def test_a_child_that_outlives_the_worker_is_not_taken_for_it(worker: WorkerProcess, queued_run: Queued) -> None:
    run = queued_run("tenant.deeds", deed="fork")
    worker.run(run)
    assert worker.hear_of("begun")
    assert worker.hear() is None  # the end of what it says, though the child has all its files
    assert worker.exit_code() == 9
    os.killpg(worker.process.pid, signal.SIGKILL)  # as the service does then
    wait_until(lambda: run.status == "lost", "the child to let go of the run")


def test_a_device_that_gives_up_takes_the_worker_with_it(worker: WorkerProcess, queued_run: Queued) -> None:
    run, next_run = queued_run("tenant.deeds", deed="cuda"), queued_run("survivor.printing")
    worker.run(run)
    worker.run(next_run)
    assert worker.hear_of("ended")["folder"] == str(run.folder)
    assert worker.hear() is None
    assert worker.exit_code() == DEVICE_LOST
    status = read_status(run.folder)
    assert status.state == "lost"
    assert "illegal memory access" in (status.error or "")
    assert next_run.status == "queued"


def test_a_device_that_gives_up_over_a_run_that_is_cancelled_takes_the_worker_with_it_too(
    worker: WorkerProcess, queued_run: Queued
) -> None:
    run = queued_run("tenant.deeds", deed="cuda when cancelled")
    worker.run(run)
    wait_until(lambda: "waiting" in log_of(run), "the run")
    worker.cancel(run)
    assert worker.hear_of("ended")
    assert worker.exit_code() == DEVICE_LOST
    assert run.status == "lost"


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit(3)", "RuntimeError('no')"])
def test_a_plugin_that_cannot_be_imported_refuses_its_runs(start_worker: Start, queued_run: Queued, worker_site: Path, error: str) -> None:
    run = queued_run("survivor.printing")
    (worker_site / "survivor.py").write_text(f"raise {error}\n")
    code, sentence = refusal(start_worker(), run)
    assert error.partition("(")[0] in sentence
    assert code in (3, 4)
    assert run.status == "queued"


def test_the_next_run_finds_the_process_as_it_was(worker: WorkerProcess, queued_run: Queued) -> None:
    first, second, third = (
        queued_run("tenant.surroundings", deed="change"),
        queued_run("tenant.surroundings"),
        queued_run("tenant.surroundings"),
    )
    for run in (first, second, third):
        assert worker.ended(run).state == "done"
    found = first.facts
    assert found["folder"] == "/"
    assert (found["gradients"], found["dtype"], found["threads"], found["tenant"]) == (True, "torch.float32", 1, "")
    assert second.facts == found
    assert third.facts == found
    os.killpg(worker.process.pid, signal.SIGTERM)  # which the first run had the process ignore
    assert worker.exit_code() == -signal.SIGTERM


def test_a_thread_that_is_left_running_is_said_and_does_not_keep_the_worker(worker: WorkerProcess, queued_run: Queued) -> None:
    run = queued_run("tenant.deeds", deed="thread")
    assert worker.ended(run).state == "done"
    wait_until(lambda: "the thread 'left over' was left running" in log_of(run), "the log")
    assert worker.ended(queued_run("survivor.printing")).state == "done"
    assert worker.log.read_text().count("left over") == 1
    worker.end_input()
    assert worker.exit_code() == 0


def test_a_run_folder_that_cannot_be_written_is_refused(worker: WorkerProcess, queued_run: Queued) -> None:
    run = queued_run("survivor.printing")
    (run.folder / "events.jsonl").mkdir()
    code, error = refusal(worker, run)
    assert (code, "events.jsonl" in error) == (3, True)
    assert worker.ended(queued_run("survivor.printing")).state == "done"


def test_settings_nobody_can_read_refuse_each_run_with_that_sentence(start_worker: Start, queued_run: Queued, own_folders: Path) -> None:
    run = queued_run("survivor.printing")
    config = own_folders / "config" / "config.toml"
    config.parent.mkdir(exist_ok=True)
    config.write_text("[runs\n")
    code, error = refusal(start_worker(), run)
    assert (code, "config.toml" in error) == (3, True)


def test_the_queue_record_is_left_to_the_service(worker: WorkerProcess, queued_run: Queued) -> None:
    run = queued_run("survivor.printing")
    QueueRecord(submitted=1.0, host="here", interpreter="python").write(run.folder)
    assert worker.ended(run).state == "done"
    assert (run.folder / "queue.json").is_file()
