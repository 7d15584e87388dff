"""What a table is asked, computed in a thread: a new order of its rows, or where a text is. Imported only where a table is shown."""

from __future__ import annotations

import polars
from polars.exceptions import PanicException, PolarsError
from textual.message import Message

from modelscope_app.api import MscopeError
from modelscope_app.tui.views.board import sentence_of
from modelscope_app.tui.views.table_filter import condition
from modelscope_app.tui.views.table_rows import Sort, matches, row_order
from modelscope_app.tui.views.table_search import Matches


class Ordered(Message):
    """The rows in their new order; `asked` counts the questions, so that an answer to an older one is known."""

    def __init__(self, asked: int, order: polars.Series | None, sort: Sort | None, typed: str) -> None:
        self.asked = asked
        self.order = order
        self.sort = sort
        self.typed = typed
        super().__init__()


class NotOrdered(Message):
    """Why there is no new order."""

    def __init__(self, asked: int, sentence: str) -> None:
        self.asked = asked
        self.sentence = sentence
        super().__init__()


class Found(Message):
    """Where a text is; `go` where the cursor is to go there."""

    def __init__(self, matches: Matches, go: bool) -> None:
        self.matches = matches
        self.go = go
        super().__init__()


def ordered(frame: polars.DataFrame, asked: int, sort: Sort | None, typed: str) -> Ordered | NotOrdered:
    """The rows that meet the filter that was typed, sorted."""
    try:
        return Ordered(asked, row_order(frame, sort, condition(typed, frame.schema) if typed else None), sort, typed)
    except (MscopeError, OSError) as error:
        return NotOrdered(asked, sentence_of(error))
    except (PolarsError, PanicException) as error:
        return NotOrdered(asked, f"that does not fit the column: {next(iter(str(error).splitlines()), 'polars refuses it')}")


def found(frame: polars.DataFrame, order: polars.Series | None, text: str, go: bool) -> Found:
    """The rows that hold a text."""
    return Found(Matches(text, matches(frame, order, text)), go)
