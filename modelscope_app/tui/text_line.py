"""A line to type in, for terminals that hand over several keys at once, as those behind a slow link do."""

from __future__ import annotations

from textual import events
from textual.widgets import Input


class TextLine(Input):
    """An input whose editing keys take effect in the order in which they come.

    In textual a character is put in at once, and a key that edits (ctrl+u, backspace) only when it has come back from the app: of keys
    that arrive together, characters overtake it, and `ctrl+u` deletes what was typed after it.
    """

    async def _on_key(self, event: events.Key) -> None:
        for binding in self._bindings.key_to_bindings.get(event.key, ()):
            if await self.app.run_action(binding.action, self):
                event.stop()
                event.prevent_default()
                return
