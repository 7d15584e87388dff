"""The rows of a table as the grid asks for them: one polars frame that is never copied, and the order its rows are shown in.

Sorting and filtering make a new order, four bytes a row. A cell is fetched and worded when it comes into sight. Imported only
where a table is shown: it imports pyarrow through textual_fastdatatable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import polars
from polars import selectors
from textual_fastdatatable.backend import DataTableBackend

from modelscope_app.api import neutralised
from modelscope_app.rendering.columns import ranked
from modelscope_app.rendering.records import json_value
from modelscope_app.rendering.wording import is_unknown, value_text

LONGEST_CELL = 120
"""Characters of a cell that are worded; a column is narrower still."""
LONGEST_LABEL = 40
_SAMPLED_ROWS = 300
_SHOWN_OF_A_LIST = 9
"""One more than `value_text` writes out, so that it says there are more."""


class Sort(NamedTuple):
    """By which column, and which way."""

    column: str
    descending: bool


class TableRows(DataTableBackend[polars.DataFrame]):
    """A frame in some order, some of its columns shown. Reading only: nothing here changes a frame."""

    def __init__(self, data: polars.DataFrame, max_rows: int | None = None, column_names: Sequence[str] | None = None) -> None:
        """`column_names` are those shown at first; all where it is None. `max_rows` is the interface's and means nothing here."""
        super().__init__(data, max_rows)
        self.data = data
        self.order: polars.Series | None = None
        """Rows of the frame as they are shown; None is all of them as they stand."""
        self.shown: list[int] = []
        """Positions in the frame of the columns shown."""
        self._widths: dict[int, int] = {}
        self.hold(data, column_names or data.columns)

    def hold(self, data: polars.DataFrame, shown: Iterable[str]) -> None:
        """Hold this frame, all of its rows as they stand, and show these columns."""
        self.data, self.order, self._widths = data, None, {}
        self._columns = data.get_columns()
        self.shown = [data.columns.index(name) for name in shown]

    def row_of(self, at: int) -> int:
        """The frame's row that is shown at a place."""
        return at if self.order is None else int(self.order[at])

    def place_of(self, row: int) -> int | None:
        """Where a row of the frame is shown; None where it is not."""
        if self.order is None:
            return row if 0 <= row < self.data.height else None
        return self.order.index_of(row)

    def value(self, row: int, column: int) -> Any:
        """A cell by row and column of the frame, as stored; a list as a list."""
        value = self._columns[column][row]
        return value.to_list() if isinstance(value, polars.Series) else value

    def cell_text(self, at: int, shown: int, longest: int = LONGEST_CELL) -> str:
        """A cell as people read it, by its place on the screen."""
        column = self._columns[self.shown[shown]]
        return _worded(column[self.row_of(at)], column.name, longest)

    def is_number(self, shown: int) -> bool:
        """Whether a shown column holds numbers, which stand to the right."""
        return self._columns[self.shown[shown]].dtype.is_numeric()

    def name_at(self, shown: int) -> str:
        """The name of a shown column, as stored."""
        return self._columns[self.shown[shown]].name

    @property
    def source_data(self) -> polars.DataFrame:
        """The frame."""
        return self.data

    @property
    def source_row_count(self) -> int:
        """Rows of the frame."""
        return self.data.height

    @property
    def row_count(self) -> int:
        """Rows shown."""
        return self.data.height if self.order is None else len(self.order)

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns shown, harmless to print."""
        return [neutralised(self._columns[at].name, LONGEST_LABEL) for at in self.shown]

    @property
    def column_count(self) -> int:
        """Columns shown."""
        return len(self.shown)

    @property
    def column_content_widths(self) -> Sequence[int]:
        """Cells that the widest value of each shown column takes, among a sample of rows and, of numbers, the extremes."""
        return [self._width(at) for at in self.shown]

    def _width(self, at: int) -> int:
        from rich.cells import cell_len

        if at not in self._widths:
            column = self._columns[at]
            rows = set(range(0, len(column), max(1, len(column) // _SAMPLED_ROWS)))
            if column.dtype.is_numeric() and len(column):
                rows.update(row for row in (column.arg_min(), column.arg_max()) if row is not None)
            self._widths[at] = max((cell_len(_worded(column[row], column.name)) for row in rows), default=0)
        return self._widths[at]

    def get_row_at(self, index: int) -> Sequence[Any]:
        """The shown cells of a shown row, as stored."""
        row = self.row_of(index)
        return [self.value(row, at) for at in self.shown]

    def get_column_at(self, index: int) -> Sequence[Any]:
        """A shown column, as stored, in the order shown."""
        column = self._columns[self.shown[index]]
        values: list[Any] = (column if self.order is None else column.gather(self.order)).to_list()
        return values

    def get_cell_at(self, row_index: int, column_index: int) -> Any:
        """A cell, as stored. Raises IndexError."""
        if not (0 <= row_index < self.row_count and 0 <= column_index < len(self.shown)):
            raise IndexError(f"no cell {row_index}, {column_index}")
        return self._columns[self.shown[column_index]][self.row_of(row_index)]

    @classmethod
    def from_pydict(
        cls, data: Mapping[str, Sequence[Any]], max_rows: int | None = None, column_names: Sequence[str] | None = None
    ) -> TableRows:
        """Rows of columns given as lists."""
        return cls(polars.DataFrame(data), max_rows, column_names)

    def append_column(self, label: str, default: Any | None = None) -> int:
        """Refused."""
        _refuse()

    def append_rows(self, records: Iterable[Iterable[Any]]) -> list[int]:
        """Refused."""
        _refuse()

    def drop_row(self, row_index: int) -> None:
        """Refused."""
        _refuse()

    def update_cell(self, row_index: int, column_index: int, value: Any) -> None:
        """Refused."""
        _refuse()

    def sort(self, by: Any) -> None:
        """Refused: an order is computed in a thread and given to `order`."""
        _refuse()


def _refuse() -> NoReturn:
    raise TypeError("the rows of a finished table do not change")


def _worded(value: Any, name: str, longest: int = LONGEST_CELL) -> str:
    if isinstance(value, polars.Series):
        value = value.head(_SHOWN_OF_A_LIST).to_list()
    return value_text(value, name, longest)


def row_order(frame: polars.DataFrame, sort: Sort | None, condition: polars.Expr | None) -> polars.Series | None:
    """The rows for which `condition` holds, ordered by `sort` with unknown last; None where both are None."""
    if sort is None and condition is None:
        return None
    number = _unused(frame)
    rows = frame.lazy().with_row_index(number)
    if condition is not None:
        rows = rows.filter(condition)
    found = rows.select(selectors.by_name(number, *([sort.column] if sort else []))).collect()
    return (ranked(found, sort.column, sort.descending) if sort else found)[number]


def text_columns(frame: polars.DataFrame) -> list[str]:
    """The columns a search looks into."""
    return [name for name, dtype in frame.schema.items() if dtype in (polars.String, polars.Categorical, polars.Enum)]


def matches(frame: polars.DataFrame, order: polars.Series | None, text: str) -> polars.Series:
    """Places, ascending, of the rows shown in which some text column holds `text`, in whatever case."""
    wanted = text.lower()
    columns = [
        selectors.by_name(name).as_expr().cast(polars.String).str.to_lowercase().str.contains(wanted, literal=True).fill_null(value=False)
        for name in text_columns(frame)
    ]
    if not columns or not text:
        return polars.Series("found", [], dtype=polars.UInt32)
    found = frame.select(polars.any_horizontal(columns).alias("found"))["found"]
    return (found if order is None else found.gather(order)).arg_true()


def exact_text(value: Any) -> str:
    """A cell with every digit, on one line without tabs, for a clipboard: nothing where it is missing."""
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, polars.Series | list | tuple | dict):
        import json

        return json.dumps(json_value(value), allow_nan=False, ensure_ascii=False)
    return neutralised(str(value))


def full_text(value: Any, name: str) -> str:
    """A cell for reading in full: text with its lines, numbers with every digit, amounts of memory in words beside the digits."""
    if is_unknown(value):
        return "unknown" if value is None else f"unknown ({value})"
    if isinstance(value, str):
        return "\n".join(neutralised(line) for line in value.split("\n"))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        digits = f"{value:,}"
        worded = value_text(value, name)
        return f"{digits} ({worded})" if worded.endswith("B") else digits
    return neutralised(exact_text(value))


def _unused(frame: polars.DataFrame) -> str:
    name = "row"
    while name in frame.columns:
        name += "_"
    return name
