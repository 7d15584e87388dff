"""Finding the service and starting it: stale sockets, two at once, what cannot start, and what is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs.pretend_service import Request, answer, job, pretending
from service_process import Background, background, processes, wait_until

from modelscope_app.api import BadInput, JobFailed
from modelscope_app.jobs import AsyncClient, Client, conversation
from modelscope_app.jobs.address import lock_path, log_path, make_private_folder, service_socket
from modelscope_app.jobs.answers import NotRunning, ShuttingDown
from modelscope_app.jobs.starting import ensure_service, is_lock_held, is_running
from modelscope_app.locations import runtime_dir

ENSURE = "from modelscope_app.jobs.starting import ensure_service; print(ensure_service(60))"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    with background(tmp_path / "site", monkeypatch) as made:
        yield made


def stop() -> None:
    with Client(start=False) as client:
        client.shutdown()
    wait_until(lambda: not is_lock_held(), "the end of the service")


def test_a_client_starts_the_service_and_the_next_one_finds_it(desk: Background) -> None:
    assert not is_running()
    with Client() as client:
        pid = client.health().pid
    with Client(start=False) as client:
        assert client.health().pid == pid
        assert client.jobs() == ()
    assert desk.services() == [pid]
    assert desk.workers() == []  # nothing was asked of one


def test_an_awaited_client_starts_the_service_too(desk: Background) -> None:
    async def pid() -> int:
        async with AsyncClient() as client:
            return (await client.health()).pid

    assert [asyncio.run(pid())] == desk.services()


def test_a_client_finds_the_service_again_after_it_was_started_anew(desk: Background) -> None:
    with Client() as client:
        first = client.health().pid
        desk.kill_service()
        second = client.health().pid
        assert second != first
        stop()
        assert client.health().pid not in (first, second)


@pytest.mark.parametrize("method", ["submit", "resume"])
def test_a_submission_to_a_service_that_is_ending_goes_to_the_next_one(desk: Background, method: str) -> None:
    submitted = desk.submit("raising")
    with Client() as client:
        assert client.wait(submitted.name).state == "failed"
    stop()

    def answers(request: Request) -> bytes:
        if request.path == "/jobs" and len([one for one in requests if one.path == "/jobs"]) == 3:
            service_socket().unlink()  # the last that a service does which ends
        return answer({"error": "the service is ending", "exit_code": 3}, 503 if request.path == "/jobs" else 200)

    with pretending(answers) as requests, Client() as client:
        queued = client.submit("survivor.raising") if method == "submit" else client.resume(submitted)
        assert client.wait(queued.run).state == "failed"
    asked = [request for request in requests if request.path == "/jobs"]
    assert len(asked) == 3
    assert (queued.folder == str(submitted)) == (method == "resume")
    assert json.loads((submitted / "status.json").read_text())["attempts"] == (2 if method == "resume" else 1)


def test_a_submission_is_refused_by_a_service_that_does_not_come_to_its_end(desk: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "PATIENCE_SECONDS", 0.5)
    ending = answer({"error": "the service is ending", "exit_code": 3}, 503)
    with pretending(lambda request: answer({}) if request.path == "/health" else ending):
        with Client() as client, pytest.raises(ShuttingDown, match=r"^the service is ending$"):
            client.submit("survivor.raising")
        with Client(start=False) as client, pytest.raises(ShuttingDown, match=r"^the service is ending$"):
            client.submit("survivor.raising")
    assert processes() == {}


def test_a_submission_that_took_long_before_its_service_ended_is_made_again(desk: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "PATIENCE_SECONDS", 1.0)

    def answers(request: Request) -> Iterator[bytes]:
        is_first = request.path == "/jobs" and len([one for one in requests if one.path == "/jobs"]) == 1
        if is_first:
            time.sleep(2.0)
        yield answer({"error": "ending"}, 503) if is_first else answer(job())

    with pretending(answers) as requests, Client() as client:
        assert client.submit("survivor.raising").run == "run-1"


def test_a_client_that_must_not_start_the_service_does_not(desk: Background) -> None:
    with Client(start=False) as client, pytest.raises(NotRunning):
        client.jobs()
    assert processes() == {}


def test_many_at_once_start_one_service(desk: Background) -> None:
    starting = [subprocess.Popen([sys.executable, "-c", ENSURE], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answered = {process.communicate(timeout=120)[0].strip() for process in starting}
    assert answered == {str(service_socket())}
    wait_until(lambda: len(desk.services()) == 1, "the losers to go")
    assert desk.services() == [desk.service_pid]


def test_a_stale_socket_is_replaced(desk: Background) -> None:
    path = service_socket()
    make_private_folder(path.parent)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
    assert path.is_socket()
    assert not is_running()
    assert ensure_service() == path
    assert is_running()


def test_a_file_in_the_place_of_the_socket_is_replaced(desk: Background) -> None:
    make_private_folder(service_socket().parent)
    service_socket().write_text("no socket")
    ensure_service()
    assert is_running()


def test_a_vanished_socket_comes_back_with_the_same_service(desk: Background) -> None:
    ensure_service()
    pid = desk.service_pid
    service_socket().unlink()
    with Client() as client:
        assert client.health().pid == pid
    wait_until(lambda: desk.services() == [pid], "the others to go")


def test_a_service_that_cannot_start_says_why(desk: Background) -> None:
    config = Path(os.environ["MSCOPE_CONFIG_DIR"]) / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[service]\nbogus = 1\n")
    with Client() as client, pytest.raises(BadInput) as error:
        client.jobs()
    assert str(error.value).startswith(
        f"the service could not start: {config}: unknown key service.bogus; known are service.idle_minutes, "
    )
    assert str(error.value).endswith("service.memory_limit_gb")
    assert desk.services() == []


def test_a_folder_for_sockets_that_nobody_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSCOPE_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert runtime_dir() == Path(tempfile.gettempdir()) / f"modelscope-app-{os.getuid()}"
    (tmp_path / "run").mkdir()
    assert runtime_dir() == tmp_path / "run" / "modelscope-app"


def test_a_service_that_does_not_answer_is_named(desk: Background) -> None:
    ensure_service()
    pid = desk.service_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(JobFailed) as error:
            ensure_service(limit_seconds=0.5)
        assert f"the service (process {pid}) does not answer" in str(error.value)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ensure_service() == service_socket()


def test_a_state_folder_that_cannot_be_written_is_named(desk: Background, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MSCOPE_STATE_DIR", str(tmp_path / "file" / "state"))
    with pytest.raises(BadInput, match=r"so the service cannot be started; set MSCOPE_STATE_DIR"):
        ensure_service()


def test_the_service_lives_in_a_session_of_its_own_and_holds_nothing_of_its_starter(desk: Background, tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", ENSURE], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stderr == ""  # the pipes were closed, or this would not have returned
    pid = desk.service_pid
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    streams = [Path(f"/proc/{pid}/fd/{number}").readlink() for number in range(3)]
    assert streams == [Path("/dev/null"), log_path(), log_path()]


def test_folders_that_were_named_relatively_are_the_same_for_the_service(desk: Background, tmp_path: Path) -> None:
    here = {**os.environ, "MSCOPE_DATA_DIR": "data", "PYTHONPATH": "site"}
    subprocess.run([sys.executable, "-c", ENSURE], cwd=tmp_path, env=here, capture_output=True, timeout=120, check=True)
    environment = Path(f"/proc/{desk.service_pid}/environ").read_text().split("\0")
    assert f"MSCOPE_DATA_DIR={tmp_path / 'data'}" in environment
    assert f"PYTHONPATH={tmp_path / 'site'}" in environment


def test_a_client_that_lives_on_keeps_no_zombie(desk: Background) -> None:
    ensure_service()
    pid = desk.service_pid
    stop()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the zombie to go")


def test_state_and_log_are_the_users_alone(desk: Background) -> None:
    ensure_service()
    assert log_path().parent.stat().st_mode & 0o077 == 0
    assert log_path().stat().st_mode & 0o077 == 0
    assert json.loads(lock_path().read_bytes())["socket"] == str(service_socket())
