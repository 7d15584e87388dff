"""The frame around a panel of a plugin, which answers the keys that work everywhere with what the panel says in plain text."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widget import Widget

from modelscope_app.tui.on_screen import Copied, Explanation


class PanelFrame(Vertical):
    """Holds one panel. What its methods raise is said by the app, which calls them."""

    DEFAULT_CSS = """
    PanelFrame { height: 1fr; }
    """

    def __init__(self, title: str, panel: Widget) -> None:
        super().__init__()
        self._title = title
        self._panel = panel

    def compose(self) -> ComposeResult:
        """The panel alone."""
        yield self._panel

    def explanation(self) -> Explanation | None:
        """For `?`; None, where the panel says nothing, leaves it to the fence."""
        text = self._said("explanation")
        return None if text is None else Explanation(self._title, text)

    def copied(self) -> Copied | None:
        """For `y`."""
        text = self._said("copied")
        return None if text is None else Copied(text, self._title)

    def headless_command(self) -> str | None:
        """For `c`."""
        return self._said("headless_command")

    def _said(self, method: str) -> str | None:
        ask = getattr(self._panel, method, None)
        said = ask() if callable(ask) else None
        return said if isinstance(said, str) else None
