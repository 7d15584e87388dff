"""What a table is asked, computed in a thread: a new order of its rows, or where a text is. Imported only where a table is shown."""

from __future__ import annotations

from typing import NamedTuple

import polars
from polars.exceptions import PanicException, PolarsError
from textual.message import Message

from modelscope_app.api import BadInput
from modelscope_app.tui.thread_work import sentence_of
from modelscope_app.tui.views.table_filter import condition
from modelscope_app.tui.views.table_rows import Sort, matches, row_order
from modelscope_app.tui.views.table_search import Matches


class OrderAsked(NamedTuple):
    """Which rows of a frame, and in which order."""

    number: int
    """Counts the questions, so that an answer to an older one is known."""
    frame: polars.DataFrame
    sort: Sort | None
    typed: str
    """The filter; empty for all rows."""


class Sought(NamedTuple):
    """A text to look for among the rows shown."""

    number: int
    frame: polars.DataFrame
    order: polars.Series | None
    text: str
    go: bool
    """Whether the cursor is to go there."""


class Ordered(Message):
    """The rows in their new order."""

    def __init__(self, asked: OrderAsked, order: polars.Series | None) -> None:
        self.asked = asked
        self.order = order
        super().__init__()


class NotOrdered(Message):
    """Why there is no new order."""

    def __init__(self, asked: OrderAsked, sentence: str) -> None:
        self.asked = asked
        self.sentence = sentence
        super().__init__()


class Found(Message):
    """Where a text is."""

    def __init__(self, asked: Sought, matches: Matches) -> None:
        self.asked = asked
        self.matches = matches
        super().__init__()


class NotFound(Message):
    """Why it is not known where a text is."""

    def __init__(self, asked: Sought, sentence: str) -> None:
        self.asked = asked
        self.sentence = sentence
        super().__init__()


def ordered(asked: OrderAsked) -> Ordered:
    """The rows that meet the filter, sorted. Raises BadInput where the filter does not fit the table."""
    try:
        wanted = condition(asked.typed, asked.frame.schema) if asked.typed else None
        return Ordered(asked, row_order(asked.frame, asked.sort, wanted))
    except (PolarsError, PanicException) as error:
        raise BadInput(f"that does not fit the column: {next(iter(sentence_of(error).splitlines()))}") from None


def found(asked: Sought) -> Found:
    """The rows that hold the text."""
    return Found(asked, Matches(asked.text, matches(asked.frame, asked.order, asked.text)))
