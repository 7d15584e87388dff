"""A fence around a widget that somebody else wrote: when it raises, its error stands in its place and the app goes on.

Textual ends the whole app when any widget raises. Here the app and the screen (`FencingApp`, `FencingScreen`) look for the fence that
the error came out of: the innermost one around a widget whose method is in the traceback, or around the one whose message was being
handled. Actions and focus changes run in the app's or the screen's own message loop, which must not end with them; that is why both
catch what a message of theirs raises.

What this cannot hold back: a widget that never returns, and one that changes what lies outside its fence.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic

from textual._context import active_message_pump
from textual.app import App, ComposeResult, ReturnType
from textual.containers import Vertical
from textual.content import Content
from textual.dom import DOMNode
from textual.message import Message
from textual.screen import Screen, ScreenResultType
from textual.widget import Widget
from textual.widgets import Static

from modelscope_app.api import neutralised
from modelscope_app.tui.on_screen import Explanation


class Fence(Vertical):
    """Holds one widget, made by a function that may raise."""

    DEFAULT_CSS = """
    Fence { height: 1fr; }
    Fence > .fallen { padding: 1 2; color: $error; height: auto; }
    """

    def __init__(self, what: str, make: Callable[[], Widget], id: str | None = None) -> None:
        """`what` it is, for the sentence about its error: `panel probes.timeline`."""
        super().__init__(id=id)
        self._what = what
        self._make = make
        self.error: Exception | None = None
        """What it raised."""

    def compose(self) -> ComposeResult:
        try:
            widget = self._make()
            if not isinstance(widget, Widget):
                raise TypeError(f"it is of type {type(widget).__name__}, which is no textual widget")
        except Exception as error:
            self.error = error
            yield self._sentence(error)
        else:
            yield widget

    def fall(self, error: Exception) -> None:
        """Put the error in the place of the widget."""
        if self.error is not None:
            return
        self.error = error
        if isinstance(self.app, FencingApp):
            self.app.keep_in_log("".join(traceback.format_exception(error)))
        for child in list(self.children):
            child.display = False
        self.mount(self._sentence(error))
        self.call_later(self._clear)

    async def _clear(self) -> None:
        for child in list(self.children):
            if not child.has_class("fallen"):
                await _bury(child)

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            self._what, "A part that a plugin contributes. When it fails, its error is shown here and nothing else is affected."
        )

    def _sentence(self, error: Exception) -> Static:
        said = neutralised(str(error), 2000)
        text = f"{self._what} failed ({type(error).__name__}{': ' + said if said else ''}). The rest of the app is not affected."
        return Static(Content(text), classes="fallen")


class FencingApp(App[ReturnType], Generic[ReturnType]):
    """An app that outlives what is behind a fence."""

    log_descriptor: int | None = None
    """Of a file for what plugins print and the tracebacks of what fell; None keeps neither."""

    def keep_in_log(self, text: str) -> None:
        """Write to the log, if there is one."""
        if self.log_descriptor is not None:
            with suppress(OSError):
                os.write(self.log_descriptor, text.encode(errors="backslashreplace"))

    def _print(self, text: str, stderr: bool = False) -> None:
        """What somebody printed while the app has the terminal: textual would keep it for its own tools alone."""
        self.keep_in_log(text)
        super()._print(text, stderr)

    def _handle_exception(self, error: Exception) -> None:
        if not _fell(error):
            super()._handle_exception(error)

    async def _dispatch_message(self, message: Message) -> None:
        try:
            await super()._dispatch_message(message)
        except Exception as error:
            if not _fell(error):
                raise


class FencingScreen(Screen[ScreenResultType], Generic[ScreenResultType]):
    """A screen that outlives what is behind a fence on it."""

    async def _dispatch_message(self, message: Message) -> None:
        try:
            await super()._dispatch_message(message)
        except Exception as error:
            if not _fell(error):
                raise


def _fell(error: Exception) -> bool:
    """Whether a fence took the error."""
    fence = fence_of(error)
    if fence is None or not fence.is_attached:
        return False
    fence.fall(error)
    return True


async def _bury(widget: Widget) -> None:
    """Take a widget and all below it out of the app, also those whose message loop has ended with an error."""
    for child in list(widget.children):
        if _has_ended(child):
            await _bury(child)
    if not _has_ended(widget):
        widget.remove()  # not awaited: what raised may never answer
        return
    with suppress(Exception):  # its own unmounting may raise once more
        await asyncio.wait_for(widget._message_loop_exit(), 1.0)
    if widget.parent is not None:
        with suppress(Exception):
            widget.parent._nodes._remove(widget)


def _has_ended(widget: Widget) -> bool:
    task: asyncio.Task[Any] | None = widget._task
    return task is None or task.done()


def fence_of(error: BaseException) -> Fence | None:
    """The fence an error came out of; None for an error of the app itself."""
    for cause in (error, getattr(error, "error", None), error.__cause__):
        if isinstance(cause, BaseException):
            found = _in_traceback(cause.__traceback__)
            if found is not None:
                return found
    return _around(active_message_pump.get(None))


def _in_traceback(step: TracebackType | None) -> Fence | None:
    found = None
    while step is not None:
        fence = _around(step.tb_frame.f_locals.get("self"))
        found = fence if fence is not None else found
        step = step.tb_next
    return found


def _around(thing: object) -> Fence | None:
    if not isinstance(thing, DOMNode) or isinstance(thing, Fence):
        return None
    node: DOMNode | None = thing
    while node is not None:
        if isinstance(node, Fence):
            return node
        node = node._parent if isinstance(node._parent, DOMNode) else None
    return None
