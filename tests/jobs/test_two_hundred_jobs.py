"""Two hundred jobs while workers and the service are killed at random: each ends in one final state, and what is done can be read."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from service_process import Background, background, processes, wait_until
from service_process import state as stored_state

from modelscope_app.api import MscopeError
from modelscope_app.jobs import Client
from modelscope_app.jobs.starting import ensure_service
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.lock import lock_holder
from modelscope_app.runs.status import FINAL_STATES

JOBS = 200
KILLS = 12
ANALYSES = ("two-passes", "appending", "sampling", "training", "printing", "raising")


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    monkeypatch.setenv("SURVIVOR_SLEEP", "0.02")
    monkeypatch.setenv("MSCOPE_SAVE_INTERVAL_SECONDS", "0.05")
    path = Path(os.environ["MSCOPE_CONFIG_DIR"]) / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[service]\ncpu_workers = 2\n")
    with background(tmp_path / "site", monkeypatch) as made:
        yield made


def test_two_hundred_jobs_and_random_kills(jobs: Background) -> None:
    chance = random.Random(20261121)
    folders: list[Path] = []
    is_over = threading.Event()

    def torment() -> None:
        """One kill after another, each in the middle of a job; the service is started again by whoever needs it."""
        for kill in range(KILLS):
            if is_over.wait(chance.uniform(0.3, 2.5)):
                return
            wait_until(lambda: is_over.is_set() or _at_work(), "a job that runs")
            services = [pid for pid, line in processes().items() if "modelscope_app.jobs.service" in line]
            found = services if kill % 4 == 3 else _at_work()
            if found:
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(found), signal.SIGKILL)

    tormentor = threading.Thread(target=torment)
    tormentor.start()
    try:
        with Client() as client:
            while len(folders) < JOBS:
                with suppress(MscopeError):  # the service was killed while it was asked; what it had accepted is found below
                    job = client.submit(f"survivor.{ANALYSES[len(folders) % len(ANALYSES)]}", params={"rows": 12})
                    folders.append(Path(job.folder))

        def all_ended() -> bool:
            ensure_service()
            return all(stored_state(folder) in FINAL_STATES and not (folder / "queue.json").exists() for folder in runs_there())

        wait_until(all_ended, "the end of all jobs", 300)
    finally:
        is_over.set()
        tormentor.join()
    everything = runs_there()
    assert set(folders) <= set(everything)
    states = {folder: stored_state(folder) for folder in everything}
    assert set(states.values()) <= {"done", "failed", "lost"}
    for folder, state in states.items():
        run = RunFolder.open(folder)
        assert run.status == state
        finals = [event["state"] for event in _events(folder) if event["kind"] == "state" and event["state"] in FINAL_STATES]
        assert finals, folder
        assert finals[-1] == state
        assert finals.count("done") == (state == "done")
        assert (state == "failed") == (run.analysis == "survivor.raising" and state != "lost"), (run.analysis, run.error)
        if state == "done":
            assert run.summary()["status"] == "done"
            for name, path in run.artifacts.items():
                assert path.suffix != ".safetensors" or run.tensors(name)
            for name in run.tables:
                assert run.table(name).height
    hit = [folder for folder in everything if any(event.get("state") == "lost" for event in _events(folder)) or states[folder] == "lost"]
    assert len(hit) >= KILLS // 3  # the others were killed between two jobs, or had ended by then
    done = [folder for folder in everything if states[folder] == "done"]
    assert len(done) >= JOBS // 2
    assert len({_bits(folder) for folder in done if RunFolder.open(folder).analysis == "survivor.training"}) == 1


def runs_there() -> list[Path]:
    """Every run folder."""
    return sorted((Path(os.environ["MSCOPE_DATA_DIR"]) / "runs").iterdir())


def _at_work() -> list[int]:
    """Processes that execute a run now."""
    found = []
    for folder in (Path(os.environ["MSCOPE_DATA_DIR"]) / "runs").glob("*"):
        with suppress(MscopeError):
            if stored_state(folder) == "running" and (holder := lock_holder(folder)) is not None:
                found.append(holder.pid)
    return found


def _events(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def _bits(folder: Path) -> bytes:
    """The result of a run: the same for each of one analysis, whatever was killed meanwhile."""
    return (folder / "artifacts" / "result.safetensors").read_bytes()
