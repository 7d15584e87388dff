"""Pictures of the main screens, in two sizes and two themes. `pytest --snapshot-update tests/tui/test_tui_snapshots.py` draws them anew.

Everything that differs between machines is held still: the time, where things lie, and the colours of the terminal.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars
import pytest
from textual.pilot import Pilot
from textual.widgets import Input
from tui_waiting import all_settled

from modelscope_app.api import BarsView, FactsView, TableView
from modelscope_app.checkpoints.samples import samples_folder
from modelscope_app.jobs.answers import DeviceInfo, Fit, JobInfo, ResidentModel, WorkerInfo
from modelscope_app.runs.folder import RunFolder
from modelscope_app.tui.app import AppSettings, MscopeApp
from modelscope_app.tui.jobs.snapshot import JobsSnapshot
from modelscope_app.tui.library.recent import remember
from modelscope_app.tui.library.screen import LibraryScreen

PLACE = Path("/tmp/mscope-snapshots")
NOW = 1767350000.0
SIZES = [(80, 24), (120, 40)]
THEMES = ["mscope-dark", "ansi-light"]

Compare = Callable[..., bool]


@pytest.fixture
def place(colour: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the same name everywhere, at the same moment of time."""
    samples = samples_folder()
    assert samples is not None
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    shutil.copytree(samples / "digits-mlp", PLACE / "digits-mlp", ignore=shutil.ignore_patterns("series"))
    monkeypatch.chdir(PLACE)
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setitem(LibraryScreen.__init__.__kwdefaults__, "clock", lambda: NOW)
    monkeypatch.setattr("modelscope_app.checkpoints.samples.samples_folder", lambda: None)
    monkeypatch.setenv("HF_HOME", str(PLACE / "hub"))
    yield PLACE
    shutil.rmtree(PLACE, ignore_errors=True)


def keys(*pressed: str) -> Callable[[Pilot[Any]], Any]:
    """Press these, each once everything before is on the screen."""

    async def press(pilot: Pilot[Any]) -> None:
        await all_settled(pilot)
        for key in pressed:
            await pilot.press(key)
            await all_settled(pilot)
        for field in pilot.app.screen.query(Input):
            field.cursor_blink = False

    return press


@pytest.fixture
def run(place: Path, made_run: Callable[..., RunFolder]) -> RunFolder:
    """A small run that is done."""
    frame = polars.DataFrame({"tensor": [f"layers.{at}.weight" for at in range(40)], "norm": [at * 0.37 - 4 for at in range(40)]})
    views = [
        FactsView(name="facts", title="At a glance", caption="Rankings leave out tensors that hold NaN."),
        BarsView(name="norms", title="Norm of each layer", table="tensors", label="tensor", value="norm"),
        TableView(name="tensors", title="Tensors", table="tensors"),
    ]
    facts = {"tensors": 40, "largest_norm": {"value": 10.43, "ci_low": 9.9, "ci_high": 11.0}, "all_finite": True}
    folder = Path(os.environ["MSCOPE_DATA_DIR"]) / "runs" / "20260102-030405-weights-stats-abcd"
    return made_run({"tensors": frame}, views, facts, checkpoint=str(place / "digits-mlp"), folder=folder)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES, ids=["small", "large"])
@pytest.mark.parametrize("screen", ["workspace", "analyses", "bars", "table"])
def test_screens_look_as_they_did(snap_compare: Compare, run: RunFolder, size: tuple[int, int], theme: str, screen: str) -> None:
    start, pressed = {
        "workspace": (str(PLACE / "digits-mlp"), ()),
        "analyses": (str(PLACE / "digits-mlp"), ("3",)),
        "bars": (str(run.folder), ("2", "down")),
        "table": (str(run.folder), ("3", "s", "down")),
    }[screen]
    app = MscopeApp(start, AppSettings(theme=theme))
    assert snap_compare(app, terminal_size=size, run_before=keys(*pressed))


@pytest.mark.parametrize("theme", ["mscope-contrast", "ansi-dark"])
@pytest.mark.parametrize("size", SIZES, ids=["small", "large"])
@pytest.mark.parametrize("screen", ["workspace", "table"])
def test_themes_look_as_they_did(snap_compare: Compare, run: RunFolder, size: tuple[int, int], theme: str, screen: str) -> None:
    start, pressed = {"workspace": (str(PLACE / "digits-mlp"), ()), "table": (str(run.folder), ("3", "s", "down"))}[screen]
    assert snap_compare(MscopeApp(start, AppSettings(theme=theme)), terminal_size=size, run_before=keys(*pressed))


@pytest.mark.parametrize("size", SIZES, ids=["small", "large"])
@pytest.mark.parametrize("page", ["recent", "folders"])
def test_the_library_looks_as_it_did(
    snap_compare: Compare, place: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], page: str
) -> None:
    models = place / "models"
    for name in ("digits-mlp", "digits-mlp-b", "steps/step_100", "steps/step_200"):
        shutil.copytree(place / "digits-mlp", models / name)
    for name in ("notes", "broken"):
        (models / name).mkdir()
    (models / "broken" / "model.safetensors").write_bytes(b"short")
    for name, age in (("gone", 40 * 86400), ("broken", 26 * 3600), ("steps", 3 * 3600), ("digits-mlp", 60)):
        remember(str(models / name), clock=lambda age=age: NOW - age)  # type: ignore[misc]
    monkeypatch.chdir(models)
    pressed = ("2", "down", "down", "down", "down", "right") if page == "folders" else ("down",)
    assert snap_compare(MscopeApp(None, AppSettings(theme="mscope-dark")), terminal_size=size, run_before=keys(*pressed))


@pytest.mark.parametrize("size", SIZES, ids=["small", "large"])
@pytest.mark.parametrize("filled", ["values", "errors"])
def test_a_form_looks_as_it_did(
    snap_compare: Compare, place: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], filled: str
) -> None:
    class Estimator:
        async def __call__(self, *_: object) -> Fit:
            return Fit("fits", "fits: 12 MB needed (as it declares), 24.1 GB free on cpu")

        async def close(self) -> None:
            pass

    monkeypatch.setattr("modelscope_app.tui.forms.screen.ServiceEstimator", Estimator)
    monkeypatch.setattr("modelscope_app.tui.forms.screen.ESTIMATE_AFTER_SECONDS", 0.0)
    one, other = str(place / "digits-mlp"), str(place / "digits-mlp-b")
    shutil.copytree(one, other)
    right = ([one, other], {"rows": 100, "rank_rows_by": "relative", "spectrum": False})
    wrong = ([one, str(place / "nowhere")], {"rows": "many", "only": "layers.*", "embedding": "wte.weight"})

    async def open_form(pilot: Pilot[Any]) -> None:
        await all_settled(pilot)
        checkpoints, params = right if filled == "values" else wrong
        pilot.app.choose_analysis("weights.diff", checkpoints, params)
        await keys("down", "down", "down")(pilot)

    app = MscopeApp(one, AppSettings(theme="mscope-dark"))
    assert snap_compare(app, terminal_size=size, run_before=open_form)


@pytest.mark.parametrize("size", SIZES, ids=["small", "large"])
@pytest.mark.parametrize("tab", ["log", "devices"])
def test_jobs_look_as_they_did(
    snap_compare: Compare, place: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], tab: str
) -> None:
    folder = place / "runs" / "20260102-100000-weights-stats-aaaa"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("reading layers.0.weight\nreading layers.0.bias\n")
    (folder / "events.jsonl").write_text(json.dumps({"seq": 0, "time": NOW, "kind": "stage", "name": "moments"}) + "\n")
    moments = {"device": "cpu", "stage": "moments", "done": 50, "total": 200, "unit": "tensors", "submitted": NOW - 42}
    jobs = (
        JobInfo(folder.name, str(folder), "weights.stats", "running", **moments),  # type: ignore[arg-type]
        JobInfo("20260102-100100-weights-diff-bbbb", "/runs/b", "weights.diff", "queued", position=0, submitted=NOW - 30),
        JobInfo("20260102-100200-weights-diff-cccc", "/runs/c", "weights.diff", "queued", position=1, submitted=NOW - 29),
        JobInfo("20260102-095900-probe-logits-dddd", "/runs/d", "probe.logits", "waiting", waiting_for="waits for 3.2 GB on cuda:0"),
        JobInfo("20260102-095000-weights-stats-eeee", "/runs/e", "weights.stats", "done", device="cpu", submitted=NOW - 700),
        JobInfo("20260102-094000-weights-series-ffff", "/runs/f", "weights.series", "failed", error="the disk is full: /models/big"),
        JobInfo("20260102-093000-weights-stats-gggg", "/runs/g", "weights.stats", "cancelled", submitted=NOW - 90_000),
    )
    worker = WorkerInfo(1, "/usr/bin/python3", folder.name, NOW - 42)
    devices = (
        DeviceInfo("cpu", "a processor", 16_000_000_000, None, 269_000_000, (worker,), (folder.name,), 2),
        DeviceInfo("cuda:0", "a graphics card", 24_000_000_000, 20_000_000_000, 0, (), (), 1),
    )
    resident = (ResidentModel("/models/SmolLM2-135M", "f1", "cpu", "float32", 269_000_000, NOW - 600, NOW - 65),)
    snapshot = JobsSnapshot(True, None, jobs, devices, resident, ((folder.name, 5.0),))

    async def follow(tell: Callable[[JobsSnapshot], object], *_: object) -> None:
        tell(snapshot)
        await asyncio.Event().wait()

    monkeypatch.setattr("modelscope_app.tui.app.follow", follow)
    app = MscopeApp(str(place / "digits-mlp"), AppSettings(theme="mscope-dark"))
    pressed = ("J", "tab", "right", "right") if tab == "devices" else ("J", "down", "up")
    assert snap_compare(app, terminal_size=size, run_before=keys(*pressed))


@pytest.mark.parametrize("size", SIZES, ids=["small", "large"])
def test_what_was_asked_of_a_run_looks_as_it_did(
    snap_compare: Compare, place: Path, made_run: Callable[..., RunFolder], size: tuple[int, int]
) -> None:
    folder = place / "runs" / "20260102-030405-weights-stats-abcd"
    params = {"bins": 64, "only": "layers.*"}
    checkpoint = str(place / "digits-mlp")
    made_run({"tensors": polars.DataFrame({"norm": [1.0]})}, facts={"tensors": 4}, params=params, checkpoint=checkpoint, folder=folder)
    app = MscopeApp(str(folder), AppSettings(theme="mscope-dark"))
    assert snap_compare(app, terminal_size=size, run_before=keys("3"))
