"""The one line a table is asked on: a filter, a text to search for, or the number of a row."""

from __future__ import annotations

from typing import ClassVar, Literal

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input, Label, Static

from modelscope_app.tui.on_screen import Explanation
from modelscope_app.tui.plain import plain

Question = Literal["filter", "search", "row"]
_LABELS = {"filter": "filter", "search": "search", "row": "row"}
_HINTS = {
    "filter": "layer >= 5 and tensor contains q_proj     (= != < <= > >= ~ contains)",
    "search": "text in any column",
    "row": "number of a row, from 0",
}
_EXPLAINED = {
    "filter": "Keeps the rows for which all conditions hold: `column > 0.5`, `column = text`, `column contains text` in whatever case, "
    "`column ~ regular expression`, `column = unknown`, several joined by `and`. Columns and texts with spaces go in quotes. "
    "Unknown values meet no other condition. Enter applies, an empty filter shows all rows, escape leaves things as they were.",
    "search": "Goes to the first row that holds the text in some column, in whatever case, while you type. Enter returns to the table, "
    "where n and N go to the next and the previous match; escape forgets the search.",
    "row": "Goes to the row of that number in the stored table, from 0, wherever it stands now.",
}


class PromptInput(Input):
    """Where it is typed."""

    def explanation(self) -> Explanation:
        """For `?`."""
        prompt = self.query_ancestor(TablePrompt)
        return Explanation(_LABELS[prompt.question].capitalize(), _EXPLAINED[prompt.question])


class TablePrompt(Vertical):
    """A question, and below it what is wrong with the answer. Hidden while nothing is asked."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "close", "Close")]

    DEFAULT_CSS = """
    TablePrompt { height: auto; display: none; background: $panel; }
    TablePrompt > Horizontal { height: 1; }
    TablePrompt Label { padding: 0 1; width: auto; text-style: bold; }
    TablePrompt Input { width: 1fr; }
    TablePrompt .prompt-error { color: $text-error; height: auto; max-height: 3; padding: 0 1; display: none; }
    """

    class Typed(Message):
        """The answer as it stands; `finished` when enter was pressed."""

        def __init__(self, question: Question, text: str, finished: bool) -> None:
            self.question = question
            self.text = text
            self.finished = finished
            super().__init__()

    class Left(Message):
        """No answer is given."""

        def __init__(self, question: Question) -> None:
            self.question = question
            super().__init__()

    def __init__(self) -> None:
        super().__init__()
        self.question: Question = "filter"

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Label("", markup=False)
            yield PromptInput(compact=True, select_on_focus=False)
        yield Static("", classes="prompt-error", markup=False)

    def ask(self, question: Question, text: str = "") -> None:
        """Ask, with an answer to begin with."""
        self.question = question
        self.query_one(Label).update(_LABELS[question])
        line = self.query_one(PromptInput)
        line.placeholder = _HINTS[question]
        with line.prevent(Input.Changed):
            line.value = text
        line.cursor_position = len(text)
        self.say("")
        self.display = True
        line.focus()

    def say(self, sentence: str) -> None:
        """What is wrong; nothing where all is well."""
        line = self.query_one(".prompt-error", Static)
        line.update(plain(sentence))
        line.display = bool(sentence)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.say("")
        self.post_message(self.Typed(self.question, event.value, False))

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Typed(self.question, event.value, True))

    def action_close(self) -> None:
        """Leave without an answer."""
        self.post_message(self.Left(self.question))
