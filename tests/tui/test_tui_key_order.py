"""Keys and pastes that arrive together take effect in the order in which they were made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from textual.app import ComposeResult
from textual.binding import Binding
from textual.events import Event, Key, Paste
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Input
from tui_waiting import all_settled

from modelscope_app.checkpoints.samples import samples_folder
from modelscope_app.tui import key_order
from modelscope_app.tui.analyses import AnalysesBrowser
from modelscope_app.tui.app import MscopeApp
from modelscope_app.tui.fence import Fence
from modelscope_app.tui.key_order import PATIENCE_SECONDS, OrderedKeysApp
from modelscope_app.tui.library.folder_browser import FolderBrowser
from modelscope_app.tui.workspace import WorkspaceScreen

SAMPLES = samples_folder()
assert SAMPLES is not None


def arrive(app: OrderedKeysApp[None], *keys: str | Event) -> None:
    """All at once, as a slow link hands them over."""
    for key in keys:
        app.post_message(Key({"/": "slash"}.get(key, key), key if len(key) == 1 else None) if isinstance(key, str) else key)


async def until(true: Callable[[], object]) -> None:
    began = time.monotonic()
    while not true():
        await asyncio.sleep(0.01)
        assert time.monotonic() < began + 30


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

    DEFAULT_CSS = "Holding { height: 3; }"

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.taken: list[str] = []
        self.released = asyncio.Event()

    async def on_key(self, event: Key) -> None:
        if event.key == "h":
            await self.released.wait()
        if event.key not in ("a", "w"):
            event.stop()
            self.taken.append(event.key)

    def on_paste(self, event: Paste) -> None:
        self.taken.append(event.text)


class Raising(Widget):
    """Has a key that works everywhere, and whose action fails."""

    BINDINGS = [Binding("ctrl+f", "fail", priority=True)]

    def action_fail(self) -> None:
        raise ValueError("it does not work")


class Little(OrderedKeysApp[None]):
    """A dialog at `a`, another widget at `w`."""

    BINDINGS = [
        Binding("a", "ask"),
        Binding("w", "away"),
        Binding("ctrl+o", "note", priority=True),
        Binding("ctrl+g", "ask", priority=True),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def compose(self) -> ComposeResult:
        yield Holding("first")
        yield Holding("second")
        yield Input()
        yield Button("Ask")

    def action_ask(self) -> None:
        self.push_screen(Asking(), lambda text: self.said.append(text or ""))

    def on_button_pressed(self) -> None:
        self.action_ask()

    def action_note(self) -> None:
        self.said.append("noted")

    async def action_quit(self) -> None:
        self.said.append("quit")
        await super().action_quit()

    async def action_away(self) -> None:
        await self.query_one("#first").remove()
        holding = Holding("first")
        await self.mount(holding, before=0)
        holding.focus()

    def holding(self, id: str = "first") -> Holding:
        return self.query_one(f"#{id}", Holding)


async def test_a_dialog_gets_what_was_typed_after_it_was_asked_for_and_nothing_of_what_came_after_it() -> None:
    app = Little()
    async with app.run_test() as pilot:
        arrive(app, "x", "a", "1", "2", "enter", "y", "a", "3", "ctrl+u", "4", "enter", "z")
        await all_settled(pilot)
        assert app.said == ["12", "4"]
        assert app.holding().taken == ["x", "y", "z"]


async def test_a_widget_that_took_the_place_of_another_gets_the_next_keys() -> None:
    app = Little()
    async with app.run_test() as pilot:
        first = app.holding()
        arrive(app, "x", "w", "y", "ctrl+o", "z")
        await all_settled(pilot)
        assert (first.taken, app.holding().taken, app.said) == (["x"], ["y", "z"], ["noted"])


async def test_a_widget_that_holds_a_key_for_ever_does_not_keep_the_others_from_the_app() -> None:
    app = Little()
    async with app.run_test() as pilot:
        began = time.monotonic()
        arrive(app, "h", "ctrl+o")
        while not app.said:
            await asyncio.sleep(0.01)
            assert time.monotonic() < began + 30
        assert time.monotonic() - began >= PATIENCE_SECONDS * 0.9
        app.holding().released.set()
        await pilot.pause()


async def test_a_paste_takes_its_turn_among_the_keys() -> None:
    app = Little()
    async with app.run_test() as pilot:
        app.query_one(Input).focus()
        await pilot.pause()
        arrive(app, "1", "2", "3", Paste("PP"), "4")
        await all_settled(pilot)
        assert app.query_one(Input).value == "123PP4"


@pytest.mark.parametrize("key", ["a", "ctrl+g"])
async def test_a_dialog_gets_what_was_pasted_after_it_was_asked_for(key: str) -> None:
    app = Little()
    async with app.run_test() as pilot:
        arrive(app, key, Paste("PP"), "2", "enter", Paste("QQ"), "x")
        await all_settled(pilot)
        assert app.said == ["PP2"]
        assert app.holding().taken == ["QQ", "x"]


async def test_quitting_behind_a_stuck_widget_and_all_that_was_typed_at_it_takes_one_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Little()
    given_up: list[object] = []
    give_up = app._give_up

    async def noted(key: Key | Paste) -> None:
        given_up.append(key)
        await give_up(key)

    monkeypatch.setattr(app, "_give_up", noted)
    async with app.run_test() as pilot:
        first = app.holding()
        arrive(app, "h", *(["x"] * 20), Paste("PP"), "ctrl+q")
        await until(lambda: app.said == ["quit"])
        assert len(given_up) == 1  # and not once more for each of the 21 behind it
        first.released.set()
        await pilot.pause()


async def test_a_widget_that_was_stuck_and_recovered_gets_everything_and_later_keys_in_order() -> None:
    app = Little()
    async with app.run_test() as pilot:
        first = app.holding()
        arrive(app, "h", "1", Paste("PP"), "2", "ctrl+o")
        await until(lambda: app.said)
        assert first.taken == []
        first.released.set()
        await all_settled(pilot)
        assert first.taken == ["h", "1", "PP", "2"]
        arrive(app, "3", "a", "4", "enter", "5")
        await all_settled(pilot)
        assert app.said == ["noted", "4"]
        assert first.taken == ["h", "1", "PP", "2", "3", "5"]


async def test_a_key_waits_for_the_one_before_it_whatever_comes_late_from_a_widget_that_was_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Little()
    async with app.run_test():
        first, second = app.holding(), app.holding("second")
        arrive(app, "h", "x")
        await until(lambda: app._under_way is None)
        second.focus()
        await until(lambda: app.focused is second)
        monkeypatch.setattr(key_order, "PATIENCE_SECONDS", 60.0)
        arrive(app, "h", "ctrl+o")
        await asyncio.sleep(0.05)
        first.released.set()
        await until(lambda: first.taken)
        await asyncio.sleep(0.1)
        said = list(app.said)
        second.released.set()
        await until(lambda: app.said == ["noted"])
        assert said == []


async def test_an_action_that_fails_does_not_lose_what_came_after_it() -> None:
    app = Little()
    async with app.run_test() as pilot:
        fence = Fence("panel x", Raising)
        holding = Holding("inside")
        await app.mount(fence)
        await fence.query_one(Raising).mount(holding)
        holding.focus()
        await pilot.pause()
        app.query_one(Input).focus()
        holding.focus()
        await pilot.pause()
        arrive(app, "x", "ctrl+f", "ctrl+o")
        await until(lambda: app.said == ["noted"])
        assert str(fence.error) == "it does not work"


async def test_a_screen_that_goes_while_a_key_is_under_way_on_it_does_not_keep_the_next_one() -> None:
    app = Little()
    async with app.run_test() as pilot:
        app.action_ask()
        await pilot.pause()
        holding = Holding()
        await app.screen.mount(holding)
        holding.focus()
        await pilot.pause()
        arrive(app, "h", "1", "a", "2", "enter")
        await asyncio.sleep(0.05)
        app.screen.dismiss("gone")
        holding.released.set()
        await until(lambda: len(app.said) == 2)
        assert app.said == ["gone", "2"]
        assert app.holding().taken == ["1"]
