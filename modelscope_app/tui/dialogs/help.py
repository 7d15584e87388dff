"""`?`: what the focused thing is, and every key that works there."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from modelscope_app.api import neutralised
from modelscope_app.tui.on_screen import Explanation


class HelpScreen(ModalScreen[None]):
    """Explanation and keys; any of escape, q, enter and `?` closes it."""

    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen > VerticalScroll {
        width: 76; max-width: 95%; height: auto; max-height: 90%;
        background: $panel; border: round $primary; padding: 0 2;
    }
    HelpScreen Static { height: auto; margin-bottom: 1; }
    """
    BINDINGS = [("escape,q,enter,question_mark", "dismiss", "Close")]

    def __init__(self, explanation: Explanation, keys: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> None:
        """`keys` by where they work: title, then pairs of key and what it does."""
        super().__init__()
        self._explanation = explanation
        self._keys = keys

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=True):
            yield Static(Content.assemble((neutralised(self._explanation.title, 200), "bold")))
            yield Static(Content("\n".join(neutralised(line, 4000) for line in self._explanation.text.split("\n"))))
            for where, pairs in self._keys:
                width = max((len(key) for key, _ in pairs), default=0)
                lines = [Content.assemble((key.ljust(width + 2), "bold"), what) for key, what in pairs]
                if lines:
                    yield Static(Content.assemble((f"{where}\n", "bold underline"), Content("\n").join(lines)))
