"""A worker does not execute old code: where a file it was made of has changed, it says so, begins nothing, and ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from worker_process import WorkerProcess, install, uninstall, wait_until

from modelscope_app.runs.folder import RunFolder

pytest_plugins = ["worker_process"]

Start = Callable[..., WorkerProcess]
Queued = Callable[..., RunFolder]


def is_stale(worker: WorkerProcess, run: RunFolder) -> bool:
    """Whether the worker says so of itself when it is given a run; otherwise it has executed it."""
    worker.run(run)
    said = worker.hear_of("stale", "ended")
    if said["say"] == "ended":
        return False
    assert said == {"say": "stale"}
    assert worker.exit_code() == 0
    assert run.status == "queued"
    return True


def edit(path: Path) -> None:
    """Write a file again with another content."""
    path.write_text(path.read_text() + "\n# edited\n")


def test_nothing_changed_and_the_worker_stays(worker: WorkerProcess, queued_run: Queued) -> None:
    for _ in range(3):
        assert not is_stale(worker, queued_run("survivor.printing"))


def test_an_edited_plugin_is_noticed(worker: WorkerProcess, queued_run: Queued, worker_site: Path) -> None:
    assert not is_stale(worker, queued_run("survivor.printing"))
    edit(worker_site / "survivor.py")
    assert is_stale(worker, queued_run("survivor.printing"))


def test_a_plugin_edited_while_its_run_is_executed_is_noticed(start_worker: Start, queued_run: Queued, worker_site: Path) -> None:
    worker, run = start_worker(SURVIVOR_SLEEP="0.05"), queued_run("survivor.sampling", rows=60)
    worker.run(run)
    worker.hear_of("begun")
    wait_until(lambda: (run.folder / "stages" / "sample" / "plan.json").is_file(), "the analysis to run")
    edit(worker_site / "survivor.py")
    worker.hear_of("ended")
    assert is_stale(worker, queued_run("survivor.printing"))


def test_a_plugin_that_was_never_imported_may_change(worker: WorkerProcess, queued_run: Queued, worker_site: Path) -> None:
    assert not is_stale(worker, queued_run("survivor.printing"))
    edit(worker_site / "tenant.py")
    assert not is_stale(worker, queued_run("tenant.deeds"))


def test_plugins_that_come_and_go_are_noticed(start_worker: Start, queued_run: Queued, worker_site: Path) -> None:
    worker = start_worker()
    assert not is_stale(worker, queued_run("survivor.printing"))
    install(worker_site, "another", "")
    assert is_stale(worker, queued_run("survivor.printing"))
    worker = start_worker()
    assert not is_stale(worker, queued_run("survivor.printing"))
    uninstall(worker_site, "another")
    assert is_stale(worker, queued_run("survivor.printing"))


def test_changed_settings_are_noticed(worker: WorkerProcess, queued_run: Queued, own_folders: Path) -> None:
    assert not is_stale(worker, queued_run("survivor.printing"))
    (own_folders / "config").mkdir(exist_ok=True)
    (own_folders / "config" / "config.toml").write_text("[runs]\nsave_interval_seconds = 1.0\n")
    assert is_stale(worker, queued_run("survivor.printing"))


def test_a_removed_module_is_noticed(worker: WorkerProcess, queued_run: Queued, worker_site: Path) -> None:
    assert not is_stale(worker, queued_run("survivor.printing"))
    run = queued_run("survivor.printing")
    (worker_site / "survivor.py").unlink()
    assert is_stale(worker, run)


@pytest.mark.parametrize("is_edited", [False, True])
def test_a_worker_that_met_a_broken_plugin_gives_way_to_one_that_may_find_it_mended(
    start_worker: Start, queued_run: Queued, worker_site: Path, is_edited: bool
) -> None:
    worker, run = start_worker(), queued_run("survivor.printing")
    module = worker_site / "survivor.py"
    source, times = module.read_text(), module.stat()
    module.write_text("import no_such_module\n")
    worker.run(run)
    said = worker.hear_of("refused")
    assert "no_such_module" in said["error"]
    if is_edited:
        module.write_text(source)
        os.utime(module, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert is_stale(worker, run)
    if is_edited:
        assert not is_stale(start_worker(), run)
