"""Where a text was found among the rows shown. Imported only where a table is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars

from modelscope_app.api import neutralised

_LONGEST_SAID = 40


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """A text, and the places of the rows that hold it, ascending."""

    text: str
    places: polars.Series

    def __len__(self) -> int:
        return len(self.places)

    def from_row(self, row: int) -> int | None:
        """The first match at a row or after it, from the top again where there is none."""
        return int(self.places[int(self.places.search_sorted(row)) % len(self)]) if len(self) else None

    def beside(self, row: int, by: int) -> int | None:
        """The next match after a row, or with a negative `by` the one before it; round the end where there is none."""
        if not len(self):
            return None
        at = int(self.places.search_sorted(row, side="right")) if by > 0 else int(self.places.search_sorted(row)) - 1
        return int(self.places[at % len(self)])

    def said(self, row: int, text_columns: Sequence[str]) -> str:
        """A few words on them, for someone at a row."""
        sought = neutralised(self.text, _LONGEST_SAID)
        if not len(self):
            return f"nothing holds {sought!r}" if text_columns else "no text column to search"
        at = int(self.places.search_sorted(row))
        is_here = at < len(self) and int(self.places[at]) == row
        return f"{at + 1:,} of {len(self):,} with {sought!r}" if is_here else f"{len(self):,} with {sought!r}"
