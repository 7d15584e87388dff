"""Keys take effect in the order in which they were pressed, also when several arrive at once, as they do over a slow link.

Textual gives a key to the focused widget at once, and runs what it is bound to only when it has come back up to the app. Of keys that
arrive together, later ones overtake it: `/two` moves the focus after `two` was given away, and `ctrl+u` deletes what was typed after
it. Here the next key (or pasted text) waits until the one before has had its effect: until it came back to the app and was handled, or
a marker sent behind it did, because a widget on the way took it. A second marker is sent through what has the focus then, so that what
the key made a widget say (`Input.Submitted`) was heard too.

A widget that holds a key for ever, or goes away with it, is waited for no longer than `PATIENCE_SECONDS`, and until it answers after
all, what comes for it is given to it without waiting. The mouse does not wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic

from textual import events
from textual.app import ReturnType
from textual.message import Message
from textual.widget import Widget

from modelscope_app.tui.fence import FencingApp

PATIENCE_SECONDS = 0.3
_PATIENCE_STEPS = 3
"""So that one moment in which the whole app stands still does not use all of it up."""

Typed = events.Key | events.Paste


class KeyPassed(Message):
    """Sent behind a key, along the same way to the app; `settled` the second time."""

    def __init__(self, key: Typed, settled: bool = False) -> None:
        self.key = key
        self.settled = settled
        super().__init__()


class OrderedKeysApp(FencingApp[ReturnType], Generic[ReturnType]):
    """An app that gives out one key at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._pressed: deque[Typed] = deque()
        self._under_way: Typed | None = None
        self._given_to: Widget | None = None
        self._is_handling = False
        """Whether the app itself is at the key under way, however long its action takes."""
        self._stuck: tuple[Widget, Typed] | None = None
        """Who did not answer in time, and to what."""
        self._patience: asyncio.TimerHandle | None = None

    async def on_event(self, event: events.Event) -> None:
        """Hold back a key that came while another is under way."""
        if not isinstance(event, events.Key | events.Paste):
            await super().on_event(event)
        elif event.is_forwarded:
            self._is_handling = event is self._under_way
            try:
                await super().on_event(event)
            finally:
                self._is_handling = False
            if event is self._under_way:
                self._send_behind(event)
        else:
            self._pressed.append(event)
            await self._give_next()

    async def _give_next(self) -> None:
        while self._pressed and self._under_way is None:
            key = self._pressed.popleft()
            target = self.focused or self.screen
            try:
                await super().on_event(key)
            except BaseException:
                self.call_later(self._give_next)  # what waits behind it goes on, whatever becomes of the error
                raise
            is_stuck = self._stuck is not None and self._stuck[0] is target
            if key.is_forwarded and not is_stuck:  # else a key that works everywhere, and its effect is there
                self._under_way, self._given_to = key, target
                target.post_message(KeyPassed(key))
                self._be_patient(key)

    def _be_patient(self, key: Typed, steps: int = _PATIENCE_STEPS) -> None:
        self._patience = asyncio.get_running_loop().call_later(PATIENCE_SECONDS / _PATIENCE_STEPS, self._has_waited, key, steps - 1)

    def _has_waited(self, key: Typed, steps: int) -> None:
        if key is not self._under_way:
            return
        if self._is_handling:
            self._be_patient(key)
        elif steps:
            self._be_patient(key, steps)
        else:
            self.call_later(self._give_up, key)

    async def _give_up(self, key: Typed) -> None:
        if key is self._under_way and self._given_to is not None:
            self._stuck = (self._given_to, key)
            await self._passed(key)

    def _send_behind(self, key: Typed) -> None:
        (self.focused or self.screen).post_message(KeyPassed(key, settled=True))

    def on_key_passed(self, event: KeyPassed) -> None:
        """The key was taken, or its effects were; what it asked for with `focus()` and `call_later` comes before the next."""
        event.stop()
        if self._stuck is not None and self._stuck[1] is event.key:
            self._stuck = None
        if event.key is not self._under_way:
            return
        if event.settled:
            self.call_later(self._passed, event.key)
        else:
            self._send_behind(event.key)

    async def _passed(self, key: Typed) -> None:
        if key is not self._under_way:
            return
        if self._patience is not None:
            self._patience.cancel()
        self._under_way = self._given_to = None
        await self._give_next()
