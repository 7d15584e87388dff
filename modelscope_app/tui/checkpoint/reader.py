"""A long text, read in full: a chat template, an entry of a config, a sentence that had no room."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from modelscope_app.api import neutralised
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.plain import plain

_MOST_CHARACTERS = 200_000
_LONGEST_TITLE = 200


class Reader(ModalScreen[None]):
    """The text over what was on the screen; escape goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", "Back")]
    DEFAULT_CSS = """
    Reader {
        align: center middle;
        & > Vertical { width: 90%; max-width: 110; height: 90%; border: round $primary; background: $surface; padding: 0 1; }
        & #reader-title { height: auto; max-height: 3; text-style: bold; }
        & #reader-foot { height: 1; color: $text-muted; }
        & VerticalScroll { height: 1fr; }
    }
    """

    def __init__(self, title: str, text: str) -> None:
        """Both may be untrusted."""
        super().__init__()
        self._title = title
        self._text = text

    def compose(self) -> ComposeResult:
        """Title, text and what to press."""
        with Vertical():
            yield Static(plain(self._title, _LONGEST_TITLE), id="reader-title")
            with VerticalScroll():
                yield Static(Content("\n".join(readable(self._text[:_MOST_CHARACTERS]))))
            left = len(self._text) - _MOST_CHARACTERS
            yield Static(
                f"{left:,} more characters not shown; y copies all" if left > 0 else "y copies, escape goes back", id="reader-foot"
            )

    def on_mount(self) -> None:
        """The text scrolls at once."""
        self.query_one(VerticalScroll).focus()

    def copied(self) -> Copied | None:
        """All of the text, also what is not shown."""
        return Copied(self._text, neutralised(self._title, 60))

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation("Text", "The text in full. What a terminal would obey is shown as its escape. y copies it, escape closes it.")


def readable(text: str) -> list[str]:
    """Lines of an untrusted text, each harmless to print, tabs as spaces."""
    return [neutralised(line.expandtabs(4)) for line in text.split("\n")]
