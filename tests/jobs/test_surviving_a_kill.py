"""A run killed with SIGKILL resumes and ends with the same result, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Mscope

KILLED = -signal.SIGKILL

KILLS = [
    ("two-passes", "first:5"),
    ("two-passes", "second:9"),
    ("appending", "collect:6"),
    ("sampling", "sample:7"),
    ("training", "train:23"),
]


@pytest.mark.parametrize("save_interval_seconds", ["0", "1000"], ids=["every-step-saved", "nothing-saved"])
@pytest.mark.parametrize(("analysis", "kill"), KILLS)
def test_a_killed_run_resumes_to_the_same_bits(
    mscope: Mscope, tmp_path: Path, analysis: str, kill: str, save_interval_seconds: str
) -> None:
    saving = {"MSCOPE_SAVE_INTERVAL_SECONDS": save_interval_seconds}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert mscope("run", f"survivor.{analysis}", "--out", whole, "--quiet", **saving).returncode == 0

    assert mscope("run", f"survivor.{analysis}", "--out", killed, "--quiet", SURVIVOR_KILL=kill, **saving).returncode == KILLED
    assert json.loads(mscope("runs", "show", killed, "--json").stdout)["status"] == "lost"

    resumed = mscope("runs", "resume", killed, "--json", **saving)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["status"] == "done"
    assert results(killed) == results(whole)
    first_steps = [event for event in events(killed) if event["kind"] == "stage" and event["resumed"]]
    assert bool(first_steps) == (kill == "second:9")  # a finished first pass is not done again


def test_draws_anywhere_are_those_of_an_uninterrupted_run(mscope: Mscope, tmp_path: Path) -> None:
    assert mscope("run", "survivor.drawing", "--seed", "7", "--out", tmp_path / "whole", "--quiet").returncode == 0
    killed = mscope("run", "survivor.drawing", "--seed", "7", "--out", tmp_path / "killed", "--quiet", SURVIVOR_KILL="first:2")
    assert killed.returncode == KILLED
    assert mscope("runs", "resume", tmp_path / "killed", "--quiet").returncode == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert mscope("cache", "clear").returncode == 0
    assert mscope("run", "survivor.drawing", "--seed", "7", "--out", tmp_path / "again", "--quiet").returncode == 0
    assert results(tmp_path / "again") == results(tmp_path / "whole")
    assert mscope("run", "survivor.drawing", "--seed", "8", "--out", tmp_path / "other", "--quiet").returncode == 0
    assert results(tmp_path / "other") != results(tmp_path / "whole")


def test_a_run_killed_again_and_again_at_any_moment_ends_with_the_same_bits(
    survivor_environment: dict[str, str], mscope: Mscope, tmp_path: Path
) -> None:
    environment = {**survivor_environment, "SURVIVOR_SLEEP": "0.04", "MSCOPE_SAVE_INTERVAL_SECONDS": "0.05"}
    assert mscope("run", "survivor.appending", "--out", tmp_path / "whole", "--rows", "120", "--quiet").returncode == 0

    command = [sys.executable, "-m", "modelscope_app.cli.main"]
    chance = random.Random(5)
    words = ["run", "survivor.appending", "--rows", "120", "--out", str(tmp_path / "killed"), "--quiet"]
    kills = 0
    for _ in range(30):
        process = subprocess.Popen([*command, *words], env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        begun = until_running(tmp_path / "killed", process)
        if begun:
            time.sleep(chance.uniform(0.0, 1.0))
        if process.poll() is None:
            process.kill()
            kills += 1
        if process.wait() == 0 or (begun and state_of(tmp_path / "killed") == "done"):  # killed after its last word
            break
        words = ["runs", "resume", str(tmp_path / "killed"), "--quiet"]
    assert kills >= 2
    assert state_of(tmp_path / "killed") == "done"
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def state_of(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["state"])


def until_running(run: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the run's process is inside its fold; False if it ended before."""
    while process.poll() is None:
        status = run / "status.json"
        if status.is_file():
            value = json.loads(status.read_text())
            if value["pid"] == process.pid and value["stage"] is not None:
                return True
        time.sleep(0.01)
    return False


def results(run: Path) -> dict[str, bytes]:
    """Tables, artifacts and facts, byte for byte."""
    files = [*run.glob("tables/*"), *run.glob("artifacts/*"), run / "facts.json"]
    found = {path.name: path.read_bytes() for path in files if path.exists()}
    assert found
    return found


def events(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
