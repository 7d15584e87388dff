"""The frame around a panel of a plugin, which answers the keys that work everywhere with what the panel says in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widget import Widget

from modelscope_app.api import neutralised
from modelscope_app.api.params import SelectionKind
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.selections import Selection

_LONGEST_LABEL = 60


class PanelFrame(Vertical):
    """Holds one panel. What its methods raise is said by the app, which calls them."""

    DEFAULT_CSS = """
    PanelFrame { height: 1fr; }
    """

    def __init__(self, title: str, panel: Widget, run: str | None = None, checkpoints: Sequence[str] = ()) -> None:
        """`run` is the folder of the run it shows, `checkpoints` what that one was given."""
        super().__init__()
        self._title = title
        self._panel = panel
        self._run = run
        self._checkpoint = checkpoints[0] if len(checkpoints) == 1 else None

    def compose(self) -> ComposeResult:
        """The panel alone."""
        yield self._panel

    def explanation(self) -> Explanation | None:
        """For `?`; None, where the panel says nothing, leaves it to the fence."""
        text = self._said("explanation")
        return Explanation(self._title, text) if isinstance(text, str) else None

    def copied(self) -> Copied | None:
        """For `y`."""
        text = self._said("copied")
        return Copied(text, self._title) if isinstance(text, str) else None

    def headless_command(self) -> str | None:
        """For `c`."""
        command = self._said("headless_command")
        return command if isinstance(command, str) else None

    def selection(self) -> Selection | None:
        """For `u`: a pair of a kind there is and a text; None for anything else."""
        said = self._said("selection")
        if not (isinstance(said, tuple) and len(said) == 2 and said[0] in get_args(SelectionKind) and isinstance(said[1], str)):
            return None
        kind, value = cast("tuple[SelectionKind, str]", said)
        return Selection(kind, value, f"{kind} {neutralised(value, _LONGEST_LABEL)}", self._checkpoint, self._run)

    def _said(self, method: str) -> Any:
        ask = getattr(self._panel, method, None)
        return ask() if callable(ask) else None
