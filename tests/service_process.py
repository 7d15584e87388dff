"""A service for one test: folders of its own, a plugin to run, and the end of every process that was started for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from modelscope_app.jobs.address import lock_path

PATIENCE_SECONDS = 60.0
"""Far longer than anything takes; a test that waits so long has failed."""


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Look every 20 ms until it holds; fail with `what` where it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)


class Background:
    """Runs `mscope` as a user does who gives jobs to the service."""

    def mscope(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            command(*words), env={**os.environ, **environment}, capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=False
        )

    def begin(self, *words: object, **environment: str) -> subprocess.Popen[str]:
        """Start it."""
        return subprocess.Popen(
            command(*words), env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def submit(self, analysis: str, *words: object) -> Path:
        """Give a job of the plugin `survivor` to the service; its run folder."""
        ended = self.mscope("run", f"survivor.{analysis}", "--detach", "--json", "--quiet", *words)
        assert ended.returncode == 0, ended.stderr
        return Path(json.loads(ended.stdout)["folder"])

    @property
    def service_pid(self) -> int:
        """Of the service that runs, or ran last."""
        pid: int = json.loads(lock_path().read_bytes())["pid"]
        return pid

    def kill_service(self) -> None:
        """As the system does for want of memory."""
        pid = self.service_pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid not in processes(), "the end of the service")

    def workers(self) -> list[int]:
        """Their processes."""
        return [pid for pid, line in processes().items() if "modelscope_app.jobs.worker" in line]

    def services(self) -> list[int]:
        """Their processes."""
        return [pid for pid, line in processes().items() if "modelscope_app.jobs.service" in line]


def command(*words: object) -> list[str]:
    """`mscope` of this interpreter."""
    return [sys.executable, "-m", "modelscope_app.cli.main", *map(str, words)]


def state(folder: Path) -> str:
    """How a run stands, as its status.json says."""
    try:
        found: str = json.loads((folder / "status.json").read_bytes())["state"]
    except FileNotFoundError:
        return "absent"
    return found


def processes() -> dict[int, str]:
    """Command lines by pid of all processes of this test, told by the state folder in their environment. Zombies are none."""
    mark = f"MSCOPE_STATE_DIR={os.environ['MSCOPE_STATE_DIR']}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder.name != str(os.getpid()) and mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


@contextmanager
def background(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    """The plugin `survivor` in `site`, for this process and those it starts; in the end all of them are killed, and gone."""
    survivor_site(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    try:
        yield Background()
    finally:
        end_processes()


def survivor_site(site: Path) -> None:
    """Install the plugin `survivor` into a folder for PYTHONPATH."""
    (site / "survivor-1.0.dist-info").mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "jobs" / "survivor.py", site)
    (site / "survivor-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: survivor\nVersion: 1.0\n")
    (site / "survivor-1.0.dist-info" / "entry_points.txt").write_text("[modelscope_app]\nsurvivor = survivor\n")


def end_processes() -> None:
    """Kill every process of this test, and wait until they are gone."""

    def are_gone() -> bool:
        found = processes()
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    wait_until(are_gone, "the end of all processes")
