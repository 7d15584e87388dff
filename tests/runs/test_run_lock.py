"""The lock says which process holds a run, and what for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from runs.made_runs import made_run

from modelscope_app.api import BadInput
from modelscope_app.runs.lock import LockHolder, RunLock, is_locked, lock_holder
from modelscope_app.runs.status import Status, write_status

HOLD = """
import sys, time
from pathlib import Path
from modelscope_app.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]), sys.argv[2])
print("held", flush=True)
time.sleep(60)
"""


def holding(folder: Path, purpose: str) -> subprocess.Popen[str]:
    """A process that holds the lock of a run for a minute."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), purpose], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("purpose", ["execute", "remove"])
def test_the_holder_is_the_process_with_the_lock_and_nobody_once_it_is_killed(tmp_path: Path, purpose: str) -> None:
    run = made_run(tmp_path / "run")
    assert lock_holder(run.folder) is None
    process = holding(run.folder, purpose)
    try:
        holder = lock_holder(run.folder)
        assert holder is not None
        assert (holder.pid, holder.host, holder.purpose) == (process.pid, socket.gethostname(), purpose)
        assert holder.is_alive
        with pytest.raises(BadInput, match="another process"):
            RunLock(run.folder)
    finally:
        process.kill()
        process.communicate()
    assert not is_locked(run.folder)
    assert lock_holder(run.folder) is None
    assert not holder.is_alive


def test_a_later_process_of_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    lock = RunLock(run.folder)
    holder = lock_holder(run.folder)
    lock.release()
    assert holder is not None
    assert holder.is_alive
    assert holder.started is not None
    for changes in ({"started": holder.started + 1}, {"pid": -1}, {"pid": 0}, {"pid": 10**12}, {"host": "elsewhere"}):
        assert not LockHolder(**{**asdict(holder), **changes}).is_alive


@pytest.mark.parametrize("content", ["", "5", "{", '{"pid": "1", "host": "x", "purpose": "execute", "started": 1}'])
def test_a_held_lock_that_names_nobody_is_a_sentence(tmp_path: Path, content: str) -> None:
    run = made_run(tmp_path / "run")
    lock = RunLock(run.folder)
    (run.folder / "lock").write_text(content)
    with pytest.raises(BadInput, match="does not say by which process"):
        lock_holder(run.folder)
    lock.release()


def test_a_run_that_was_removed_is_not_locked(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no longer there"):
        RunLock(tmp_path / "gone")
    (tmp_path / "run" / "lock").mkdir(parents=True)
    with pytest.raises(BadInput, match="cannot be locked"):
        RunLock(tmp_path / "run")


def test_waiting_for_the_lock_of_a_run_that_goes_away_is_a_sentence(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    remover = RunLock(run.folder, "remove")
    waiting = subprocess.Popen([sys.executable, "-c", HOLD, str(run.folder), "execute"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    lock = (run.folder / "lock").stat().st_ino
    while time.monotonic() < deadline and not has_open(waiting.pid, lock):
        time.sleep(0.005)
    (run.folder / "lock").unlink()
    remover.release()
    assert "was removed by another process" in waiting.communicate(timeout=30)[1]


def has_open(pid: int, inode: int) -> bool:
    """Whether a process has this file open."""
    try:
        return any(path.stat().st_ino == inode for path in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_an_unfinished_run_is_running_while_its_lock_is_held(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    write_status(run.folder, Status(state="running", pid=1, host="an earlier attempt"))
    process = holding(run.folder, "execute")
    assert run.status == "running"
    assert json.loads((run.folder / "lock").read_text())["pid"] == process.pid
    process.kill()
    process.communicate()
    assert run.status == "lost"


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_executor(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom modelscope_app.runs.lock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1]))\nready, is_up = os.pipe()\nchild = os.fork()\n"
        "if child == 0:\n    os.write(is_up, b'x')\n    time.sleep(60)\n    os._exit(0)\n"
        "os.read(ready, 1)\nprint(child, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(run.folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_locked(run.folder)
    parent.kill()
    parent.wait()
    try:
        assert not is_locked(run.folder)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_forked_child_does_not_keep_a_lock_that_was_released(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    lock = RunLock(run.folder)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        assert is_locked(run.folder)
        lock.release()
        assert not is_locked(run.folder)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_who_brings_the_queue_into_order_is_waited_for_and_is_not_the_executor(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    lock = RunLock(run.folder, "queue")
    with pytest.raises(BadInput, match="does not say by which process"):
        lock_holder(run.folder)
    lock.release()
    assert lock_holder(run.folder) is None
