"""A table one can work in: the grid, a line that says what is shown, the prompt, and one row in full.

Sorting, filtering and searching are computed in a thread and come back as a message; an answer to an older question is dropped.
Imported only where a table is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import polars
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Static

from modelscope_app.api import BadInput, neutralised
from modelscope_app.rendering.wording import count_text
from modelscope_app.tui.messages import Selected
from modelscope_app.tui.on_screen import Copied
from modelscope_app.tui.plain import plain
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.thread_work import failure_told
from modelscope_app.tui.views.named_values import NamedValue
from modelscope_app.tui.views.row_detail import RowDetail, RowFields
from modelscope_app.tui.views.row_selection import KINDS, RowSelections
from modelscope_app.tui.views.table_answers import Found, NotFound, NotOrdered, OrderAsked, Ordered, Sought, found, ordered
from modelscope_app.tui.views.table_filter import condition
from modelscope_app.tui.views.table_grid import TableGrid
from modelscope_app.tui.views.table_prompt import TablePrompt
from modelscope_app.tui.views.table_rows import Sort, TableRows, exact_text, full_text, text_columns
from modelscope_app.tui.views.table_search import Matches

BESIDE_FROM = 110
"""Cells of width from which a row in full stands beside the table, not in its place."""
_LONGEST_SAID = 40


class TablePane(Vertical):
    """A frame as a table."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort", "Sort"),
        Binding("f", "ask('filter')", "Filter"),
        Binding("/", "ask('search')", "Search"),
        Binding("n", "match(1)", "Next match", show=False),
        Binding("N", "match(-1)", "Match before", show=False),
        Binding("r", "ask('row')", "Go to row", show=False),
        Binding("h", "hide_column", "Hide column", show=False),
        Binding("H", "show_columns", "Show all columns", show=False),
    ]

    DEFAULT_CSS = """
    TablePane { height: 1fr; width: 1fr; }
    TablePane > Horizontal { height: 1fr; }
    TablePane > .table-status { height: 1; padding: 0 1; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
    TablePane.-in-full RowDetail { display: block; }
    TablePane.-in-full TableGrid { display: none; }
    TablePane.-in-full.-wide TableGrid { display: block; }
    TablePane.-in-full.-wide RowDetail { border-left: vkey $panel; }
    """

    def __init__(
        self,
        what: str,
        frame: polars.DataFrame,
        columns: Sequence[str] = (),
        *,
        sort: Sort | None = None,
        order: polars.Series | None = None,
        selections: RowSelections | None = None,
        id: str | None = None,
    ) -> None:
        """`what` names the table in messages; `order` is that of `sort`; `columns` are those shown at first, all where empty."""
        super().__init__(id=id)
        self.what = neutralised(what, _LONGEST_SAID)
        self.rows = TableRows(frame, None, list(columns) or None)
        self.rows.order = order
        self.sort_by = sort
        self.condition = ""
        self._wanted_sort, self._wanted_condition = sort, ""
        """What was last asked for: keys may be pressed faster than rows are sorted."""
        self._newest = frame
        """What is shown, or will be when it is in order."""
        self._answering: str | None = None
        """The filter that stands in the prompt and is not applied yet."""
        self.selections = selections or RowSelections()
        self._view_columns = tuple(columns)
        self.grid = TableGrid(self.rows, sort, moved=self.say_status)
        self._line = Static("", classes="table-status", markup=False)
        self._asked = 0
        self._searches = 0
        self._working = ""
        self._sought = ""
        self._searching = False
        self._is_going = False
        """Whether the cursor goes to what is being searched for."""
        self._matches: Matches | None = None
        self._sought_from = 0
        self._detail_column: str | None = None

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield self.grid
            yield RowDetail()
        yield TablePrompt()
        yield self._line

    def on_mount(self) -> None:
        self.say_status()

    def on_resize(self, event: events.Resize) -> None:
        self.set_class(event.size.width >= BESIDE_FROM, "-wide")

    def frame_shown(self) -> Callable[[], polars.DataFrame]:
        """Makes a frame of the rows and columns shown at this moment, in the order shown; to be called in a thread."""
        columns, order = self.rows.data[self._names_shown()], self.rows.order
        return lambda: columns if order is None else columns[order]

    def renew(self, frame: polars.DataFrame, selections: RowSelections) -> bool:
        """Show these rows instead, sorted, filtered and searched as those are, the same columns hidden, the cursor where it is.

        Those stay until these are in order. False where a column is gone that one of this needs.
        """
        needed = {*self._names_shown(), *self._view_columns, *([self._wanted_sort.column] if self._wanted_sort else [])}
        try:
            if self.condition:
                condition(self.condition, frame.schema)
        except BadInput:
            return False
        if not needed <= set(frame.columns):
            return False
        self._newest, self.selections = frame, selections
        self._ask_order(self._wanted_sort, self._wanted_condition, self._working)
        return True

    def _names_shown(self) -> list[str]:
        return [self.rows.name_at(at) for at in range(self.rows.column_count)]

    # --- what is under the cursor

    def row_values(self) -> Mapping[str, Any] | None:
        """The row under the cursor by column, as stored."""
        row = self.grid.frame_row
        return None if row is None else {name: self.rows.value(row, at) for at, name in enumerate(self.rows.data.columns)}

    def selection(self) -> Selection | None:
        """For `u`."""
        row = self.grid.frame_row
        return None if row is None else self.select(row, self._detail_column or self.grid.column_name)

    def select(self, row: int, column: str | None) -> Selection | None:
        """What a row of the frame is about, if that can be handed over."""
        telling = {name: self.rows.value(row, at) for at, name in enumerate(self.rows.data.columns) if name in KINDS}
        return self.selections.selection(telling, column)

    def copied(self) -> Copied | None:
        """For `y`: the row as tab-separated values, every column shown, every digit."""
        row = self.grid.frame_row
        if row is None:
            return None
        text = "\t".join(exact_text(self.rows.value(row, at)) for at in self.rows.shown)
        return Copied(text, f"row {row} of {self.what}")

    @on(TableGrid.CellHighlighted)
    def _moved(self, event: TableGrid.CellHighlighted) -> None:
        event.stop()
        if self.has_class("-in-full"):
            self._show_in_full()
        self.post_message(Selected(self.selection()))

    # --- a row in full

    @on(TableGrid.CellSelected)
    def _open_in_full(self, event: TableGrid.CellSelected) -> None:
        event.stop()
        self.add_class("-in-full")
        self._show_in_full()
        self.query_one(RowFields).focus()

    def _show_in_full(self) -> None:
        row, values = self.grid.frame_row, self.row_values()
        if row is None or values is None:
            return
        fields = [
            NamedValue(neutralised(name, 200), full_text(value, name), value if isinstance(value, str) else exact_text(value))
            for name, value in values.items()
        ]
        self.query_one(RowDetail).show(f"row {row:,} of {self.what}", list(values), fields)

    @on(RowDetail.FieldHighlighted)
    def _field(self, event: RowDetail.FieldHighlighted) -> None:
        event.stop()
        if self.has_class("-in-full"):
            self._detail_column = event.column
            self.post_message(Selected(self.selection()))

    @on(RowDetail.Stepped)
    def _step(self, event: RowDetail.Stepped) -> None:
        event.stop()
        self.grid.move_cursor(row=self.grid.cursor_row + event.by)

    @on(RowDetail.Closed)
    def _close_in_full(self, event: RowDetail.Closed) -> None:
        event.stop()
        self.remove_class("-in-full")
        self._detail_column = None
        self.grid.focus()
        self.post_message(Selected(self.selection()))

    # --- sorting and filtering

    def action_sort(self) -> None:
        """Sort by the column under the cursor: rising, falling, as stored."""
        if self.grid.column_name is not None:
            self._sort_by(self.grid.column_name)

    @on(TableGrid.HeaderSelected)
    def _header_clicked(self, event: TableGrid.HeaderSelected) -> None:
        event.stop()
        self._sort_by(self.rows.name_at(event.column_index))

    def _sort_by(self, column: str) -> None:
        now = self._wanted_sort
        if now is None or now.column != column:
            sort: Sort | None = Sort(column, False)
        else:
            sort = None if now.descending else Sort(column, True)
        self._ask_order(sort, self._wanted_condition, f"sorting by {neutralised(column, _LONGEST_SAID)} ...")

    def _ask_order(self, sort: Sort | None, typed: str, doing: str) -> None:
        self._asked += 1
        self._wanted_sort, self._wanted_condition = sort, typed
        self._working = doing
        self.say_status()
        asked = OrderAsked(self._asked, self._newest, sort, typed)
        self._answer(lambda: ordered(asked), lambda why: NotOrdered(asked, why), "sort")

    def _answer(self, work: Callable[[], Message], failed: Callable[[str], Message], what: str) -> None:
        """Work in a thread, its result or its failure as a message."""

        def answer() -> None:
            with failure_told(lambda why: self.post_message(failed(why)), f"the {what} failed"):
                self.post_message(work())

        self.run_worker(answer, thread=True, exclusive=True, exit_on_error=False, group=f"table-{what}")

    @on(Ordered)
    def _show_order(self, message: Ordered) -> None:
        message.stop()
        asked = message.asked
        if asked.number != self._asked:
            return
        is_new, row, place, name = asked.frame is not self.rows.data, self.grid.frame_row, self.grid.cursor_row, self.grid.column_name
        if is_new:
            self._hold(asked.frame)
        keep = row if asked.sort == self.sort_by else None
        self._working, self.sort_by, self.condition = "", asked.sort, asked.typed
        names = self._names_shown()
        column = names.index(name) if name in names else 0
        self.grid.show_order(message.order, asked.sort, keep, place if is_new and keep is not None else 0, column)
        if self._answering == asked.typed:
            self._end_prompt()
        if self.has_class("-in-full"):
            self._show_in_full()
        self.say_status()
        if self._sought:
            prompt = self.query_one(TablePrompt)
            is_typed = prompt.display and prompt.question == "search"
            self._seek(self._sought, go=is_typed or (self._searching and self._is_going))
        self.post_message(Selected(self.selection()))

    def _hold(self, frame: polars.DataFrame) -> None:
        """Take a newer frame; columns that were not there before are shown, unless the view names its columns."""
        known = set(self.rows.data.columns)
        kept = [name for name in self._names_shown() if name in frame.columns]
        added = [] if self._view_columns else [name for name in frame.columns if name not in known]
        self.rows.hold(frame, kept + added or frame.columns)

    @on(NotOrdered)
    def _say_why_not(self, message: NotOrdered) -> None:
        message.stop()
        asked = message.asked
        if asked.number != self._asked:
            return
        self._working = ""
        is_other = (asked.sort, asked.typed) != (self.sort_by, self.condition)
        self._wanted_sort, self._wanted_condition = self.sort_by, self.condition
        if self._newest is not self.rows.data and is_other:
            self._ask_order(self.sort_by, self.condition, "")
        if self._answering == asked.typed:
            self._answering = None
            self.query_one(TablePrompt).say(message.sentence)
            self.say_status()
        else:
            self.say_status(message.sentence)

    def action_hide_column(self) -> None:
        """Hide the column under the cursor; the last one stays."""
        if self.rows.column_count > 1:
            at = self.grid.cursor_column
            self.rows.shown = self.rows.shown[:at] + self.rows.shown[at + 1 :]
            self.grid.lay_out_columns()
            self.grid.move_cursor(column=min(at, self.rows.column_count - 1))
            self.say_status()

    def action_show_columns(self) -> None:
        """Show all columns of the table, also those its view leaves out."""
        name, every = self.grid.column_name, self.rows.data.columns
        first = self._view_columns or every
        self.rows.shown = [every.index(one) for one in (every if self.rows.column_count < len(every) else first)]
        self.grid.lay_out_columns()
        at = next((at for at in range(self.rows.column_count) if self.rows.name_at(at) == name), 0)
        self.grid.move_cursor(column=at)
        self.say_status()

    # --- asking

    def action_ask(self, question: str) -> None:
        """Open the prompt."""
        if self.has_class("-in-full"):
            self.remove_class("-in-full")
            self._detail_column = None
        self._sought_from = self.grid.cursor_row
        self._answering = None
        prompt = self.query_one(TablePrompt)
        if question == "filter":
            prompt.ask("filter", self.condition)
        elif question == "search":
            prompt.ask("search", self._sought)
        else:
            prompt.ask("row")

    @on(TablePrompt.Typed)
    def _answered(self, message: TablePrompt.Typed) -> None:
        message.stop()
        if message.question == "search":
            if message.text != self._sought:
                self._seek(message.text, go=True)
            if message.finished:
                self._end_prompt()
        elif message.question == "filter" and not message.finished:
            self._answering = None  # it is being changed: an answer to what stood there does not close it
        elif message.question == "filter":
            self._answering = message.text.strip()
            self._ask_order(self._wanted_sort, self._answering, "filtering ...")
        elif message.finished:
            self._go_to_row(message.text)

    @on(TablePrompt.Left)
    def _left(self, message: TablePrompt.Left) -> None:
        message.stop()
        if message.question == "search":
            self._sought, self._matches, self._searching = "", None, False
            self.grid.move_cursor(row=self._sought_from)
        self._end_prompt()
        self.say_status()

    def _end_prompt(self) -> None:
        prompt = self.query_one(TablePrompt)
        had_focus = prompt.display and self.screen.focused is not None and prompt in self.screen.focused.ancestors
        prompt.display, self._answering = False, None
        if had_focus:
            self.grid.focus()

    def _go_to_row(self, text: str) -> None:
        digits = text.strip().replace(",", "")
        rows = self.rows
        if not digits.isdecimal() or len(digits) > 18 or int(digits) >= rows.source_row_count:
            self.query_one(TablePrompt).say(f"rows are numbered from 0 to {rows.source_row_count - 1:,}")
            return
        at = rows.place_of(int(digits))
        if at is None:
            self.query_one(TablePrompt).say(f"row {int(digits):,} does not meet the filter")
            return
        self.grid.move_cursor(row=at)
        self._end_prompt()

    # --- searching

    def _seek(self, text: str, go: bool) -> None:
        self._sought, self._matches, self._searching, self._is_going = text, None, bool(text), go
        self._searches += 1
        self.say_status()
        if not text:
            return
        asked = Sought(self._searches, self.rows.data, self.rows.order, text, go)
        self._answer(lambda: found(asked), lambda why: NotFound(asked, why), "search")

    @on(Found)
    def _show_found(self, message: Found) -> None:
        message.stop()
        if message.asked.number != self._searches or not self._searching:
            return
        self._searching, self._matches = False, message.matches
        if message.asked.go:
            self._go_to_match(message.matches.from_row(self._sought_from))
        self.say_status()

    @on(NotFound)
    def _say_not_found(self, message: NotFound) -> None:
        message.stop()
        if message.asked.number == self._searches and self._searching:
            self._searching = False
            self.say_status(message.sentence)

    def action_match(self, by: int) -> None:
        """To the next or the previous row that holds the text sought."""
        if self._matches is not None:
            self._go_to_match(self._matches.beside(self.grid.cursor_row, by))

    def _go_to_match(self, at: int | None) -> None:
        if at is None:
            return
        row, wanted = self.rows.row_of(at), self._sought.lower()
        names = set(text_columns(self.rows.data))
        holding = (
            shown
            for shown, column in enumerate(self.rows.shown)
            if self.rows.name_at(shown) in names and wanted in str(self.rows.value(row, column) or "").lower()
        )
        self.grid.move_cursor(row=at, column=next(holding, self.grid.cursor_column))

    # --- the line below

    def say_status(self, sentence: str = "") -> None:
        """Say what is shown, or this."""
        self._line.update(plain(sentence or self._status()), layout=False)

    def _status(self) -> str:
        rows = self.rows
        parts = [count_text(rows.source_row_count, "row")]
        if self.condition:
            parts.append(f"{rows.row_count:,} match")
        if self.sort_by is not None:
            way = "descending" if self.sort_by.descending else "ascending"
            parts.append(f"sorted by {neutralised(self.sort_by.column, _LONGEST_SAID)} {way}")
        if self._matches is not None:
            parts.append(self._matches.said(self.grid.cursor_row, text_columns(rows.data)))
        if rows.column_count < rows.data.width:
            parts.append(f"{rows.data.width - rows.column_count} of {rows.data.width} columns hidden")
        if self.condition:
            parts.append(f"filter {neutralised(self.condition, _LONGEST_SAID * 2)}")
        if self._searching:
            parts.insert(0, "searching ...")
        if self._working:
            parts.insert(0, self._working)
        elif rows.row_count and not self._searching:
            parts.insert(0, f"row {self.grid.frame_row:,}")
        return " · ".join(parts)
