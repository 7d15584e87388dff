"""A part of a plugin that raises, wherever it does, shows its error in its own place, and the app goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from polars.exceptions import PanicException
from textual import work
from textual.app import App, ComposeResult
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Button, Static
from tui.recording_host import hosted

from modelscope_app.api import FactsView
from modelscope_app.rendering.drawings import FactsDrawing
from modelscope_app.runs.folder import RunFolder
from modelscope_app.tui.fence import Fence, FencingApp, FencingScreen, fence_of
from modelscope_app.tui.views.board import ViewBoard


class Wrong(RuntimeError):
    """What the widgets below raise."""


class Fine(Widget, can_focus=True):
    """A widget of a plugin that is asked for things in the usual ways."""

    BINDINGS = [("k", "key", "Key")]
    value = reactive(0)

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        if where == "init":
            raise Wrong(where)

    def _perhaps(self, place: str) -> None:
        if self.where == place:
            raise Wrong("[bold]\x1b[31m" + place)

    def compose(self) -> ComposeResult:
        self._perhaps("compose")
        yield Static("inside", markup=False)

    def on_mount(self) -> None:
        self._perhaps("mount")
        if self.where == "timer":
            self.set_timer(0.01, lambda: self._perhaps("timer"))
        if self.where == "worker":
            self.fail()
        if self.where == "thread":
            self.fail_in_thread()

    def render(self) -> Any:
        self._perhaps("render")
        return "drawn"

    def watch_has_focus(self, has_focus: bool) -> None:
        if has_focus:
            self._perhaps("focus")

    def on_click(self) -> None:
        self._perhaps("message")

    def watch_value(self) -> None:
        if self.value:
            self._perhaps("watch")

    def action_key(self) -> None:
        self.value += 1
        self._perhaps("key")
        if self.where == "render later":
            self.where = "render"
            self.refresh()

    @work
    async def fail(self) -> None:
        self._perhaps("worker")

    @work(thread=True)
    def fail_in_thread(self) -> None:
        self._perhaps("thread")


class Place(FencingScreen[None]):
    """Where the panel is shown."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def compose(self) -> ComposeResult:
        yield Fence("The panel demo.timeline", lambda: Fine(self.where))
        yield Button("still here")


class Host(FencingApp[None]):
    """An app with such a screen."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def on_mount(self) -> None:
        self.push_screen(Place(self.where))


WHERE = ("init", "compose", "mount", "render", "timer", "worker", "thread", "key", "watch", "render later", "focus", "message")


@pytest.mark.parametrize("where", WHERE)
async def test_a_panel_that_raises_shows_its_error_in_place(where: str) -> None:
    app = Host(where)
    async with app.run_test() as pilot:
        await pilot.pause()
        if where in ("key", "watch", "render later"):
            assert app.screen.query_one(Fence).error is None
            app.screen.query_one(Fine).focus()
            await pilot.press("k")
        elif where == "focus":
            assert not app.screen.query(Fine), "the screen gives the panel the focus, which is when it raises"
        elif where == "message":
            await pilot.click(Fine)
        for _ in range(50):
            await pilot.pause(0.01)
            if app.screen.query(".fallen"):
                break
        sentence = str(app.screen.query_one(".fallen", Static).render())
        assert "The panel demo.timeline failed (Wrong" in sentence or (where in ("worker", "thread") and "Wrong" in sentence)
        assert "\x1b" not in sentence
        await pilot.pause(0.05)
        assert not app.screen.query(Fine)
        app.screen.query_one(Button).focus()
        await pilot.pause()
        assert app.focused is app.screen.query_one(Button)


@pytest.mark.parametrize("where", ["mount", "key"])
async def test_the_log_has_the_traceback_and_what_was_printed(where: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        app = Host(where)
        app.log_descriptor = log.fileno()
        async with app.run_test() as pilot:
            await pilot.pause()
            if where == "key":
                print("what a panel prints")
                app.screen.query_one(Fine).focus()
                await pilot.press("k")
            for _ in range(50):
                await pilot.pause(0.01)
                if app.screen.query(".fallen"):
                    break
    said = (tmp_path / "log").read_text()
    assert "Traceback" in said and "Wrong" in said
    assert ("what a panel prints" in said) is (where == "key")


async def test_a_panel_that_does_not_raise_is_just_shown() -> None:
    app = Host("nowhere")
    async with app.run_test() as pilot:
        await pilot.pause()
        assert app.screen.query_one(Fence).error is None and app.screen.query_one(Fine).is_attached


async def test_what_is_no_widget_is_said_to_be_none() -> None:
    class Other(App[None]):
        def compose(self) -> ComposeResult:
            yield Fence("The panel demo.nothing", lambda: 3)  # type: ignore[arg-type,return-value]

    app = Other()
    async with app.run_test() as pilot:
        await pilot.pause()
        assert "int, which is no textual widget" in str(app.screen.query_one(".fallen", Static).render())


async def test_an_error_of_the_app_itself_is_nobodys_fence() -> None:
    assert fence_of(Wrong("here")) is None


class PanickingBoard(ViewBoard):
    """A view where polars panics, which is no Exception."""

    where = ""

    def _perhaps(self, place: str) -> None:
        if self.where == place:
            raise PanicException("index out of\x1b[2J bounds")

    def computed(self) -> FactsDrawing:
        self._perhaps("computed")
        return FactsDrawing((), ())

    def body(self, drawing: FactsDrawing) -> Widget:
        self._perhaps("body")
        return Static("drawn")


@pytest.mark.parametrize("where", ["computed", "body"])
async def test_a_view_where_polars_panics_is_a_sentence(made_run: Callable[..., RunFolder], where: str) -> None:
    board = PanickingBoard(made_run(), FactsView(name="facts", title="Facts"))
    board.where = where
    async with hosted(board) as (app, pilot):
        assert "This view cannot be drawn: index out of\\x1b[2J bounds" in app.text()
        board.where = ""
        board.reload()
        await pilot.app.workers.wait_for_complete()
        await pilot.pause()
        assert "drawn" in app.text() and board.error is None
