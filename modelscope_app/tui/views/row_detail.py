"""One row of a table in full: every column, shown or not, with every digit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import OptionList, Static

from modelscope_app.tui.on_screen import Explanation
from modelscope_app.tui.plain import plain
from modelscope_app.tui.views.named_values import NamedValue, NamedValues


class RowFields(NamedValues):
    """The columns of a row. A click goes to one; enter, which would choose it, goes back to the table."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "close", "Back to the table", show=False)]

    def action_close(self) -> None:
        """Back to the table."""
        self.query_ancestor(RowDetail).action_close()

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "One row in full",
            "Every column of the row, with every digit; unknown is a value that is missing, not a number or infinite. "
            "Left and right go to the row before and after, y copies the value under the cursor, escape goes back to the table.",
        )


class RowDetail(Vertical):
    """A row in full, beside the table or in its place."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Back to the table"),
        Binding("left", "step(-1)", "Row before", show=False),
        Binding("right", "step(1)", "Row after", show=False),
    ]

    DEFAULT_CSS = """
    RowDetail { width: 1fr; height: 1fr; display: none; background: $surface; }
    RowDetail > .row-title { height: 1; padding: 0 1; background: $panel; text-style: bold; }
    """

    class Closed(Message):
        """Back to the table."""

    class Stepped(Message):
        """Another row, `by` rows on."""

        def __init__(self, by: int) -> None:
            self.by = by
            super().__init__()

    class FieldHighlighted(Message):
        """The cursor is on this column."""

        def __init__(self, column: str) -> None:
            self.column = column
            super().__init__()

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns: tuple[str, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static("", classes="row-title", markup=False)
        yield RowFields()

    def show(self, title: str, columns: Sequence[str], values: Sequence[NamedValue]) -> None:
        """Show a row; `columns` are the names as stored."""
        self._columns = tuple(columns)
        self.query_one(".row-title", Static).update(plain(title))
        self.query_one(RowFields).show(values)

    @property
    def column(self) -> str | None:
        """The column under the cursor, as stored."""
        at = self.query_one(RowFields).highlighted
        return self._columns[at] if at is not None and at < len(self._columns) else None

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        if self.column is not None:
            self.post_message(self.FieldHighlighted(self.column))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()

    def action_close(self) -> None:
        """Back to the table."""
        self.post_message(self.Closed())

    def action_step(self, by: int) -> None:
        """To a row nearby."""
        self.post_message(self.Stepped(by))
