"""Choosing values of a form from lists and from the disk, and presets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DirectoryTree
from tui.form_app import Host, field, seen, settled

from modelscope_app.testing import write_checkpoint
from modelscope_app.tui.forms import kept_values
from modelscope_app.tui.forms.choosing import Chooser, NameAsked
from modelscope_app.tui.forms.choosing_files import FileChooser
from modelscope_app.tui.forms.fields import TextField
from modelscope_app.tui.selections import Selection

pytest_plugins = ["modelscope_app.testing", "tui.form_app"]


async def test_presets_are_saved_loaded_and_deleted(opened: Callable[..., Host]) -> None:
    app = opened("few", params={"rows": 9, "text": "a"})
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert isinstance(app.screen, NameAsked)
        await pilot.press(*"../x")
        await pilot.pause()
        assert "the name of a preset has 1 to 64 letters" in seen(app)
        await pilot.press("enter")
        assert isinstance(app.screen, NameAsked)
        await pilot.press(*(["backspace"] * 4), *"mine")
        await pilot.pause()
        assert "becomes" in seen(app)
        await pilot.press("enter")
        await settled(pilot)
        path = kept_values.preset_path("test.few", "mine")
        assert json.loads(path.read_text()) == {"rows": 9, "text": "a"} and str(path) in app.said[-1]

        await pilot.press("ctrl+d")
        await settled(pilot)
        assert field(app, "rows").value == "4"
        await pilot.press("ctrl+o")
        await settled(pilot)
        assert isinstance(app.screen, Chooser) and "mine" in seen(app)
        await pilot.press("enter")
        await settled(pilot)
        assert (field(app, "rows").value, field(app, "text").value) == ("9", "a")

        await pilot.press("ctrl+o")
        await settled(pilot)
        await pilot.press("ctrl+d")
        await pilot.pause()
        assert "press ctrl+d again to delete mine" in seen(app) and path.exists()
        await pilot.press("ctrl+d")
        await settled(pilot)
        assert not path.exists() and "no preset yet" in seen(app)
        await pilot.press("escape")
        assert app.screen is app.form


async def test_only_what_is_right_becomes_a_preset(opened: Callable[..., Host]) -> None:
    app = opened("few", params={"rows": 0})
    async with app.run_test() as pilot:
        await settled(pilot)
        await pilot.press("ctrl+s")
        await settled(pilot)
        assert app.screen is app.form and app.said[-1].startswith("cannot be saved: --rows 0")


async def chooser_of_files(pilot: Pilot[None], app: Host, rows: int) -> DirectoryTree:
    """The tree, once it shows so many lines. Its loader is a worker without end, so workers cannot be waited for."""
    for _ in range(200):
        await pilot.pause(0.02)
        if isinstance(app.screen, FileChooser) and app.screen.query_one(DirectoryTree).last_line >= rows - 1:
            break
    return app.screen.query_one(DirectoryTree)


async def test_a_checkpoint_is_chosen_from_the_disk(opened: Callable[..., Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "models" / "tiny", {"w": [1.0]})
    (tmp_path / "models" / "notes.txt").touch()
    (tmp_path / "models" / "evil\x1b[31m").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    app = opened("one")
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        assert app.focused is field(app, "checkpoints 0").control
        await pilot.press("f2")
        await chooser_of_files(pilot, app, 2)
        assert "tiny" in seen(app) and "notes.txt" not in seen(app) and "evil" not in seen(app)
        await pilot.press("down", "enter")
        await pilot.pause()
        await settled(pilot)
        assert field(app, "checkpoints 0").value == str(tmp_path / "models" / "tiny")


async def test_a_path_can_be_typed_into_the_chooser(opened: Callable[..., Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.csv").touch()
    monkeypatch.chdir(tmp_path)
    app = opened("all")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        field(app, "data").control.focus()
        await pilot.press("f2")
        await chooser_of_files(pilot, app, 1)
        app.screen.query_one(TextField).focus()
        await pilot.press(*"ro")
        for _ in range(100):
            await pilot.pause(0.02)
            if app.screen.query_one(TextField)._suggestion:
                break
        await pilot.press("right", "enter")
        await pilot.pause()
        await settled(pilot)
        assert field(app, "data").value == "rows.csv"


async def test_a_run_is_chosen_from_those_that_are_done(
    opened: Callable[..., Host], made_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MSCOPE_DATA_DIR", str(tmp_path))
    made_run(id="20260102-030405-weights-stats-aaaa", checkpoint="/models/[bold]tiny")
    made_run(id="20260102-030405-weights-stats-bbbb", state="failed")
    app = opened("all")
    async with app.run_test(size=(100, 24)) as pilot:
        await settled(pilot)
        field(app, "earlier").control.focus()
        await pilot.press("f2")
        await settled(pilot)
        assert "aaaa" in seen(app) and "[bold]tiny" in seen(app) and "bbbb" not in seen(app)
        await pilot.press(*"zz")
        await pilot.pause()
        assert "nothing fits" in seen(app)
        await pilot.press("backspace", "backspace", *"tiny aa", "enter")
        await settled(pilot)
        assert field(app, "earlier").value == "20260102-030405-weights-stats-aaaa"


async def test_there_may_be_no_run_to_choose(opened: Callable[..., Host]) -> None:
    app = opened("all")
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        field(app, "earlier").control.focus()
        await pilot.press("f2")
        await settled(pilot)
        assert "there is no run yet that is done" in seen(app)
        await pilot.press("enter", "escape")
        assert app.screen is app.form


async def test_what_the_user_was_on_is_filled_in(opened: Callable[..., Host]) -> None:
    token = Selection("token", "7:3", "token 3 of row 7")
    other = Selection("example", "9", "row 9")
    app = opened("all", selections=[token, Selection("tensor", "w", "w")])
    async with app.run_test() as pilot:
        await settled(pilot)
        field(app, "subject").control.focus()
        await pilot.press("f2")
        assert field(app, "subject").value == "7:3"
    app = opened("all", selections=[token, other])
    async with app.run_test() as pilot:
        await settled(pilot)
        field(app, "subject").control.focus()
        await pilot.press("f2")
        await settled(pilot)
        assert "token 3 of row 7" in seen(app) and "row 9" in seen(app)
        await pilot.press("down", "enter")
        await settled(pilot)
        assert field(app, "subject").value == "9"
    app = opened("all")
    async with app.run_test() as pilot:
        await settled(pilot)
        field(app, "subject").control.focus()
        await pilot.press("f2")
        assert app.said == ["nothing is selected that fits; it takes a token or example"]


async def test_sites_of_the_open_model_are_offered(opened: Callable[..., Host]) -> None:
    app = opened("all", layers=2)
    async with app.run_test(size=(80, 30)) as pilot:
        await settled(pilot)
        field(app, "site").control.focus()
        await pilot.press("f2")
        await settled(pilot)
        assert "head_out.1" in seen(app)
        await pilot.press(*"mlp", "space", "1", "enter")
        await settled(pilot)
        assert field(app, "site").value == "mlp_out.1"
