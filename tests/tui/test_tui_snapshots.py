"""Pictures of the main screens, in two sizes and two themes. `pytest --snapshot-update tests/tui/test_tui_snapshots.py` draws them anew.

Everything that differs between machines is held still: the time, where things lie, and the colours of the terminal.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars
import pytest
from textual.pilot import Pilot
from tui_waiting import all_settled

from modelscope_app.api import BarsView, FactsView, TableView
from modelscope_app.checkpoints.samples import samples_folder
from modelscope_app.runs.folder import RunFolder
from modelscope_app.tui.app import AppSettings, MscopeApp

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
