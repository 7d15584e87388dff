"""Keys take effect in the order in which they were pressed, also when several arrive at once, as they do over a slow link.

Textual gives a key to the focused widget at once, and runs what it is bound to only when it has come back up to the app. Of keys that
arrive together, later ones overtake it: `/two` moves the focus after `two` was given away, and `ctrl+u` deletes what was typed after
it. Here the next key waits until the one before has had its effect: until it came back to the app and was handled, or a marker sent
behind it did, because a widget on the way took it. A second marker is sent through what has the focus then, so that what the key made
a widget say (`Input.Submitted`) was heard too. A widget that holds a key for ever, or goes away with it, is waited for no longer than
`PATIENCE_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic

from textual import events
from textual.app import ReturnType
from textual.message import Message

from modelscope_app.tui.fence import FencingApp

PATIENCE_SECONDS = 0.3


class KeyPassed(Message):
    """Sent behind a key, along the same way to the app; `settled` the second time."""

    def __init__(self, key: events.Key, settled: bool = False) -> None:
        self.key = key
        self.settled = settled
        super().__init__()


class OrderedKeysApp(FencingApp[ReturnType], Generic[ReturnType]):
    """An app that gives out one key at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._pressed: deque[events.Key] = deque()
        self._under_way: events.Key | None = None
        self._patience: asyncio.TimerHandle | None = None

    async def on_event(self, event: events.Event) -> None:
        """Hold back a key that came while another is under way."""
        if not isinstance(event, events.Key):
            await super().on_event(event)
        elif event.is_forwarded:
            await super().on_event(event)
            if event is self._under_way:
                self._send_behind(event, settled=True)
        else:
            self._pressed.append(event)
            await self._give_next()

    async def _give_next(self) -> None:
        while self._pressed and self._under_way is None:
            key = self._pressed.popleft()
            target = self.focused or self.screen
            await super().on_event(key)
            if key.is_forwarded:  # else a key that works everywhere, and its effect is there
                self._under_way = key
                target.post_message(KeyPassed(key))
                self._patience = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self.call_later, self._passed, key)

    def _send_behind(self, key: events.Key, settled: bool) -> None:
        (self.focused or self.screen).post_message(KeyPassed(key, settled))

    def on_key_passed(self, event: KeyPassed) -> None:
        """The key was taken, or its effects were; what it asked for with `focus()` and `call_later` comes before the next."""
        event.stop()
        if event.key is not self._under_way:
            return
        if event.settled:
            self.call_later(self._passed, event.key)
        else:
            self._send_behind(event.key, settled=True)

    async def _passed(self, key: events.Key) -> None:
        if key is not self._under_way:
            return
        if self._patience is not None:
            self._patience.cancel()
        self._under_way = None
        await self._give_next()
