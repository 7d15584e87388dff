"""Whatever is raised in a thread, also what is no Exception (as polars' panics are not), stands as a sentence where one waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from polars.exceptions import PanicException
from textual.app import App
from textual.screen import Screen
from textual.widgets import Static
from tui.slow_disk import until
from tui_waiting import all_settled

from modelscope_app.api import BadInput
from modelscope_app.checkpoints.samples import samples_folder
from modelscope_app.runs.folder import RunFolder
from modelscope_app.tui.app import MscopeApp
from modelscope_app.tui.checkpoint.opening import Opened
from modelscope_app.tui.checkpoint.tensor_tree import TensorTree
from modelscope_app.tui.dialogs.export import ExportScreen
from modelscope_app.tui.forms.choosing import Chooser
from modelscope_app.tui.on_screen import Exports
from modelscope_app.tui.run.compare import CompareScreen
from modelscope_app.tui.thread_work import failure_told

FOLDER = samples_folder()
assert FOLDER is not None
SAMPLE = FOLDER / "digits-mlp"


class Panic(BaseException):
    """As polars raises where it finds itself in a state that cannot be."""


def panicking(*_: Any, **__: Any) -> Any:
    raise Panic("out of \x1b[31mbounds")


def words(app: App[Any]) -> str:
    return "\n".join(str(widget.render()) for widget in app.screen.query(Static))


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (Panic("deep"), "it broke: deep"),
        (ValueError(""), "it broke: ValueError"),
        (BadInput("no such run"), "no such run"),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
        (ValueError("\x1b[31m"), "it broke: \\x1b[31m"),
        (PanicException("no rows"), "it broke: no rows"),
        (FileNotFoundError(2, "No such file", "/a\x1b[2J"), "/a\\x1b[2J: No such file"),
    ],
)
def test_what_is_raised_is_told_once_in_words_that_are_harmless(raised: BaseException, told: str) -> None:
    heard: list[str] = []
    with failure_told(heard.append, "it broke"):
        raise raised
    assert heard == [told]


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_what_ends_a_thread_on_purpose_ends_it(ending: type[BaseException]) -> None:
    heard: list[str] = []
    with pytest.raises(ending), failure_told(heard.append, "it broke"):
        raise ending
    assert heard == []


async def test_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelscope_app.tui.workspace.opened", panicking)
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        assert "it cannot be opened: internal error: out of \\x1b[31mbounds" in words(app)


async def test_the_groups_of_a_large_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelscope_app.tui.checkpoint.tensor_tree._GROUPED_AT_ONCE", 0)
    monkeypatch.setattr("modelscope_app.tui.checkpoint.tensor_tree._GROUPED_AFTER_SECONDS", 0.001)
    monkeypatch.setattr(Opened, "groups", property(panicking))
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "the tensors cannot be grouped: out of" in words(app))
        assert app.screen.query_one(TensorTree).is_mounted


async def test_statistics_of_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelscope_app.tui.checkpoint.tensor_detail.stored_statistics", panicking)
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(120, 40)) as pilot:
        await all_settled(pilot)
        assert app.screen.query_one(TensorTree).reveal("layers.1.bias")
        await pilot.press("enter")
        await all_settled(pilot)
        assert "the statistics cannot be read: out of" in words(app)


async def test_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelscope_app.runs.index.found_runs", panicking)
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        await pilot.press("4")
        await all_settled(pilot)
        assert "the runs cannot be listed: out of" in words(app)


def exporting() -> Screen[Any]:
    return ExportScreen(Exports("a view", ("csv",), Path("/tmp"), "view", panicking))


def choosing() -> Screen[Any]:
    return Chooser("Choose", panicking, "nothing")


@pytest.mark.parametrize(
    ("screen", "keys", "sentence"),
    [(exporting, ("enter",), "it cannot be written: out of"), (choosing, (), "this cannot be listed: out of")],
)
async def test_dialogs(screen: Callable[[], Screen[Any]], keys: tuple[str, ...], sentence: str) -> None:
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        app.push_screen(screen())
        await all_settled(pilot)
        await pilot.press(*keys)
        await all_settled(pilot)
        assert sentence in words(app)


async def test_two_runs_to_compare(made_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_run(facts={"a": 1}).folder
    app = MscopeApp(str(SAMPLE))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        monkeypatch.setattr(RunFolder, "read_status", panicking)
        await app.push_screen(CompareScreen(folder, folder))
        await all_settled(pilot)
        assert "they cannot be read: out of" in words(app)
