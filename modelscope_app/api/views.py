"""Views: declarative pictures of results that every front end can draw (terminal, HTML, JSON, picture files).

A view holds no data. It names a table of the run and says which of its columns mean what, so the picture and the exported
table can never disagree. Non-finite values are drawn as unknown and never ranked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

Scale = Literal["linear", "log"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What every view has. `name` is unique within a run; a view of the same name is replaced."""

    kind: ClassVar[str] = ""

    name: str
    title: str
    caption: str = ""
    """A sentence below the picture: what to look for, what it does not say."""

    def to_json(self) -> dict[str, Any]:
        """The view as JSON-ready values, with its `kind`."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FactsView(View):
    """The run's headline facts. Empty `keys` means all of them."""

    kind: ClassVar[str] = "facts"
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TableView(View):
    """A table. Empty `columns` means all of them."""

    kind: ClassVar[str] = "table"
    table: str
    columns: tuple[str, ...] = ()
    sort_by: str | None = None
    descending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesView(View):
    """One line per distinct value of `series` (or one line), with an optional band from `low` to `high`."""

    kind: ClassVar[str] = "lines"
    table: str
    x: str
    y: str
    series: str | None = None
    low: str | None = None
    high: str | None = None
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class BarsView(View):
    """One bar per row, in table order, with an optional interval from `low` to `high`."""

    kind: ClassVar[str] = "bars"
    table: str
    label: str
    value: str
    low: str | None = None
    high: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramView(View):
    """Bins from `left` to `right` holding `count`; `group` makes one histogram per distinct value."""

    kind: ClassVar[str] = "histogram"
    table: str
    left: str
    right: str
    count: str
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMapView(View):
    """One cell per table row, at (`row`, `column`). With `center`, colours diverge from it."""

    kind: ClassVar[str] = "heat_map"
    table: str
    row: str
    column: str
    value: str
    center: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStripView(View):
    """Scores on tokens. One table row per token, in reading order; `text` tells several texts apart."""

    kind: ClassVar[str] = "token_strip"
    table: str
    token: str
    scores: tuple[str, ...]
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphView(View):
    """One edge per table row, from `source` to `target`."""

    kind: ClassVar[str] = "graph"
    table: str
    source: str
    target: str
    weight: str | None = None


VIEWS: Mapping[str, type[View]] = {
    view.kind: view for view in (FactsView, TableView, LinesView, BarsView, HistogramView, HeatMapView, TokenStripView, GraphView)
}


def view_from_json(value: Mapping[str, Any]) -> View:
    """The view that `to_json` wrote. Raises ValueError for a kind this version does not know."""
    view = VIEWS.get(str(value.get("kind")))
    if view is None:
        raise ValueError(f"no view of kind {value.get('kind')!r}")
    known = {field.name for field in fields(view)}
    given: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items() if key in known}
    return view(**given)
