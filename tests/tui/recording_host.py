"""A small app that shows one widget or screen, keeps the messages it is sent, and says what is on the screen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from textual.app import App, ComposeResult
from textual.message import Message
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget

from modelscope_app.tui.messages import AnalysisChosen, CheckpointOpened, RunOpened, RunsCompared, Selected

Kind = TypeVar("Kind", bound=Message)

_ROUNDS = 4
"""A worker's message may start another worker."""


class Host(App[None]):
    """Shows what it is given."""

    def __init__(self, shown: Widget | Screen[Any]) -> None:
        super().__init__()
        self.shown = shown
        self.sent: list[Message] = []

    def compose(self) -> ComposeResult:
        if not isinstance(self.shown, Screen):
            yield self.shown

    async def on_mount(self) -> None:
        if isinstance(self.shown, Screen):
            await self.push_screen(self.shown)

    def all_sent(self, kind: type[Kind]) -> list[Kind]:
        return [message for message in self.sent if isinstance(message, kind)]

    def on_event_sent(self, message: Message) -> None:
        self.sent.append(message)

    on_checkpoint_opened: Callable[[Host, CheckpointOpened], None] = on_event_sent
    on_run_opened: Callable[[Host, RunOpened], None] = on_event_sent
    on_runs_compared: Callable[[Host, RunsCompared], None] = on_event_sent
    on_analysis_chosen: Callable[[Host, AnalysisChosen], None] = on_event_sent
    on_selected: Callable[[Host, Selected], None] = on_event_sent
    on_tensor_chosen: Callable[[Host, Message], None] = on_event_sent

    def lines(self) -> list[str]:
        """What is on the screen, a text a line."""
        width, height = self.size
        return ["".join(segment.text for segment in strip) for strip in self.screen._compositor.render_strips()][:height] or [" " * width]

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines())


@asynccontextmanager
async def hosted(shown: Widget | Screen[Any], size: tuple[int, int] = (80, 24)) -> Any:
    """The app and its pilot, settled."""
    app = Host(shown)
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        yield app, pilot


async def settled(pilot: Pilot[Any]) -> None:
    """Until no worker is left and everything is drawn."""
    for _ in range(_ROUNDS):
        await pilot.pause()
        await pilot.app.workers.wait_for_complete()
    await pilot.pause()


async def press(pilot: Pilot[Any], *keys: str) -> None:
    await pilot.press(*keys)
    await settled(pilot)
