"""Jobs of the real service and real workers, with real signals: what is killed, cancelled or short of memory, and what goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from service_process import Background, background, command, processes, wait_until
from service_process import state as stored_state

from modelscope_app.jobs import Client
from modelscope_app.jobs.client import JobInfo
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.status import read_status


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    with background(tmp_path / "site", monkeypatch) as made:
        install_hostile(tmp_path / "site")
        yield made


def install_hostile(site: Path) -> None:
    (site / "hostile-1.0.dist-info").mkdir()
    shutil.copy(Path(__file__).with_name("hostile.py"), site)
    (site / "hostile-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    (site / "hostile-1.0.dist-info" / "entry_points.txt").write_text("[modelscope_app]\nhostile = hostile\n")


@pytest.fixture
def client(jobs: Background) -> Iterator[Client]:
    with Client() as made:
        yield made


def configure(**values: Any) -> None:
    path = Path(os.environ["MSCOPE_CONFIG_DIR"]) / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[service]\n" + "".join(f"{name} = {value}\n" for name, value in values.items()))


def log_of(job: JobInfo) -> str:
    path = Path(job.folder) / "log.txt"
    return path.read_text() if path.exists() else ""


def begun(job: JobInfo) -> None:
    """Wait until it is in the middle of its work."""
    events = Path(job.folder) / "events.jsonl"
    wait_until(lambda: '"progress"' in events.read_text() if events.exists() else False, f"the first step of {job.run}")


def worker_of(job: JobInfo) -> int:
    pid: int = json.loads((Path(job.folder) / "lock").read_text())["pid"]
    return pid


def bits(folder: str | Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in RunFolder.open(Path(folder)).artifacts.items()}


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> None:
    """Steps of the plugin take so long; before the service starts, because workers take its environment."""
    monkeypatch.setenv("SURVIVOR_SLEEP", str(seconds))


def test_a_worker_killed_in_the_middle_loses_its_job_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    lost, other = client.submit("survivor.training", params={"rows": 100_000}), client.submit("survivor.printing")
    begun(lost)
    os.kill(worker_of(lost), signal.SIGKILL)
    ended = client.wait(lost.run)
    assert (ended.state, ended.exit_code) == ("lost", 4)
    assert "SIGKILL" in str(ended.error)
    assert client.wait(other.run).state == "done"


def test_a_job_goes_on_where_it_was_after_the_service_was_killed(client: Client, jobs: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    monkeypatch.setenv("MSCOPE_SAVE_INTERVAL_SECONDS", "0")
    job = client.submit("survivor.training", params={"rows": 150}, seed=3)
    queued = client.submit("survivor.two-passes")
    begun(job)
    jobs.kill_service()
    ended = client.wait(job.run)  # which starts it again
    assert ended.state == "done", ended.error
    assert client.wait(queued.run).state == "done"
    events = [json.loads(line) for line in (Path(job.folder) / "events.jsonl").read_text().splitlines()]
    states = [event["state"] for event in events if event["kind"] == "state"]
    assert states.count("lost") == 1
    assert states[-2:] == ["running", "done"]
    whole = client.wait(client.submit("survivor.training", params={"rows": 150}, seed=3).run)
    assert bits(job.folder) == bits(whole.folder) != {}


def test_a_job_without_anything_saved_is_lost_with_its_service(client: Client, jobs: Background) -> None:
    job = client.submit("survivor.sleeping")
    wait_until(lambda: "sleeping" in log_of(job), "the job")
    jobs.kill_service()
    wait_until(lambda: not jobs.workers(), "the end of the worker")
    ended = client.wait(job.run)
    assert ended.state == "lost"
    assert "service" in str(ended.error)
    assert client.wait(client.submit("survivor.printing").run).state == "done"


def test_killing_both_at_once_loses_nothing_that_was_saved(client: Client, jobs: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    monkeypatch.setenv("MSCOPE_SAVE_INTERVAL_SECONDS", "0")
    job = client.submit("survivor.two-passes", params={"rows": 200})
    begun(job)
    wait_until(lambda: list((Path(job.folder) / "stages" / "first").glob("state-*")), "a saved state")
    for pid in (jobs.service_pid, worker_of(job)):
        os.kill(pid, signal.SIGKILL)
    assert client.wait(job.run).state == "done"


def test_cancelled_during_a_step_it_ends_within_the_step_and_can_be_resumed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    job = client.submit("survivor.training", params={"rows": 400})
    begun(job)
    worker = worker_of(job)
    client.cancel(job.run)
    ended = client.wait(job.run)
    assert (ended.state, ended.exit_code, ended.error) == ("cancelled", 130, "cancelled")
    assert list((Path(job.folder) / "stages" / "train").glob("state-*"))
    assert client.resume(job.run).state in ("queued", "running")
    assert [one.run for one in client.jobs()] == [job.run]
    assert client.wait(job.run).state == "done"
    assert [(one.run, one.state) for one in client.jobs()] == [(job.run, "done")]
    assert worker in processes()  # nothing had to be killed


@pytest.mark.parametrize(("analysis", "word"), [("sleeping", "sleeping"), ("long-kernel", "backward")])
def test_a_job_that_does_not_listen_is_ended_by_sigterm(client: Client, analysis: str, word: str) -> None:
    configure(cancel_grace_seconds=0.3)
    job, other = client.submit(f"survivor.{analysis}"), client.submit("survivor.printing")
    wait_until(lambda: word in log_of(job), "the job")
    client.cancel(job.run)
    ended = client.wait(job.run)
    assert (ended.state, ended.exit_code) == ("cancelled", 130)
    assert client.wait(other.run).state == "done"


def test_cancelled_while_its_model_is_built(client: Client) -> None:
    configure(cancel_grace_seconds=0.3)
    job = client.submit("hostile.weighing", [made_model()])
    wait_until(lambda: "building" in log_of(job), "the model")
    assert stored_state(Path(job.folder)) == "running"
    client.cancel(job.run)
    assert client.wait(job.run).state == "cancelled"
    assert client.wait(client.submit("survivor.printing").run).state == "done"


def made_model() -> str:
    """The sample checkpoint as one of an architecture that the plugin builds, and takes its time over."""
    source = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp"
    folder = Path(os.environ["MSCOPE_DATA_DIR"]).parent / "slow-model"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "hostile-slow"}))
    return str(folder)


@pytest.mark.parametrize(
    ("analysis", "state", "said"),
    [
        ("survivor.raising", "failed", "KeyError"),
        ("survivor.panicking", "failed", "a library gave up"),
        ("survivor.exiting", "failed", "SystemExit"),
        ("survivor.filling", "failed", "out of memory"),
        ("hostile.limited", "failed", "out of memory"),
        ("hostile.full-disk", "failed", "the disk is full"),
        ("hostile.quitting", "lost", "exit code 3"),
        ("hostile.killed", "lost", "SIGKILL"),
        ("hostile.segfaulting", "lost", "SIGSEGV"),
        ("hostile.device-lost", "lost", "CUDA error"),
    ],
)
def test_however_a_job_ends_the_next_one_runs(client: Client, analysis: str, state: str, said: str) -> None:
    job, other = client.submit(analysis), client.submit("survivor.printing")
    ended, next_one = client.wait(job.run), client.wait(other.run)
    assert ended.state == state
    assert said in str(ended.error)
    assert next_one.state == "done"
    assert "Traceback" not in str(ended.error)
    workers = {read_status(Path(one.folder)).pid for one in (job, other)}
    assert len(workers) == (1 if state == "failed" else 2)


def test_what_a_job_prints_is_in_its_log_and_nowhere_else(client: Client) -> None:
    ended = client.wait(client.submit("survivor.printing").run)
    assert all(word in log_of(ended) for word in ("this belongs into the log", "echo so does this"[5:], "and this", "noise of a library"))


def test_a_job_too_big_for_the_pretended_device_fails_with_the_figures(client: Client) -> None:
    configure(memory_limit_gb="{cpu = 0.1}")
    job = client.wait(client.submit("hostile.hungry", params={"megabytes": 1000}).run)
    assert (job.state, job.exit_code) == ("failed", 4)
    assert "needs 1.0 GB" in str(job.error)
    assert "100 MB in all" in str(job.error)
    assert client.wait(client.submit("hostile.hungry", params={"megabytes": 50}).run).state == "done"


def test_a_job_waits_for_the_memory_another_one_has_and_says_for_how_much(client: Client) -> None:
    configure(memory_limit_gb="{cpu = 0.1}", cpu_workers=2)
    first = client.submit("hostile.hungry", params={"megabytes": 70, "steps": 100_000})
    begun(first)
    second = client.submit("hostile.hungry", params={"megabytes": 60, "steps": 100_000})
    wait_until(lambda: client.job(second.run).state == "waiting", "the wait")
    assert "60 MB of memory on cpu" in str(client.job(second.run).waiting_for)
    small = client.submit("hostile.hungry", params={"megabytes": 10})
    assert client.wait(small.run).state == "done"  # passes it
    assert not client.job(first.run).is_final
    third = client.submit("hostile.hungry", params={"megabytes": 60, "steps": 100_000})
    wait_until(lambda: client.job(third.run).state == "waiting", "the wait")
    client.cancel(third.run)
    assert client.wait(third.run).state == "cancelled"
    client.cancel(first.run)
    wait_until(lambda: client.job(second.run).state == "running", "its turn")
    client.cancel(second.run)
    assert client.wait(second.run).state == "cancelled"


def test_two_clients_submitting_at_once_start_one_service_and_lose_nothing(jobs: Background) -> None:
    words = command("run", "survivor.printing", "--detach", "--quiet")
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda _: subprocess.run(words, capture_output=True, text=True, timeout=120, check=False), range(8)))
    assert [one.returncode for one in ended] == [0] * 8, ended
    assert len(jobs.services()) == 1
    with Client() as client:
        assert {client.wait(one.stdout.strip()).state for one in ended} == {"done"}


def test_a_plugin_that_was_edited_is_what_runs_next(client: Client, tmp_path: Path) -> None:
    before = client.wait(client.submit("survivor.printing").run)
    plugin = tmp_path / "site" / "survivor.py"
    plugin.write_text(plugin.read_text().replace("this belongs into the log", "edited"))
    after = client.wait(client.submit("survivor.printing").run)
    assert "edited" not in log_of(before)
    assert "edited" in log_of(after)


def test_the_same_model_stays_resident_until_its_files_change(client: Client, tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "sample_checkpoints"
    copy = tmp_path / "model"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((source / "digits-mlp" / name).read_bytes())
    results = [client.wait(client.submit("hostile.weighing", [str(copy)]).run) for _ in range(2)]
    (first,) = client.resident()
    (copy / "model.safetensors").write_bytes((source / "digits-mlp-b" / "model.safetensors").read_bytes())
    results.append(client.wait(client.submit("hostile.weighing", [str(copy)]).run))
    (second,) = client.resident()
    sums = [RunFolder.open(Path(one.folder)).facts["sum"] for one in results]
    assert sums[0] == sums[1] != sums[2]
    assert first.fingerprint != second.fingerprint
    assert first.path == second.path == str(copy)


def test_a_spoilt_model_is_loaded_anew(client: Client) -> None:
    sample = str(Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp")
    results = [client.wait(client.submit(f"hostile.{name}", [sample]).run) for name in ("weighing", "spoiling", "weighing")]
    assert [one.state for one in results] == ["done"] * 3
    before, _, after = (RunFolder.open(Path(one.folder)).facts for one in results)
    assert before == after


def test_what_a_job_does_to_its_process_is_undone(client: Client) -> None:
    facts = []
    for name in ("tidy", "littering", "tidy"):
        ended = client.wait(client.submit(f"hostile.{name}").run)
        assert ended.state == "done", ended.error
        facts.append(RunFolder.open(Path(ended.folder)).facts)
    assert facts[0] == facts[2]
    assert facts[0]["dtype"] == "torch.float32"
