"""`e`: write what is on the screen to a file. The format is chosen from a list, the path can be changed."""

from __future__ import annotations

import time
from pathlib import Path

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from modelscope_app.api import BadInput, neutralised
from modelscope_app.tui.on_screen import Exports
from modelscope_app.tui.thread_work import failure_told

READ_SECONDS = 0.7
"""In which nobody has read a question; an enter so soon after it was meant for what stood there before."""


class ExportScreen(ModalScreen[Path | None]):
    """Dismissed with the file written, or None."""

    DEFAULT_CSS = """
    ExportScreen { align: center middle; }
    ExportScreen > Vertical { width: 76; max-width: 95%; height: auto; background: $panel; border: round $primary; padding: 0 2; }
    ExportScreen Static { height: auto; }
    ExportScreen OptionList { height: auto; max-height: 8; border: none; }
    ExportScreen #said { color: $error; }
    """
    BINDINGS = [("escape", "leave", "Close")]

    class Written(Message):
        """The worker is done: with a path, or a sentence on why not."""

        def __init__(self, path: Path | None, error: str | None) -> None:
            self.path = path
            self.error = error
            super().__init__()

    class IsThere(Message):
        """A file of that name is there already."""

        def __init__(self, path: Path) -> None:
            self.path = path
            super().__init__()

    def __init__(self, exports: Exports) -> None:
        super().__init__()
        self._exports = exports
        self._may_replace: Path | None = None
        """What the user has been told is there."""
        self._asked_at = 0.0
        self._is_writing = False

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Content.assemble(("Export ", "bold"), (neutralised(self._exports.what, 100), "bold")))
            yield OptionList(*[Option(name, id=name) for name in self._exports.formats], id="formats")
            yield Static("to")
            yield Input(str(self._path(self._exports.formats[0])), id="path")
            yield Static(Content("enter writes, escape leaves it"), id="said")

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Another format is another suffix."""
        self.query_one("#path", Input).value = str(self._path(str(event.option.id)))

    def on_option_list_option_selected(self) -> None:
        """Enter on a format."""
        self._start()

    def on_input_submitted(self) -> None:
        """Enter on the path."""
        self._start()

    def on_export_screen_written(self, event: Written) -> None:
        """Close, or say what went wrong."""
        self._is_writing = False
        if event.error is None:
            if self.is_current:
                self.dismiss(event.path)
        else:
            self.query_one("#said", Static).update(Content(neutralised(event.error, 1000)))

    def on_export_screen_is_there(self, event: IsThere) -> None:
        """Ask, by saying so."""
        self._is_writing = False
        self._may_replace, self._asked_at = event.path, time.monotonic()
        self.query_one("#said", Static).update(Content(f"{neutralised(str(event.path), 400)} is there already; enter again replaces it"))

    def action_leave(self) -> None:
        """Nothing is written."""
        self.dismiss(None)

    def _path(self, suffix: str) -> Path:
        return self._exports.folder / f"{self._exports.name}.{suffix}"

    def _start(self) -> None:
        if self._is_writing or time.monotonic() - self._asked_at < READ_SECONDS:
            return
        self._is_writing = True
        formats = self.query_one("#formats", OptionList)
        chosen = self._exports.formats[formats.highlighted or 0]
        self.query_one("#said", Static).update(Content("writing ..."))
        self._write(chosen, self.query_one("#path", Input).value)

    @work(thread=True, exclusive=True, exit_on_error=False)
    def _write(self, chosen: str, typed: str) -> None:
        from modelscope_app.locations import absolute_path

        with failure_told(lambda sentence: self.post_message(self.Written(None, sentence)), "it cannot be written"):
            try:
                path = absolute_path(typed)
                if path.exists() and path.is_dir():
                    path = path / f"{self._exports.name}.{chosen}"
                if path.exists() and path != self._may_replace:
                    self.post_message(self.IsThere(path))
                    return
                self.post_message(self.Written(self._exports.write(chosen, path), None))
            except OSError as error:
                raise BadInput(f"{neutralised(typed, 200)}: cannot be written ({error.strerror or error})") from None
