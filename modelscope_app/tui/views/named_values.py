"""Names and values, one below the other, with a cursor: the facts of a run, or all columns of one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from modelscope_app.api import neutralised
from modelscope_app.tui.on_screen import Copied

LONGEST_SHOWN = 5000
"""Characters of a value on the screen; a copy has all."""
_LONGEST_NAME = 200
_WIDEST_NAME = 32
_LONGEST_SAID = 40


@dataclass(frozen=True, slots=True)
class NamedValue:
    """One line, or as many as its value needs."""

    name: str
    text: str
    """Harmless to print; may have line breaks."""
    exact: str
    """What is copied."""


class NamedValues(OptionList):
    """A list of names and values; `y` copies the one under the cursor."""

    DEFAULT_CSS = """
    NamedValues { height: 1fr; width: 1fr; border: none; padding: 0 1; background: $surface; max-height: 100%; }
    NamedValues:focus { border: none; }
    """

    def __init__(self, values: Sequence[NamedValue] = (), *, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)
        self.values: tuple[NamedValue, ...] = ()
        self.show(values)

    def show(self, values: Sequence[NamedValue]) -> None:
        """Show these; the cursor stays where it was."""
        at = self.highlighted
        self.values = tuple(values)
        width = min(_WIDEST_NAME, max((len(value.name) for value in values), default=0))
        self.clear_options()
        self.add_options([Option(_line(value, width)) for value in values])
        self.highlighted = min(at or 0, len(values) - 1) if values else None

    @property
    def value(self) -> NamedValue | None:
        """The one under the cursor."""
        return self.values[self.highlighted] if self.highlighted is not None and self.highlighted < len(self.values) else None

    def copied(self) -> Copied | None:
        """For `y`: the value under the cursor, with every digit."""
        value = self.value
        return None if value is None else Copied(value.exact, neutralised(value.name, _LONGEST_SAID))


def _line(value: NamedValue, width: int) -> Table:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(width=width, overflow="fold")
    grid.add_column(ratio=1, overflow="fold")
    text, more = value.text[:LONGEST_SHOWN], len(value.text) - LONGEST_SHOWN
    if more > 0:
        text += f" … {more:,} more characters; y copies all"
    grid.add_row(Text(neutralised(value.name, _LONGEST_NAME), style="bold"), Text(text))
    return grid
