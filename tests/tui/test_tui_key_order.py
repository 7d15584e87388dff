"""Keys that arrive together take effect in the order in which they were pressed."""

from __future__ import annotations

import asyncio
import time

from textual.app import ComposeResult
from textual.binding import Binding
from textual.events import Key
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Input
from tui_waiting import all_settled

from modelscope_app.checkpoints.samples import samples_folder
from modelscope_app.tui.analyses import AnalysesBrowser
from modelscope_app.tui.app import MscopeApp
from modelscope_app.tui.key_order import PATIENCE_SECONDS, OrderedKeysApp
from modelscope_app.tui.library.folder_browser import FolderBrowser
from modelscope_app.tui.workspace import WorkspaceScreen

SAMPLES = samples_folder()
assert SAMPLES is not None


def arrive(app: OrderedKeysApp[None], *keys: str) -> None:
    """All at once, as a slow link hands them over."""
    for key in keys:
        app.post_message(Key({"/": "slash"}.get(key, key), key if len(key) == 1 else None))


async def test_a_page_its_search_and_what_is_typed_into_it() -> None:
    app = MscopeApp(str(SAMPLES / "digits-mlp"))
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        arrive(app, "3", "/", *"stat")
        await all_settled(pilot)
        browser = app.screen.query_one(AnalysesBrowser)
        assert app.focused is browser.query_one(Input)
        assert browser.query_one(Input).value == "stat"
        assert browser.highlighted is not None and browser.highlighted.id == "weights.stats"


async def test_a_page_of_the_library_and_a_path_typed_there() -> None:
    app = MscopeApp(None)
    async with app.run_test(size=(100, 30)) as pilot:
        await all_settled(pilot)
        arrive(app, "2", "/", *str(SAMPLES / "digits-mlp"), "enter")
        await all_settled(pilot)
        for _ in range(100):
            if isinstance(app.screen, WorkspaceScreen):
                break
            assert app.screen.query_one(FolderBrowser)
            await pilot.pause(0.05)
        assert isinstance(app.screen, WorkspaceScreen)


class Asking(ModalScreen[str]):
    """Closes with what was typed."""

    def compose(self) -> ComposeResult:
        yield Input()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


class Holding(Widget, can_focus=True):
    """Takes what it gets, some of it for long."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []
        self.released = asyncio.Event()

    async def on_key(self, event: Key) -> None:
        if event.key == "h":
            await self.released.wait()
        if event.key not in ("a", "w"):
            event.stop()
            self.taken.append(event.key)


class Little(OrderedKeysApp[None]):
    """A dialog at `a`, another widget at `w`."""

    BINDINGS = [Binding("a", "ask"), Binding("w", "away"), Binding("ctrl+o", "note", priority=True)]

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def compose(self) -> ComposeResult:
        yield Holding()

    def action_ask(self) -> None:
        self.push_screen(Asking(), lambda text: self.said.append(text or ""))

    def action_note(self) -> None:
        self.said.append("noted")

    async def action_away(self) -> None:
        await self.query(Holding).remove()
        holding = Holding()
        await self.mount(holding)
        holding.focus()


async def test_a_dialog_gets_what_was_typed_after_it_was_asked_for_and_nothing_of_what_came_after_it() -> None:
    app = Little()
    async with app.run_test() as pilot:
        arrive(app, "x", "a", "1", "2", "enter", "y", "a", "3", "ctrl+u", "4", "enter", "z")
        await all_settled(pilot)
        assert app.said == ["12", "4"]
        assert app.query_one(Holding).taken == ["x", "y", "z"]


async def test_a_widget_that_took_the_place_of_another_gets_the_next_keys() -> None:
    app = Little()
    async with app.run_test() as pilot:
        first = app.query_one(Holding)
        arrive(app, "x", "w", "y", "ctrl+o", "z")
        await all_settled(pilot)
        assert (first.taken, app.query_one(Holding).taken, app.said) == (["x"], ["y", "z"], ["noted"])


async def test_a_widget_that_holds_a_key_for_ever_does_not_keep_the_others_from_the_app() -> None:
    app = Little()
    async with app.run_test() as pilot:
        began = time.monotonic()
        arrive(app, "h", "ctrl+o")
        while not app.said:
            await asyncio.sleep(0.01)
            assert time.monotonic() < began + 30
        assert time.monotonic() - began >= PATIENCE_SECONDS * 0.9
        app.query_one(Holding).released.set()
        await pilot.pause()
