"""The service itself, a real process, with workers that pretend: several GPUs, workers that die in every way, jobs that do not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import modelscope_app
from modelscope_app.jobs.address import lock_path, service_socket
from modelscope_app.runs.queue_record import read_queue_record
from modelscope_app.runs.status import read_status

PATIENCE_SECONDS = 60
FINAL = {"done", "failed", "cancelled", "lost"}


def until(what: Callable[[], Any]) -> Any:
    """What `what` gives once it gives something; fails after a minute."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


class Machine:
    """A machine with pretended devices, its service, and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.interpreter = folder / "python"
        self.processes: list[subprocess.Popen[bytes]] = []
        shutil.copy(Path(__file__).with_name("pretend_interpreter.py"), folder / "pretend.py")
        self.interpreter.write_text(f"#!{sys.executable}\n" + (folder / "pretend.py").read_text())
        self.interpreter.chmod(0o755)
        self.has(cpu=10_000)

    def has(self, fail_hello: int = 0, **devices: int) -> None:
        named = {name.replace("_", ":"): size for name, size in devices.items()}
        (self.folder / "machine.json").write_text(json.dumps({"devices": named, "fail_hello": fail_hello}))

    def configure(self, **values: Any) -> None:
        path = Path(os.environ["MSCOPE_CONFIG_DIR"]) / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[service]\n" + "".join(f"{name} = {value}\n" for name, value in values.items()))

    def start(self) -> None:
        environment = {**os.environ, "PRETEND_PACKAGE": str(Path(modelscope_app.__file__).parents[1])}
        log = Path(os.environ["MSCOPE_STATE_DIR"]) / "service.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            words = [sys.executable, "-P", "-m", "modelscope_app.jobs.service"]
            process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        self.processes.append(process)
        until(lambda: self.answers() or process.poll() is not None)
        assert process.poll() is None, log.read_text()

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/health")["pid"] == self.processes[-1].pid
        except httpx2.TransportError:
            return False

    def ask(self, method: str, path: str, expect: int = 200, **body: Any) -> Any:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(service_socket())), base_url="http://localhost", timeout=60) as client:
            answer = client.request(method, path, json=body if method == "POST" else None)
        assert answer.status_code == expect, answer.text
        return answer.json()

    def submit(self, device: str = "auto", checkpoints: tuple[str, ...] = (), **params: Any) -> dict[str, Any]:
        body = {"analysis": "pretend.work", "checkpoints": list(checkpoints), "params": params, "device": device}
        return dict(self.ask("POST", "/jobs", expect=201, interpreter=str(self.interpreter), **body))

    def ended(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job, once it is in a final state and off the queue."""
        return dict(until(lambda: (now := self.ask("GET", f"/jobs/{job['run']}"))["state"] in FINAL and self._is_off(job) and now))

    def _is_off(self, job: dict[str, Any]) -> bool:
        return read_queue_record(Path(job["folder"])) is None

    def heard(self, word: str = "run") -> list[dict[str, Any]]:
        path = self.folder / "heard.jsonl"
        messages = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [message for message in messages if message["do"] == word]

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(30)
        for pid in {message["pid"] for message in self.heard("run")}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.end()


def test_jobs_on_one_device_follow_one_another_and_other_devices_run_beside_it(machine: Machine) -> None:
    machine.has(cpu=10, cuda_0=10, cuda_1=10)
    machine.start()
    jobs = [machine.submit(device, seconds=0.3) for device in ("cuda:0", "cuda:1", "cuda:0", "cpu")]
    ended = [machine.ended(job) for job in jobs]
    assert [job["state"] for job in ended] == ["done"] * 4
    assert [job["device"] for job in ended] == ["cuda:0", "cuda:1", "cuda:0", "cpu"]
    began = {message["folder"]: message for message in machine.heard()}
    times = [began[job["folder"]]["time"] for job in jobs]
    assert times[2] >= times[0] + 0.3  # the same device
    assert began[jobs[0]["folder"]]["pid"] == began[jobs[2]["folder"]]["pid"]
    assert len({message["pid"] for message in machine.heard()}) == 3


def test_auto_goes_to_the_gpu_that_holds_the_model_and_else_to_an_idle_one(machine: Machine) -> None:
    machine.has(cpu=10, cuda_0=10, cuda_1=10)
    machine.start()
    first = machine.ended(machine.submit("cuda:1", checkpoints=("/model",)))
    assert first["device"] == "cuda:1"
    assert machine.ended(machine.submit(checkpoints=("/model",)))["device"] == "cuda:1"
    busy = machine.submit("cuda:0", seconds=30)
    until(lambda: machine.ask("GET", f"/jobs/{busy['run']}")["state"] == "running")
    assert machine.ended(machine.submit())["device"] == "cuda:1"
    machine.ask("POST", f"/jobs/{busy['run']}/cancel")
    assert machine.ended(busy)["state"] == "cancelled"


def test_two_cpu_workers_run_two_jobs_at_a_time(machine: Machine) -> None:
    machine.configure(cpu_workers=2)
    machine.start()
    jobs = [machine.submit(seconds=1.0) for _ in range(2)]
    until(lambda: len(machine.ask("GET", "/devices")["devices"][0]["running"]) == 2)
    assert {machine.ended(job)["state"] for job in jobs} == {"done"}
    assert len({message["pid"] for message in machine.heard()}) == 2


def test_a_device_that_is_not_there_fails_the_job_with_a_sentence(machine: Machine) -> None:
    machine.start()
    job = machine.ended(machine.submit("cuda:3"))
    assert (job["state"], job["exit_code"]) == ("failed", 2)
    assert "cuda:3: is not there; this machine has cpu" in job["error"]


@pytest.mark.parametrize(("end", "reason"), [("segfault", "SIGSEGV"), ("exit", "exit code 7")])
def test_a_worker_that_dies_loses_its_job_alone(machine: Machine, end: str, reason: str) -> None:
    machine.start()
    jobs = [machine.submit(end=end), machine.submit(), machine.submit()]
    lost, *others = [machine.ended(job) for job in jobs]
    assert lost["state"] == "lost"
    assert reason in lost["error"]
    assert {job["state"] for job in others} == {"done"}
    assert len({message["pid"] for message in machine.heard()}) == 2


def test_a_job_that_kills_every_worker_before_it_begins_is_given_up(machine: Machine) -> None:
    machine.start()
    first, second = machine.submit(end="die-early"), machine.submit()
    assert machine.ended(first)["state"] == "lost"
    assert machine.ended(second)["state"] == "done"
    assert sum(message["folder"] == first["folder"] for message in machine.heard()) == 3


def test_a_worker_that_starts_at_the_second_try_loses_nothing(machine: Machine) -> None:
    machine.has(cpu=10, fail_hello=2)
    machine.start()
    assert machine.ended(machine.submit())["state"] == "done"


def test_an_interpreter_whose_workers_never_start_fails_its_jobs_with_the_reason(machine: Machine) -> None:
    machine.has(cpu=10, fail_hello=1000)
    machine.start()
    for job in [machine.ended(job) for job in (machine.submit(), machine.submit())]:
        assert (job["state"], job["exit_code"]) == ("failed", 4)
        assert "exit code 1" in job["error"]
        assert "no torch" in job["error"]


def test_a_job_that_does_not_fit_waits_says_so_and_lets_others_pass(machine: Machine) -> None:
    machine.start()
    waiting, other = machine.submit(end="short"), machine.submit()
    assert machine.ended(other)["state"] == "done"
    now = until(lambda: (job := machine.ask("GET", f"/jobs/{waiting['run']}"))["state"] == "waiting" and job)
    assert now["waiting_for"] == "3.0 GB of memory on cpu; 1.0 GB are free"
    until(lambda: read_status(Path(waiting["folder"])).state == "waiting")
    assert read_status(Path(waiting["folder"])).waiting_for == now["waiting_for"]
    (machine.folder / "room").touch()
    ended = machine.ended(waiting)
    assert (ended["state"], ended["waiting_for"]) == ("done", None)


@pytest.mark.parametrize("end", ["short", "never"])
def test_auto_tries_the_other_gpus_before_it_waits_or_gives_up(machine: Machine, end: str) -> None:
    machine.has(cuda_0=10, cuda_1=10, cuda_2=10, cpu=10)
    machine.start()
    assert machine.ended(machine.submit("cuda:0", checkpoints=("/model",)))["state"] == "done"
    job = machine.ended(machine.submit(checkpoints=("/model",), end=end, only_on="cuda:2"))
    assert (job["state"], job["device"]) == ("done", "cuda:2")
    asked = machine.submit("cuda:1", end=end, only_on="cuda:2")
    state = until(lambda: (now := machine.ask("GET", f"/jobs/{asked['run']}")["state"]) in ("waiting", "failed") and now)
    assert state == {"short": "waiting", "never": "failed"}[end]


def test_a_waiting_job_is_cancelled_at_once(machine: Machine) -> None:
    machine.start()
    job = machine.submit(end="short")
    until(lambda: machine.ask("GET", f"/jobs/{job['run']}")["state"] == "waiting")
    machine.ask("POST", f"/jobs/{job['run']}/cancel")
    assert machine.ended(job)["exit_code"] == 130


def test_a_job_that_can_never_fit_fails_with_the_figures(machine: Machine) -> None:
    machine.start()
    job = machine.ended(machine.submit(end="never"))
    assert (job["state"], job["exit_code"]) == ("failed", 4)
    assert "needs 3.0 GB" in job["error"]
    assert "2.0 GB in all" in job["error"]


def test_a_deaf_job_is_killed_and_cancelled_all_the_same(machine: Machine) -> None:
    machine.configure(cancel_grace_seconds=0.2)
    machine.start()
    job, other = machine.submit(end="deaf"), machine.submit()
    until(lambda: machine.ask("GET", f"/jobs/{job['run']}")["state"] == "running")
    machine.ask("POST", f"/jobs/{job['run']}/cancel")
    ended = machine.ended(job)
    assert (ended["state"], ended["exit_code"]) == ("cancelled", 130)
    assert ended["error"] == "cancelled; it did not stop by itself, and its worker was killed"
    assert machine.ended(other)["state"] == "done"


def test_cancelling_a_queued_job_leaves_the_others(machine: Machine) -> None:
    machine.start()
    jobs = [machine.submit(seconds=1000), machine.submit(), machine.submit()]
    cancelled = machine.ask("POST", f"/jobs/{jobs[1]['run']}/cancel")
    assert cancelled["state"] == "cancelled"
    machine.ask("POST", f"/jobs/{jobs[0]['run']}/cancel")
    assert [machine.ended(job)["state"] for job in jobs] == ["cancelled", "cancelled", "done"]
    assert jobs[1]["folder"] not in {message["folder"] for message in machine.heard()}
    machine.ask("POST", f"/jobs/{jobs[1]['run']}/cancel", expect=409)


def test_idle_models_and_workers_go_and_then_the_service(machine: Machine) -> None:
    machine.configure(resident_idle_minutes=0.01, idle_minutes=0.05)
    machine.start()
    machine.ended(machine.submit(checkpoints=("/model",)))
    (resident,) = until(lambda: machine.ask("GET", "/checkpoints")["resident"])
    assert (resident["path"], resident["memory_bytes"]) == ("/model", 100)
    until(lambda: not machine.ask("GET", "/checkpoints")["resident"])
    until(lambda: not machine.ask("GET", "/devices")["devices"][0]["workers"])
    assert machine.processes[0].wait(PATIENCE_SECONDS) == 0
    assert not service_socket().exists()


def test_unloading_by_path_by_fingerprint_and_all(machine: Machine) -> None:
    machine.start()
    for path in ("/one", "/two", "/three"):
        machine.ended(machine.submit(checkpoints=(path,)))
    assert machine.ask("POST", "/checkpoints/unload", checkpoint="/one/") == {"unloaded": 1}
    until(lambda: {model["path"] for model in machine.ask("GET", "/checkpoints")["resident"]} == {"/two", "/three"})
    assert machine.ask("POST", "/checkpoints/unload", checkpoint="/nowhere") == {"unloaded": 0}
    assert machine.ask("POST", "/checkpoints/unload") == {"unloaded": 2}
    until(lambda: not machine.ask("GET", "/checkpoints")["resident"])


def test_nobody_else_can_reach_the_socket_and_no_port_is_open(machine: Machine) -> None:
    machine.start()
    path = service_socket()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(lock_path().stat().st_mode) == 0o600
    pid = machine.processes[0].pid
    inodes = {descriptor.readlink().name for descriptor in Path(f"/proc/{pid}/fd").iterdir() if descriptor.is_symlink()}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        owned = {f"socket:[{line.split()[9]}]" for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]}
        assert not owned & inodes


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user takes root")
def test_another_user_cannot_connect(machine: Machine) -> None:
    machine.start()
    path = service_socket()
    for parent in path.parents:  # all that is above the socket's own folder is open, so that its mode alone keeps others out
        if parent != path.parent and parent.owner() == "root" and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    script = (
        "import os, socket, sys\nos.setgid(65534); os.setuid(65534)\n"
        "try:\n    socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
        "except PermissionError:\n    sys.exit(77)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 77
    path.parent.chmod(0o755)
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 77  # the socket's own mode


def test_two_services_starting_at_once_end_as_one(machine: Machine) -> None:
    words = [sys.executable, "-P", "-m", "modelscope_app.jobs.service"]
    machine.processes = [subprocess.Popen(words, stderr=subprocess.DEVNULL) for _ in range(4)]
    until(lambda: sum(process.poll() is None for process in machine.processes) == 1 and service_socket().exists())
    (alive,) = [process for process in machine.processes if process.poll() is None]
    assert {process.returncode for process in machine.processes if process is not alive} == {0}
    machine.processes.append(alive)
    until(machine.answers)


def test_a_stale_socket_is_replaced_and_a_vanished_one_made_again(machine: Machine) -> None:
    machine.start()
    machine.processes[0].kill()
    machine.processes[0].wait()
    assert service_socket().exists()
    machine.start()
    service_socket().unlink()
    until(machine.answers)
    shutil.rmtree(service_socket().parent)
    until(machine.answers)
    assert stat.S_IMODE(service_socket().stat().st_mode) == 0o600


def test_a_runtime_folder_with_a_long_path_gets_a_short_socket(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_RUNTIME_DIR", str(machine.folder / ("long" * 30)))
    machine.start()
    assert len(os.fsencode(service_socket())) < 100
    assert stat.S_IMODE(service_socket().parent.stat().st_mode) == 0o700


def test_a_client_of_another_version_gets_a_sentence(machine: Machine) -> None:
    machine.start()
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(service_socket()))) as client:
        answer = client.get("http://localhost/jobs", headers={"Mscope-Api": "2"})
        assert answer.status_code == 409
        assert "speaks version 1 of its API, and this client version 2" in answer.json()["error"]
        assert client.get("http://localhost/jobs").headers["Mscope-Api"] == "1"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"interpreter": "python"}', "absolute path"),
        (b'{"interpreter": "/nowhere/python"}', "absolute path"),
        (b'{"interpreter": 3}', "takes a text"),
        (b'{"analysis": "weights.stats", "colour": "red"}', "'colour' means nothing here"),
        (b'{"run": "/nowhere"}', "not a run folder"),
        (b'{"run": "x/y", "cwd": "/nowhere"}', "'/nowhere/x/y': not a run folder"),
        (b'{"run": "/nowhere", "seed": 3}', "'seed' means nothing here"),
        (b'{"analysis": "a.b", "params": {"x": NaN}}', "not valid JSON"),
        (b'{"analysis": "a.b", "seed": 1e999}', "not valid JSON"),
        (b'{"analysis": "a.b", "python_path": "\\ud800"}', "not valid JSON"),
        (b'{"analysis": "a.b", "python_path": "\\u0000"}', "cannot hold a NUL"),
    ],
)
def test_a_malformed_submission_is_refused_with_a_sentence(machine: Machine, body: bytes, sentence: str) -> None:
    machine.start()
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(service_socket()))) as client:
        answer = client.post("http://localhost/jobs", content=body)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]
    machine.ask("POST", "/shutdown")
    assert machine.processes[0].wait(PATIENCE_SECONDS) == 0


def test_a_preparer_that_dies_is_said_and_replaced(machine: Machine) -> None:
    machine.start()
    body = {"analysis": "pretend.die", "interpreter": str(machine.interpreter)}
    machine.ended(machine.submit())  # it answers this one
    assert "exit code 9" in machine.ask("POST", "/jobs", expect=500, **body)["error"]
    no_mscope = machine.folder / "bare"
    no_mscope.write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")
    no_mscope.chmod(0o755)
    sentence = machine.ask("POST", "/jobs", expect=400, analysis="a.b", interpreter=str(no_mscope))["error"]
    assert sentence.endswith("modelscope-app may not be installed there (no such module)")
    assert machine.ended(machine.submit())["state"] == "done"


def test_shutting_down_is_refused_while_there_are_jobs_and_forced_keeps_them(machine: Machine) -> None:
    machine.start()
    running, queued = machine.submit(seconds=1000), machine.submit()
    until(lambda: machine.ask("GET", f"/jobs/{running['run']}")["state"] == "running")
    assert "1 job is running and 1 is queued" in machine.ask("POST", "/shutdown", expect=409)["error"]
    machine.ask("POST", "/shutdown", force=True)
    assert machine.processes[0].wait(PATIENCE_SECONDS) == 0
    assert {read_status(Path(job["folder"])).state for job in (running, queued)} == {"queued"}
    machine.start()
    until(lambda: machine.ask("GET", f"/jobs/{running['run']}")["state"] == "running")
    machine.ask("POST", f"/jobs/{running['run']}/cancel")
    assert [machine.ended(job)["state"] for job in (running, queued)] == ["cancelled", "done"]


def test_a_killed_service_leaves_its_queue_to_the_next_one(machine: Machine) -> None:
    machine.start()
    running, *queued = [machine.submit(seconds=1000), *(machine.submit() for _ in range(3))]
    until(lambda: machine.ask("GET", f"/jobs/{running['run']}")["state"] == "running")
    machine.processes[-1].kill()
    machine.processes[-1].wait()
    machine.start()
    lost = machine.ended(running)
    assert (lost["state"], lost["error"]) == ("lost", "the service was lost while it ran")
    assert [machine.ended(job)["state"] for job in queued] == ["done"] * 3
    order = [message["folder"] for message in machine.heard()]
    assert order == [running["folder"], *(job["folder"] for job in queued)]


def test_another_machines_queue_is_left_alone(machine: Machine) -> None:
    machine.start()
    job = machine.submit(seconds=1000)
    other = machine.submit()
    until(lambda: machine.ask("GET", f"/jobs/{job['run']}")["state"] == "running")
    machine.processes[-1].kill()
    machine.processes[-1].wait()
    path = Path(other["folder"]) / "queue.json"
    path.write_text(path.read_text().replace(socket.gethostname(), "elsewhere"))
    machine.start()
    machine.ended(job)
    assert read_status(Path(other["folder"])).state == "queued"
    assert other["folder"] not in {message["folder"] for message in machine.heard()}


def test_events_follow_from_a_number_to_the_end(machine: Machine) -> None:
    machine.start()
    job = machine.submit(seconds=0.5)
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(service_socket())), timeout=60) as client:
        with client.stream("GET", f"http://localhost/jobs/{job['run']}/events?follow=true") as answer:
            events = [json.loads(line) for line in answer.iter_lines() if line.strip()]
        assert events[-1]["state"] == "done"
        assert [event["seq"] for event in events] == list(range(len(events)))
        assert client.get(f"http://localhost/jobs/{job['run']}/events?since={len(events)}").text == ""
        assert client.get(f"http://localhost/jobs/{job['run']}/events?since=x").status_code == 400
    machine.ask("GET", "/jobs/nothing", expect=404)


def test_the_service_has_no_torch_and_stays_small_over_many_jobs(machine: Machine) -> None:
    machine.start()
    pid = machine.processes[0].pid

    def resident_mb() -> float:
        (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) / 1024

    for _ in range(20):
        last = machine.submit()
    machine.ended(last)
    early = resident_mb()
    for _ in range(200):
        last = machine.submit()
    machine.ended(last)
    assert resident_mb() < min(80, early + 5)
    assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < 40
    assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
