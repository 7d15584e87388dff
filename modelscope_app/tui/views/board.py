"""The frame around every view: its title, the picture once it is computed, what is to be said of it, and its caption.

The drawing is computed in a thread. What goes wrong there, or while the picture is built from it, is a sentence in the
picture's place; the rest of the app goes on. A kind of view is a subclass that says which widget a drawing becomes.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static
from textual.worker import get_current_worker

from modelscope_app.api import neutralised
from modelscope_app.tui.on_screen import Copied, Explanation, Exports
from modelscope_app.tui.plain import plain
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.thread_work import failure_told

if TYPE_CHECKING:
    from modelscope_app.api import FinishedRun, View
    from modelscope_app.rendering.drawings import Drawing

LONGEST_TITLE = 200
LONGEST_NOTE = 2000
_CANNOT = "This view cannot be drawn"
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ViewBoard(Vertical):
    """One view of one run. Subclasses say what a drawing becomes (`body`) and, where it helps, how it is explained (`about`)."""

    about: ClassVar[str] = ""
    """What one can do here, for `?`: a sentence or two, plain text."""
    formats: ClassVar[tuple[str, ...]] = ("csv", "parquet", "json", "html", "svg")
    """What `e` offers."""

    DEFAULT_CSS = """
    ViewBoard { height: 1fr; width: 1fr; }
    ViewBoard > .view-title { height: 1; text-style: bold; color: $foreground; padding: 0 1; text-overflow: ellipsis; text-wrap: nowrap; }
    ViewBoard > .view-body { height: 1fr; }
    ViewBoard > .view-body > .view-sentence { padding: 1 2; width: 1fr; height: auto; }
    ViewBoard > .view-body > .view-error { color: $text-error; }
    ViewBoard > .view-body > .view-waiting { color: $text-muted; }
    ViewBoard > .view-notes { height: auto; max-height: 4; overflow-y: auto; padding: 0 1; color: $text-muted; display: none; }
    ViewBoard > .view-caption {
        height: auto; max-height: 4; overflow-y: auto; padding: 0 1; color: $text-muted; text-style: italic; display: none;
    }
    """

    class _Computed(Message):
        """The drawing is there."""

        def __init__(self, drawing: Drawing) -> None:
            self.drawing = drawing
            super().__init__()

    class _Failed(Message):
        """There will be no drawing."""

        def __init__(self, sentence: str) -> None:
            self.sentence = sentence
            super().__init__()

    class Shown(Message):
        """The picture, or the sentence in its place, is on the screen."""

        def __init__(self, board: ViewBoard) -> None:
            self.board = board
            super().__init__()

    def __init__(self, run: FinishedRun, view: View, *, id: str | None = None, classes: str | None = None) -> None:
        """Nothing is read before the board is mounted."""
        super().__init__(id=id, classes=classes)
        self.finished_run = run
        self.view = view
        self.drawing: Drawing | None = None
        """None until it is computed."""
        self.error: str | None = None
        """The sentence in the picture's place."""
        self._body: Widget | None = None
        """What shows the drawing; None while a sentence stands in its place."""

    def body(self, drawing: Drawing) -> Widget:
        """The widget that shows `drawing`. Called on the app's thread; what it raises becomes a sentence."""
        raise NotImplementedError

    def renewed(self, body: Widget, drawing: Drawing) -> bool:
        """Make `body`, which shows an earlier drawing, show `drawing`, and keep what the user did in it; False asks for a new body instead.

        Called on the app's thread, as `body`.
        """
        return False

    def computed(self) -> Drawing:
        """The drawing, computed in a thread: reads the run and nothing of the widget. Raises MscopeError, OSError."""
        from modelscope_app.rendering.drawings import drawing

        return drawing(self.finished_run, self.view)

    def compose(self) -> ComposeResult:
        yield Static(plain(self.view.title or self.view.name, LONGEST_TITLE), classes="view-title")
        with Vertical(classes="view-body"):
            yield Static("Computing ...", classes="view-sentence view-waiting", markup=False)
        yield Static("", classes="view-notes", markup=False)
        yield Static(plain(self.view.caption, LONGEST_NOTE), classes="view-caption", markup=False)

    def on_mount(self) -> None:
        self.query_one(".view-caption").display = bool(self.view.caption)
        self.reload()

    def reload(self) -> None:
        """Compute the drawing anew, as for a run that has gone on; what is on the screen stays until the new one is there."""
        self._compute()

    def focus_body(self) -> None:
        """Give the picture the keyboard, where it takes it."""
        for widget in self.screen.focus_chain:
            if self in widget.ancestors:
                widget.focus()
                return

    @work(thread=True, exclusive=True, exit_on_error=False, group="view")
    def _compute(self) -> None:
        worker = get_current_worker()

        def tell(message: Message) -> None:
            if not worker.is_cancelled:  # else it is being computed anew
                self.post_message(message)

        with failure_told(lambda sentence: tell(self._Failed(sentence)), _CANNOT):
            tell(self._Computed(self.computed()))

    @on(_Computed)
    async def _show_drawing(self, message: _Computed) -> None:
        message.stop()
        self.drawing, self.error = message.drawing, None
        with failure_told(lambda sentence: self.post_message(self._Failed(sentence)), _CANNOT):
            if self._body is not None and self.renewed(self._body, message.drawing):
                self.post_message(self.Shown(self))
            else:
                body = self.body(message.drawing)
                await self._put(body)
                self._body = body
            self.show_notes(message.drawing.notes)

    @on(_Failed)
    async def _show_failure(self, message: _Failed) -> None:
        message.stop()
        await self._show_sentence(message.sentence)

    async def _show_sentence(self, sentence: str) -> None:
        self.error = neutralised(sentence, LONGEST_NOTE)
        self._body = None
        await self._put(Static(plain(sentence, LONGEST_NOTE), classes="view-sentence view-error"))
        self.show_notes(())

    async def _put(self, widget: Widget) -> None:
        place = self.query_one(".view-body", Vertical)
        had_focus = self.screen.focused is not None and place in self.screen.focused.ancestors
        async with self.batch():
            await place.remove_children()
            await place.mount(widget)
        if had_focus:
            self.focus_body()
        self.post_message(self.Shown(self))

    def show_notes(self, notes: tuple[str, ...]) -> None:
        """Say these sentences below the picture."""
        line = self.query_one(".view-notes", Static)
        line.update(plain(" ".join(notes), LONGEST_NOTE))
        line.display = bool(notes)

    def explanation(self) -> Explanation:
        """For `?`."""
        text = " ".join(part for part in (self.view.caption, self.about, self.error or "") if part)
        return Explanation(neutralised(self.view.title or self.view.name, LONGEST_TITLE), neutralised(text, LONGEST_NOTE))

    def headless_command(self) -> str | None:
        """For `c`: shows the run, this view among its views."""
        return f"mscope runs show {run_word(self.finished_run)}"

    def copied(self) -> Copied | None:
        """For `y`: nothing, where the picture has nothing of its own."""
        return None

    def selection(self) -> Selection | None:
        """For `u`: nothing, where the picture has nothing of its own."""
        return None

    def exports(self) -> Exports | None:
        """For `e`: this view as files."""
        from modelscope_app.tui.views.view_files import view_exports

        return None if self.error else view_exports(self.finished_run, self.view, self.formats)


class UnknownBoard(ViewBoard):
    """A view of a kind this version does not know."""

    formats = ()

    def computed(self) -> Drawing:
        """Never there: raises BadInput."""
        from modelscope_app.api import BadInput

        raise BadInput(f"view {self.view.name!r} is of kind {self.view.kind!r}, which this version cannot draw; a newer mscope can")

    def body(self, drawing: Drawing) -> Widget:
        """Never asked for."""
        raise NotImplementedError


def run_word(run: FinishedRun) -> str:
    """RUN on a command line: the id of a run that lies where runs lie, else its folder, quoted for a shell."""
    from modelscope_app.runs.index import runs_dir

    if run.folder == runs_dir() / run.id and _PLAIN_ID.fullmatch(run.id):
        return run.id
    return shlex.quote(str(run.folder))
