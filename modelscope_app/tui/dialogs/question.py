"""A question with two answers; the safe one has the focus."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static


class Question(ModalScreen[bool]):
    """Dismissed with whether the answer was yes."""

    DEFAULT_CSS = """
    Question { align: center middle; }
    Question > Vertical { width: 64; max-width: 95%; height: auto; background: $panel; border: round $warning; padding: 1 2; }
    Question Static { height: auto; margin-bottom: 1; }
    Question Horizontal { height: auto; align-horizontal: right; }
    Question Button { margin-left: 2; }
    """
    BINDINGS = [("y", "answer(True)", "Yes"), ("n,escape", "answer(False)", "No"), ("left,right", "app.focus_next", "Other answer")]

    def __init__(self, text: str, yes: str, no: str) -> None:
        """`text` asks; `yes` and `no` say what each answer does."""
        super().__init__()
        self._text, self._yes, self._no = text, yes, no

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Content(self._text))
            with Horizontal():
                yield Button(Content(f"n  {self._no}"), id="no", variant="primary")
                yield Button(Content(f"y  {self._yes}"), id="yes", variant="warning")

    def on_mount(self) -> None:
        """The safe answer first."""
        self.query_one("#no", Button).focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """A click or enter."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        """A key."""
        self.dismiss(yes)
