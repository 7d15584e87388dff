"""Choosing instead of typing: from a list (runs, presets, what the user was on), and a name for a new preset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from modelscope_app.api import MscopeError
from modelscope_app.tui.on_screen import Explanation
from modelscope_app.tui.plain import plain
from modelscope_app.tui.thread_work import failure_told

_LONGEST_LINE = 200
_MOST_SHOWN = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """One thing to choose."""

    value: str
    text: str
    """For people; from wherever, so not to be trusted."""
    note: str = ""


class Box(ModalScreen[str | None]):
    """A framed box over the form. Gives back a text; None where the user leaves."""

    DEFAULT_CSS = """
    Box { align: center middle; }
    Box > Vertical {
        width: 90%; max-width: 110; height: auto; max-height: 90%; border: round $primary; background: $surface; padding: 0 1;
    }
    Box .title { text-style: bold; }
    Box .state { height: auto; color: $text-muted; }
    """


class Chooser(Box):
    """A list with a filter above it. Enter gives back the value of a line, escape None."""

    DEFAULT_CSS = """
    Chooser OptionList { height: auto; max-height: 16; border: none; background: transparent; padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back"),
        Binding("up", "move(-1)", "Up", show=False, priority=True),
        Binding("down", "move(1)", "Down", show=False, priority=True),
        Binding("ctrl+d", "delete", "Delete", priority=True),
    ]

    def __init__(
        self,
        title: str,
        load: Callable[[], Sequence[Line]],
        empty: str,
        delete: Callable[[str], None] | None = None,
    ) -> None:
        """`load` is called in a thread; `empty` is said where it gives nothing; `delete` removes a value for good."""
        super().__init__()
        self._title = title
        self._load = load
        self._empty = empty
        self._delete = delete
        self._lines: Sequence[Line] = ()
        self._to_delete: str | None = None

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(plain(self._title, _LONGEST_LINE), classes="title")
            yield Input(placeholder="type to filter", compact=True)
            yield OptionList(markup=False)
            yield Static("loading ...", classes="state")

    def on_mount(self) -> None:
        """Look for what there is."""
        self.query_one(OptionList).can_focus = False  # its keys work from the filter
        self._look()

    @work(thread=True, exclusive=True, exit_on_error=False, group="choices")
    def _look(self) -> None:
        with failure_told(partial(self.app.call_from_thread, self._show, ()), "this cannot be listed"):
            self.app.call_from_thread(self._show, self._load())

    def _show(self, lines: Sequence[Line], problem: str = "") -> None:
        self._lines = lines
        self._filter(problem)

    def _filter(self, problem: str = "") -> None:
        words = self.query_one(Input).value.lower().split()
        found = [line for line in self._lines if all(word in f"{line.value} {line.text} {line.note}".lower() for word in words)]
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options(Option(_prompt(line)) for line in found[:_MOST_SHOWN])
        self._found = found
        if found:
            options.highlighted = 0
        keys = "enter chooses, escape leaves" + (", ctrl+d deletes" if self._delete is not None else "")
        state = problem or (self._empty if not self._lines else "nothing fits" if not found else keys)
        self.query_one(".state", Static).update(plain(state, 500))

    @on(Input.Changed)
    def _typed(self) -> None:
        self._to_delete = None
        self._filter()

    @on(Input.Submitted)
    def _entered(self) -> None:
        line = self._highlighted()
        if line is not None:
            self.dismiss(line.value)

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._found[event.option_index].value)

    def action_move(self, by: int) -> None:
        """To another line."""
        options = self.query_one(OptionList)
        if by > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()
        self._to_delete = None

    def action_delete(self) -> None:
        """Asks first; the second time it is done."""
        line = self._highlighted()
        if self._delete is None or line is None:
            return
        state = self.query_one(".state", Static)
        if self._to_delete != line.value:
            self._to_delete = line.value
            state.update(plain(f"press ctrl+d again to delete {line.text}", _LONGEST_LINE))
            return
        try:
            self._delete(line.value)
        except (MscopeError, OSError) as error:
            state.update(plain(str(error), 500))
            return
        self._look()

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(self._title, "Type a part of a line to see fewer, go up and down, and choose one with enter.")

    def _highlighted(self) -> Line | None:
        index = self.query_one(OptionList).highlighted
        return None if index is None or index >= len(self._found) else self._found[index]

    _found: Sequence[Line] = ()


class NameAsked(Box):
    """A line to type a name in. `check` gives back a sentence about it and whether it will do."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Back")]

    def __init__(self, title: str, check: Callable[[str], tuple[bool, str]]) -> None:
        super().__init__()
        self._title = title
        self._check = check

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(plain(self._title, _LONGEST_LINE), classes="title")
            yield Input(placeholder="name", compact=True)
            yield Static(classes="state")

    @on(Input.Changed)
    def _typed(self) -> None:
        name = self.query_one(Input).value
        self.query_one(".state", Static).update(plain(self._check(name)[1] if name else "", 500))

    @on(Input.Submitted)
    def _entered(self) -> None:
        name = self.query_one(Input).value
        if self._check(name)[0]:
            self.dismiss(name.strip())

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(self._title, "Type a name and press enter; escape leaves without saving.")


def _prompt(line: Line) -> Content:
    text = plain(line.text, _LONGEST_LINE)
    return Content.assemble(text, "  ", plain(line.note, _LONGEST_LINE, "dim")) if line.note else text


def run_lines() -> list[Line]:
    """Runs that are done, newest first: those that another analysis can read."""
    from modelscope_app.runs.index import all_runs

    lines = []
    for run in all_runs():
        try:
            if run.read_status().state != "done":
                continue
            names = ", ".join(checkpoint.path.rstrip("/").rpartition("/")[2] for checkpoint in run.job.checkpoints)
        except MscopeError:
            continue
        lines.append(Line(run.id, run.id, f"{run.analysis} {names}".strip()))
    return lines
