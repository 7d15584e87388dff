"""A worker begins only what fits, makes room by unloading models, and has its memory back after a job that found none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from models.tiny_models import CAUSAL, saved_model
from worker_process import WorkerProcess

from modelscope_app.jobs.device_memory import device_memory
from modelscope_app.runs.folder import RunFolder

pytest_plugins = ["worker_process"]

Queued = Callable[..., RunFolder]

LARGE = 1 << 60


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def llamas(tmp_path: Path) -> list[Path]:
    """Three models of one size."""
    return [saved_model(tmp_path / f"llama-{seed}", *CAUSAL["llama"], seed=seed) for seed in range(3)]


def answer(worker: WorkerProcess, run: RunFolder, **bytes_: int | None) -> dict[str, Any]:
    """What the worker says to a run that it does not begin."""
    worker.run(run, **bytes_)
    said = worker.hear_of("short", "never", "begun")
    assert said.pop("folder") == str(run.folder)
    return said


def resident_after(worker: WorkerProcess, run: RunFolder, **bytes_: int | None) -> list[str]:
    """Names of the checkpoints that are resident once a run is done."""
    assert worker.ended(run, **bytes_).state == "done"
    return resident_now(worker)


def resident_now(worker: WorkerProcess) -> list[str]:
    worker.run(Path("/nowhere"))
    worker.hear_of("refused")
    said = [said["models"] for said in worker.heard if said["say"] == "resident"]
    return [Path(model["path"]).name for model in (said[-1] if said else [])]


def test_a_job_larger_than_the_device_or_its_limit_is_never_begun(worker: WorkerProcess, queued_run: Queued) -> None:
    run = queued_run("survivor.printing")
    capacity = device_memory("cpu").capacity_bytes
    said = answer(worker, run, analysis_bytes=LARGE, model_bytes=5)
    assert said == {"say": "never", "needs_bytes": LARGE + 5, "free_bytes": said["free_bytes"], "capacity_bytes": capacity}
    assert 0 < said["free_bytes"] <= capacity
    assert answer(worker, run, analysis_bytes=900, model_bytes=200, limit_bytes=1000, others_bytes=400) == {
        "say": "never",
        "needs_bytes": 1100,
        "free_bytes": 600,
        "capacity_bytes": 1000,
    }
    assert run.status == "queued"
    assert not (run.folder / "events.jsonl").exists()
    assert worker.ended(run, analysis_bytes=900, limit_bytes=1000).state == "done"


def test_a_job_that_others_leave_no_room_for_is_short_of_it(worker: WorkerProcess, queued_run: Queued) -> None:
    run = queued_run("survivor.printing")
    expected = {"say": "short", "needs_bytes": 500, "free_bytes": 400, "capacity_bytes": 1000}
    assert answer(worker, run, analysis_bytes=500, limit_bytes=1000, others_bytes=600) == expected
    assert answer(worker, run, analysis_bytes=500, limit_bytes=1000, others_bytes=1600) == {**expected, "free_bytes": 0}
    assert run.status == "queued"
    assert worker.ended(run, analysis_bytes=500, limit_bytes=1000, others_bytes=500).state == "done"


def test_the_model_nobody_used_for_longest_makes_room(worker: WorkerProcess, queued_run: Queued, llamas: list[Path]) -> None:
    first, second, third = llamas
    assert resident_after(worker, queued_run("tenant.model", first)) == ["llama-0"]
    (model,) = [said for said in worker.heard if said["say"] == "resident"][-1]["models"]
    size = model["memory_bytes"]
    assert resident_after(worker, queued_run("tenant.model", second), model_bytes=size, limit_bytes=2 * size) == ["llama-0", "llama-1"]
    assert resident_after(worker, queued_run("tenant.model", first), model_bytes=size, limit_bytes=2 * size) == ["llama-0", "llama-1"]
    assert resident_after(worker, queued_run("tenant.model", third), model_bytes=size, limit_bytes=2 * size) == ["llama-0", "llama-2"]
    # An analysis on the resident one needs no more room for it; the other one goes for the analysis' own memory.
    run = queued_run("tenant.model", first)
    assert resident_after(worker, run, model_bytes=size, analysis_bytes=size, limit_bytes=2 * size) == ["llama-0"]
    # One that reads weights alone does not use the model.
    run = queued_run("tenant.weights", first)
    assert resident_after(worker, run, analysis_bytes=2 * size, limit_bytes=2 * size) == []


def test_a_model_a_job_uses_is_counted_and_not_unloaded(worker: WorkerProcess, queued_run: Queued, llamas: list[Path]) -> None:
    run = queued_run("tenant.model", llamas[0])
    assert resident_after(worker, run) == ["llama-0"]
    size = [said for said in worker.heard if said["say"] == "resident"][-1]["models"][0]["memory_bytes"]
    run, amounts = queued_run("tenant.model", llamas[0]), {"model_bytes": size, "limit_bytes": 2 * size}
    assert answer(worker, run, analysis_bytes=size, others_bytes=10, **amounts) == {
        "say": "short",
        "needs_bytes": size,
        "free_bytes": size - 10,
        "capacity_bytes": 2 * size,
    }
    assert answer(worker, run, analysis_bytes=size + 1, **amounts) == {
        "say": "never",
        "needs_bytes": 2 * size + 1,
        "free_bytes": size,
        "capacity_bytes": 2 * size,
    }
    assert resident_now(worker) == ["llama-0"]
    assert resident_after(worker, run, analysis_bytes=size, **amounts) == ["llama-0"]


def test_nothing_is_unloaded_for_a_job_that_would_not_fit_anyway(worker: WorkerProcess, queued_run: Queued, llamas: list[Path]) -> None:
    assert resident_after(worker, queued_run("tenant.model", llamas[0])) == ["llama-0"]
    size = [said for said in worker.heard if said["say"] == "resident"][-1]["models"][0]["memory_bytes"]
    said = answer(worker, queued_run("survivor.printing"), analysis_bytes=3 * size, limit_bytes=4 * size, others_bytes=2 * size)
    assert said == {"say": "short", "needs_bytes": 3 * size, "free_bytes": 2 * size, "capacity_bytes": 4 * size}
    assert resident_now(worker) == ["llama-0"]


def test_a_cancelled_job_does_not_wait_for_memory(worker: WorkerProcess, queued_run: Queued) -> None:
    slow, run = queued_run("tenant.folding", rows=20, seconds=0.05), queued_run("survivor.printing")
    worker.run(slow)
    worker.run(run, analysis_bytes=LARGE)
    worker.cancel(run)
    assert [worker.hear_of("ended", "never")["say"] for _ in range(2)] == ["ended", "ended"]
    assert (slow.status, run.status) == ("done", "cancelled")


@pytest.mark.parametrize("deed", ["memory error", "real"])
def test_after_a_job_that_found_no_memory_the_next_one_has_it_back(worker: WorkerProcess, queued_run: Queued, deed: str) -> None:
    failing, after = queued_run("tenant.exhausting", deed=deed, megabytes=300), queued_run("tenant.exhausting", megabytes=0)
    before = resident_bytes(worker)
    status = worker.ended(failing)
    assert (status.state, status.exit_code) == ("failed", 4)
    assert (status.error or "").startswith("out of memory")
    assert status.peak_memory_bytes is not None
    assert status.peak_memory_bytes > before + 250 * 2**20  # it had really taken it
    assert worker.ended(after).state == "done"
    assert after.facts == {"still held": 0}
    assert resident_bytes(worker) < before + 150 * 2**20
    assert worker.ended(queued_run("survivor.training")).state == "done"


def resident_bytes(worker: WorkerProcess) -> int:
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
