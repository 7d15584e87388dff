"""`mscope run --detach`, and following, cancelling and resuming such runs: real processes, killed and left alone."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from jobs.pretend_service import answer, pretending
from service_process import Background, background, processes, state, wait_until

from modelscope_app.jobs import Client
from modelscope_app.jobs.address import lock_path
from modelscope_app.locations import state_dir
from modelscope_app.runs.index import runs_dir
from modelscope_app.runs.lock import RunLock, is_locked, lock_holder
from modelscope_app.runs.queue_record import QueueRecord, read_queue_record

SAMPLE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp"

QUICK = ("sampling", "--rows", 3)
LONG = ("sampling", "--rows", 100_000)
ROWS = 3000
"""Takes a minute with the sleep of `desk`, and no time without it."""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    monkeypatch.setenv("SURVIVOR_SLEEP", "0.02")
    monkeypatch.setenv("MSCOPE_SAVE_INTERVAL_SECONDS", "0.05")
    with background(tmp_path / "site", monkeypatch) as made:
        yield made


def has_begun(folder: Path) -> bool:
    """Whether a fold of it has saved its state."""
    return state(folder) == "running" and any((folder / "stages").glob("*/state-*.safetensors"))


def begun(desk: Background, *words: object) -> Path:
    """A job that is running and has saved its state."""
    folder = desk.submit(*map(str, words))
    wait_until(lambda: has_begun(folder), f"{folder.name} to run")
    return folder


def test_a_detached_run_prints_its_id_and_is_done_after_a_while(desk: Background) -> None:
    ended = desk.mscope("run", "survivor.two-passes", "--detach")
    assert ended.returncode == 0, ended.stderr
    run = ended.stdout.strip()
    assert ended.stdout == f"{run}\n"
    assert ended.stderr == f"mscope: to follow it: mscope runs watch {run}\n"
    watched = desk.mscope("runs", "watch", run)
    assert (watched.returncode, watched.stdout) == (0, f"{run} done\n"), watched.stderr
    assert watched.stderr.endswith(f"mscope: results: mscope runs show {run}\n")
    facts = json.loads(desk.mscope("runs", "show", run, "--json").stdout)["facts"]
    assert facts == json.loads(desk.mscope("run", "survivor.two-passes", "--json", "--quiet").stdout)["facts"]


def test_with_json_a_detached_run_prints_one_object(desk: Background, tmp_path: Path) -> None:
    ended = desk.mscope("run", "survivor.sampling", "--detach", "--json", "--quiet", "--out", tmp_path / "run")
    assert ended.stderr == ""
    printed = json.loads(ended.stdout)
    assert printed.pop("status") in ("queued", "waiting", "running", "done")
    assert printed.pop("run").endswith(json.loads((tmp_path / "run" / "job.json").read_text())["id"])
    assert printed == {"folder": str(tmp_path / "run"), "facts": {}, "tables": {}, "artifacts": {}}


def test_relative_paths_are_those_of_the_terminal(desk: Background, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").symlink_to(SAMPLE)
    monkeypatch.chdir(tmp_path)
    ended = desk.mscope("run", "weights.stats", "model", "--bins", 5, "--seed", 7, "--out", "results/run", "--detach", "--quiet")
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "results" / "run"
    assert desk.mscope("runs", "watch", run).returncode == 0
    job = json.loads((run / "job.json").read_text())
    assert job["checkpoints"][0]["path"] == str(tmp_path / "model")
    assert (job["params"]["bins"], job["seed"]) == (5, 7)
    assert shlex.split(job["command"])[:4] == ["mscope", "run", "weights.stats", str(tmp_path / "model")]


def test_warnings_about_a_submission_are_told_unless_quiet(desk: Background, tmp_path: Path) -> None:
    words = ("run", "survivor.printing", "--detach", "--out")
    told = desk.mscope(*words, tmp_path / "a\nb")
    assert told.stderr.startswith("mscope: warning: this run cannot be entered into the index of runs")
    assert desk.mscope(*words, tmp_path / "c\nd", "--quiet").stderr == ""


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["weights.stats", "/nowhere/at/all"], 3, "/nowhere/at/all"),
        (["weights.stats"], 2, "takes 1 checkpoint, and none was given"),
        (["weights.stats", SAMPLE, "--bins", 0], 2, "--bins 0: takes an integer from 1 to 512"),
        (["weights.stats", SAMPLE, "--device", "abacus"], 2, "write auto, cpu, cuda or cuda:N"),
        (["weights.stats", SAMPLE, "--dtype", "decimal"], 2, "--dtype 'decimal'"),
        (["weights.stats", SAMPLE, "--foreground"], 2, "--detach and --foreground contradict each other"),
        (["weights.stats", SAMPLE, "--assert", "nan == 0"], 2, "--assert reads results, and with --detach there are none yet"),
        (["weights.stat", SAMPLE], 2, "did you mean weights.stats?"),
    ],
)
def test_what_is_wrong_is_said_at_once_and_starts_no_service(desk: Background, words: list[object], code: int, sentence: str) -> None:
    ended = desk.mscope("run", *words, "--detach")
    assert (ended.returncode, ended.stdout) == (code, "")
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not lock_path().exists()
    assert processes() == {}


def test_what_only_the_service_finds_wrong_is_said_as_in_the_foreground(desk: Background, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    ended = desk.mscope("run", "survivor.sampling", "--out", tmp_path, "--detach")
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "choose another --out" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_watching_exits_as_the_run_does(desk: Background) -> None:
    failing = desk.submit("raising")
    watched = desk.mscope("runs", "watch", failing)
    assert watched.returncode == 4
    assert watched.stdout.startswith(f"{failing.name} failed: the analysis raised KeyError")
    assert "Traceback" not in watched.stderr


def test_ctrl_c_ends_the_watching_and_not_the_run(desk: Background) -> None:
    folder = begun(desk, *LONG)
    watching = [desk.begin("runs", "watch", folder) for _ in range(2)]
    for process in watching:
        assert process.stderr is not None
        assert "run " in process.stderr.readline()
    watching[0].send_signal(signal.SIGINT)
    watching[1].kill()
    assert watching[0].wait(60) == 130
    for process in watching:
        output, errors = process.communicate(timeout=60)
        assert output == ""
        assert "Traceback" not in errors
        said = f"mscope: the run goes on; to follow it again: mscope runs watch {folder.name}\n"
        assert errors.endswith(said) == (process is watching[0])
    size = (folder / "events.jsonl").stat().st_size
    wait_until(lambda: (folder / "events.jsonl").stat().st_size > size, "the run to go on")
    assert state(folder) == "running"


def test_several_watch_one_run(desk: Background) -> None:
    folder = desk.submit("sampling", "--rows", 100)
    watching = [desk.begin("runs", "watch", folder.name) for _ in range(3)]
    for process in watching:
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, output) == (0, f"{folder.name} done\n"), errors


def test_the_place_on_the_queue_is_shown(desk: Background) -> None:
    first = begun(desk, *LONG)
    second, third = desk.submit(*QUICK), desk.submit(*QUICK)
    assert (state(second), state(third)) == ("queued", "queued")
    watching = desk.begin("runs", "watch", third)
    assert watching.stderr is not None
    wait_until(lambda: "queued: 1 before it" in watching.stderr.readline(), "its place")
    shown = desk.mscope("runs", "show", third).stdout
    assert "state    queued" in shown
    assert "queue    given to the service of" in shown
    assert f"go on    mscope runs watch {third.name}" in shown
    refused = desk.mscope("runs", "resume", third)
    assert refused.returncode == 3
    assert f"is on the queue of the service; follow it with `mscope runs watch {third.name}`" in refused.stderr

    assert desk.mscope("runs", "cancel", second).stdout == f"{second.name} cancelled\n"
    assert state(second) == "cancelled"
    assert desk.mscope("runs", "cancel", first).stdout == f"{first.name} asked to stop\n"
    assert desk.mscope("runs", "watch", first).returncode == 130
    assert watching.communicate(timeout=120)[0] == f"{third.name} done\n"
    again = desk.mscope("runs", "cancel", first)
    assert again.returncode == 3
    assert "is cancelled, not running; there is nothing to cancel" in again.stderr


def test_a_cancelled_run_is_taken_up_in_the_background(desk: Background, tmp_path: Path) -> None:
    folder = begun(desk, "training", "--rows", ROWS)
    assert desk.mscope("runs", "cancel", folder).returncode == 0
    assert desk.mscope("runs", "watch", folder).returncode == 130
    assert desk.mscope("service", "stop").returncode == 0
    resumed = desk.mscope("runs", "resume", folder, "--detach", SURVIVOR_SLEEP="0")
    assert (resumed.returncode, resumed.stdout) == (0, f"{folder.name}\n"), resumed.stderr
    assert desk.mscope("runs", "watch", folder).returncode == 0
    assert json.loads((folder / "status.json").read_text())["attempts"] == 2
    whole = desk.mscope("run", "survivor.training", "--rows", ROWS, "--out", tmp_path / "whole", "--quiet", SURVIVOR_SLEEP="0")
    assert whole.returncode == 0, whole.stderr
    result = "artifacts/result.safetensors"
    assert (folder / result).read_bytes() == (tmp_path / "whole" / result).read_bytes()
    refused = desk.mscope("runs", "resume", folder, "--detach")
    assert refused.returncode == 3
    assert "is done" in refused.stderr


def test_a_queue_comes_back_when_somebody_watches_one_of_its_runs(desk: Background) -> None:
    napping = desk.submit("sleeping")
    wait_until(lambda: state(napping) == "running", "the first run to begin")
    watching = desk.begin("runs", "watch", napping)
    queued = desk.submit(*QUICK)
    desk.kill_service()
    watched = desk.mscope("runs", "watch", queued)
    assert watched.returncode == 0, watched.stderr
    assert state(queued) == "done"
    output, errors = watching.communicate(timeout=120)
    assert watching.returncode == 4, errors
    assert output.startswith(f"{napping.name} lost: ")  # it had saved nothing to go on from


def test_a_watched_run_goes_on_when_its_service_is_killed(desk: Background, tmp_path: Path) -> None:
    folder = begun(desk, "training", "--rows", ROWS)
    watching = desk.begin("runs", "watch", folder, SURVIVOR_SLEEP="0")  # which the service it starts passes on
    assert watching.stderr is not None
    assert "run " in watching.stderr.readline()
    killed = desk.service_pid
    os.kill(killed, signal.SIGKILL)
    output, errors = watching.communicate(timeout=120)
    assert (watching.returncode, output) == (0, f"{folder.name} done\n"), errors
    assert desk.service_pid != killed
    assert f"mscope: the service is gone; it is started again to go on with run {folder.name}\n" in errors
    whole = desk.mscope("run", "survivor.training", "--rows", ROWS, "--out", tmp_path / "whole", "--quiet", SURVIVOR_SLEEP="0")
    assert whole.returncode == 0
    result = "artifacts/result.safetensors"
    assert (folder / result).read_bytes() == (tmp_path / "whole" / result).read_bytes()


def test_a_run_that_dies_with_its_worker_is_lost_and_said_to_be(desk: Background) -> None:
    folder = begun(desk, *LONG)
    watching = desk.begin("runs", "watch", folder)
    (worker,) = [pid for pid in desk.workers() if pid == json.loads((folder / "lock").read_text())["pid"]]
    os.kill(worker, signal.SIGKILL)
    output, errors = watching.communicate(timeout=120)
    assert watching.returncode == 4, errors
    assert output.startswith(f"{folder.name} lost: ")
    assert read_queue_record(folder) is None


def test_a_queued_run_is_cancelled_though_its_service_is_gone(desk: Background) -> None:
    begun(desk, *LONG)
    queued, other = desk.submit(*QUICK), desk.submit(*QUICK)
    desk.kill_service()
    cancelled = desk.mscope("runs", "cancel", queued)
    assert (cancelled.returncode, cancelled.stdout) == (0, f"{queued.name} cancelled\n"), cancelled.stderr
    assert state(queued) == "cancelled"
    assert read_queue_record(queued) is None
    assert desk.services() == []  # it would execute the other one
    assert state(other) == "queued"


def test_a_running_run_is_not_removed_and_told_how_to_stop_it(desk: Background) -> None:
    folder = begun(desk, *LONG)
    refused = desk.mscope("runs", "remove", "--yes", folder)
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr == f"mscope: run {folder.name} is being executed; to stop it first: mscope runs cancel {folder.name}\n"


def test_tab_offers_runs_that_have_not_ended_for_watching_and_cancelling(desk: Background) -> None:
    ended, queued = desk.submit(*QUICK), desk.submit(*LONG)
    assert desk.mscope("runs", "watch", ended).returncode == 0
    for word, others in (("watch", set()), ("cancel", set()), ("show", {ended.name})):
        offered = desk.mscope(_MSCOPE_COMPLETE="bash_complete", COMP_WORDS=f"mscope runs {word} ", COMP_CWORD="3").stdout.split()
        assert set(offered) == {f"plain,{name}" for name in {"latest", queued.name} | others}


def test_a_client_that_dies_leaves_its_jobs(desk: Background) -> None:
    script = "from modelscope_app.jobs import Client; c = Client(); j = c.submit('survivor.sampling', params={'rows': 200}); "
    script += "print(j.folder, flush=True); c.wait(j.run)"
    client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    folder = Path(client.stdout.readline().strip())
    client.kill()
    client.communicate()
    assert desk.mscope("runs", "watch", folder).returncode == 0


def test_a_python_client_follows_a_run_through_the_loss_of_its_service(desk: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client() as client:
        job = client.submit("survivor.training", params={"rows": ROWS})
        wait_until(lambda: has_begun(Path(job.folder)), "the run to begin")
        monkeypatch.setenv("SURVIVOR_SLEEP", "0")
        seen = []
        for event in client.events(job.run):
            seen.append(event["seq"])
            if len(seen) == 3:
                desk.kill_service()
        assert client.job(job.run).state == "done"
    lines = (Path(job.folder) / "events.jsonl").read_text().splitlines()
    assert seen == [json.loads(line)["seq"] for line in lines] == list(range(len(lines)))


def test_lists_say_what_a_run_waits_for(desk: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    from runs.made_runs import made_run

    from modelscope_app.runs.status import Status, write_status

    run = made_run(runs_dir() / "run")
    write_status(run.folder, Status(state="waiting", waiting_for="2.0 GB on cpu"))
    (listed,) = json.loads(desk.mscope("runs", "list", "--json").stdout)["runs"]
    assert (listed["status"], listed["waiting_for"]) == ("waiting", "2.0 GB on cpu")
    assert "waiting  2.0 GB on cpu" in desk.mscope("runs", "show", "run").stdout
    assert processes() == {}


def test_what_a_run_waits_for_is_shown_while_watching(desk: Background) -> None:
    from runs.made_runs import made_run

    from modelscope_app.runs.queue_record import drop_queue_record
    from modelscope_app.runs.status import Status, write_status

    run = made_run(runs_dir() / "run")
    QueueRecord(time.time(), socket.gethostname(), "/python").write(run.folder)
    write_status(run.folder, Status(state="waiting", waiting_for="2.0 GB of memory on cpu"))
    with pretending(lambda request: answer({"position": 0})):
        watching = desk.begin("runs", "watch", "run")
        assert watching.stderr is not None
        wait_until(lambda: "mscope: waiting: 2.0 GB of memory on cpu\n" in watching.stderr.readline(), "what it waits for")
        write_status(run.folder, Status(state="cancelled", error="cancelled", exit_code=130))
        drop_queue_record(run.folder)
        assert watching.communicate(timeout=60)[0] == "run cancelled\n"
    assert watching.returncode == 130


def test_a_run_on_another_machines_queue_is_left_to_it(desk: Background) -> None:
    from runs.made_runs import made_run

    run = made_run(runs_dir() / "run")
    QueueRecord(time.time(), "elsewhere", "/python").write(run.folder)
    refused = desk.mscope("runs", "cancel", "run")
    assert refused.returncode == 3
    assert "is on the queue of elsewhere; cancel it there; if that machine is gone: `mscope runs resume run`\n" in refused.stderr
    assert "mscope runs watch run; if that machine is gone: `mscope runs resume run`\n" in desk.mscope("runs", "show", "run").stdout
    watching = desk.begin("runs", "watch", "run")
    assert watching.stderr is not None
    said = "queued: with the service of elsewhere; if that machine is gone: `mscope runs resume run`\n"
    wait_until(lambda: said in watching.stderr.readline(), "what is said of it")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(60) == 130
    watching.communicate()
    assert processes() == {}
    (run.folder / "lock").touch()
    lock = RunLock(run.folder)
    holder = json.loads((run.folder / "lock").read_text())
    (run.folder / "lock").write_text(json.dumps({**holder, "host": "elsewhere"}))
    refused = desk.mscope("runs", "cancel", "run")
    lock.release()
    assert refused.returncode == 3
    assert "runs on elsewhere; cancel it there; if that machine is gone: `mscope runs resume run`\n" in refused.stderr


def test_a_run_on_the_queue_of_a_machine_that_is_gone_is_resumed_here(desk: Background) -> None:
    begun(desk, *LONG)
    queued = desk.submit(*QUICK)
    desk.kill_service()
    record = read_queue_record(queued)
    assert record is not None
    replace(record, host="elsewhere").write(queued)
    refused = desk.mscope("runs", "resume", queued, "--detach")
    assert refused.returncode == 3
    advice = f"; if that machine is gone: `mscope runs resume {queued.name}`\n"
    assert f"has already been given to the service on elsewhere{advice}" in refused.stderr
    assert desk.mscope("runs", "resume", queued, "--quiet").returncode == 0
    assert (state(queued), read_queue_record(queued)) == ("done", None)


def test_a_run_that_is_taken_back_is_cancelled_where_it_is_executed(desk: Background) -> None:
    folder = begun(desk, *LONG)
    desk.kill_service()
    wait_until(lambda: not is_locked(folder), "its worker to let go")
    assert read_queue_record(folder) is not None
    lock = RunLock(folder)
    assert desk.mscope("runs", "resume", folder).returncode == 3
    lock.release()
    assert read_queue_record(folder) is not None  # what was not begun stays with its service

    resuming = desk.begin("runs", "resume", folder, "--quiet")
    wait_until(lambda: state(folder) == "running" and read_queue_record(folder) is None, "the run to be taken back")
    holder = lock_holder(folder)
    assert holder is not None
    assert holder.pid == resuming.pid
    assert desk.mscope("service", "start").returncode == 0
    cancelled = desk.mscope("runs", "cancel", folder)
    assert (cancelled.returncode, cancelled.stdout) == (0, f"{folder.name} asked to stop\n"), cancelled.stderr
    resuming.communicate(timeout=60)
    assert resuming.returncode == 128 + signal.SIGTERM
    assert state(folder) == "cancelled"


def test_a_run_that_the_service_disowns_is_cancelled_by_asking_its_process(desk: Background, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = desk.begin("run", "survivor.sampling", "--rows", 100_000, "--out", folder, "--quiet")
    wait_until(lambda: folder.is_dir() and has_begun(folder), "the run to begin")
    assert desk.mscope("service", "start").returncode == 0
    QueueRecord(time.time(), socket.gethostname(), sys.executable).write(folder)  # what an earlier mscope left there
    cancelled = desk.mscope("runs", "cancel", folder)
    assert (cancelled.returncode, cancelled.stderr) == (0, "")
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert state(folder) == "cancelled"


def test_a_run_is_found_from_another_data_folder_than_the_services(desk: Background, tmp_path: Path) -> None:
    assert desk.mscope("service", "start").returncode == 0
    submitted = desk.mscope("run", "survivor.sampling", "--rows", 3, "--detach", MSCOPE_DATA_DIR=str(tmp_path / "other"))
    run = submitted.stdout.strip()
    warning, hint = submitted.stderr.splitlines()
    assert warning.startswith(f"mscope: warning: the service writes to {runs_dir()} and not to {tmp_path / 'other' / 'runs'}: ")
    assert hint == f"mscope: to follow it: mscope runs watch {run}"
    watched = desk.mscope("runs", "watch", run, MSCOPE_DATA_DIR=str(tmp_path / "other"))
    assert (watched.returncode, watched.stdout) == (0, f"{run} done\n"), watched.stderr
    assert (runs_dir() / run / "job.json").is_file()
    assert json.loads(desk.mscope("runs", "list", "--json").stdout)["runs"][0]["run"] == run


def test_the_services_data_folder_under_another_name_is_not_another_one(desk: Background, tmp_path: Path) -> None:
    desk.submit(*QUICK)
    (tmp_path / "link").symlink_to(os.environ["MSCOPE_DATA_DIR"])
    submitted = desk.mscope("run", "survivor.sampling", "--rows", 3, "--detach", MSCOPE_DATA_DIR=str(tmp_path / "link"))
    assert submitted.returncode == 0
    assert "warning" not in submitted.stderr
    assert len(json.loads(desk.mscope("runs", "list", "--json", MSCOPE_DATA_DIR=str(tmp_path / "link")).stdout)["runs"]) == 2


def test_a_run_that_cannot_be_made_findable_is_named_by_its_folder(desk: Background, tmp_path: Path) -> None:
    assert desk.mscope("service", "start").returncode == 0
    (state_dir() / "runs.txt").mkdir()
    submitted = desk.mscope("run", "survivor.sampling", "--rows", 3, "--detach", MSCOPE_DATA_DIR=str(tmp_path / "other"))
    folder = runs_dir() / submitted.stdout.strip()
    place, warning, hint = submitted.stderr.splitlines()
    assert place.startswith(f"mscope: warning: the service writes to {runs_dir()} ")
    assert warning == f"mscope: warning: this run cannot be entered into the index of runs; find it by its folder, {folder}"
    assert hint == f"mscope: to follow it: mscope runs watch {folder}"
    assert desk.mscope("runs", "watch", folder, MSCOPE_DATA_DIR=str(tmp_path / "other")).returncode == 0
