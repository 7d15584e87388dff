"""What a view shows, once its table is read and checked. Every front end draws from these values and from nothing else.

Text is harmless here: control characters are visible and names are no longer than a label may be. Numbers are float64 arrays
with NaN for unknown. `notes` are sentences a front end prints below the picture: what is unknown, what is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from modelscope_app.api import (
    BadInput,
    BarsView,
    FactsView,
    FinishedRun,
    GraphView,
    HeatMapView,
    HistogramView,
    LinesView,
    TableView,
    TokenStripView,
    View,
    neutralised,
)
from modelscope_app.api.views import Scale
from modelscope_app.rendering.columns import distinct, labels, numbers, ranked, table_of, unknown_note
from modelscope_app.rendering.wording import count_text, fact_text, label_text

if TYPE_CHECKING:
    import numpy
    import polars


@dataclass(frozen=True, slots=True, eq=False)
class FactsDrawing:
    """Headline facts as pairs of name and text."""

    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TableDrawing:
    """Rows in the order to show them. Cells are as stored: a front end words them with `value_text`."""

    frame: polars.DataFrame
    notes: tuple[str, ...]


class Line(NamedTuple):
    """One series, ascending in x. Arrays are (point,).

    On a logarithmic y axis `y` and `high` are above zero or NaN. A `low` at or below zero stays: its interval goes on below the axis.
    """

    name: str
    x: numpy.ndarray
    y: numpy.ndarray
    low: numpy.ndarray | None
    high: numpy.ndarray | None
    stored: numpy.ndarray | None = None
    """y as the table has it, where it differs: a zero has no place on a logarithmic axis, and is known all the same."""

    @property
    def values(self) -> numpy.ndarray:
        """What to read at each x; NaN where it is unknown. (point,)"""
        return self.y if self.stored is None else self.stored


@dataclass(frozen=True, slots=True, eq=False)
class LinesDrawing:
    """Lines over one pair of axes."""

    x_label: str
    y_label: str
    x_scale: Scale
    y_scale: Scale
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class BarsDrawing:
    """Bars in table order. Arrays are (bar,)."""

    value_label: str
    names: tuple[str, ...]
    values: numpy.ndarray
    low: numpy.ndarray
    """All NaN where the view has no interval."""
    high: numpy.ndarray
    notes: tuple[str, ...]


class Bins(NamedTuple):
    """One histogram, ascending in `left`. Arrays are (bin,) and known throughout."""

    name: str
    left: numpy.ndarray
    right: numpy.ndarray
    counts: numpy.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class HistogramDrawing:
    """Histograms, one per group."""

    x_label: str
    count_label: str
    groups: tuple[Bins, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class HeatMapDrawing:
    """A matrix. NaN both where a value is unknown and where the table has no row for a cell."""

    row_label: str
    column_label: str
    value_label: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: numpy.ndarray
    """(row, column)"""
    center: float | None
    notes: tuple[str, ...]


class TokenText(NamedTuple):
    """One text: its tokens in reading order and their scores."""

    name: str
    tokens: tuple[str, ...]
    scores: numpy.ndarray
    """(score, token)"""


@dataclass(frozen=True, slots=True, eq=False)
class TokenStripDrawing:
    """Texts with scores on their tokens."""

    score_labels: tuple[str, ...]
    texts: tuple[TokenText, ...]
    notes: tuple[str, ...]


class Edge(NamedTuple):
    """An edge; NaN is an unknown weight."""

    source: str
    target: str
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class GraphDrawing:
    """Edges by falling |weight|, unknown weights last; in table order where the view names no weight."""

    weight_label: str | None
    edges: tuple[Edge, ...]
    notes: tuple[str, ...]


Drawing = FactsDrawing | TableDrawing | LinesDrawing | BarsDrawing | HistogramDrawing | HeatMapDrawing | TokenStripDrawing | GraphDrawing


def drawing(run: FinishedRun, view: View) -> Drawing:
    """What `view` shows of `run`. Raises BadInput naming view, table and column where they do not fit together."""
    draw = _DRAW.get(type(view))
    if draw is None:
        raise BadInput(f"view {view.name!r} is of kind {view.kind!r}, which this version cannot draw")
    return draw(run, view)


def facts_drawing(facts: Mapping[str, Any], keys: Iterable[str] = ()) -> FactsDrawing:
    """Facts as pairs of name and text: those of `keys`, or all. A key the run does not have is a note."""
    wanted = tuple(keys) or tuple(facts)
    absent = [key for key in wanted if key not in facts]
    shown = tuple((label_text(key), fact_text(facts[key], key)) for key in wanted if key in facts)
    notes = (f"Not among the run's facts: {', '.join(label_text(key) for key in absent)}.",) if absent else ()
    return FactsDrawing(shown, notes or (() if shown else ("The run has no facts.",)))


def _facts(run: FinishedRun, view: FactsView) -> FactsDrawing:
    return facts_drawing(run.facts, view.keys)


def _table(run: FinishedRun, view: TableView) -> TableDrawing:
    frame = table_of(run, view)
    if view.sort_by is not None:
        frame = ranked(frame, view.sort_by, view.descending)
    return TableDrawing(frame[list(view.columns)] if view.columns else frame, () if frame.height else ("The table has no rows.",))


def _lines(run: FinishedRun, view: LinesView) -> LinesDrawing:
    import numpy

    frame = table_of(run, view)
    lines, left_out, not_positive, bottomless = [], 0, 0, 0
    for name, part in parts_by_value(frame, view.series):
        x, y = numbers(part, view, view.x), numbers(part, view, view.y)
        low, high = (numbers(part, view, bound) if bound else None for bound in (view.low, view.high))
        stored, drawn = y.copy(), ~numpy.isnan(x)
        left_out += int((~drawn).sum())
        if view.x_scale == "log":
            not_positive += int((x <= 0).sum())
            drawn &= x > 0
        if view.y_scale == "log":
            not_positive += int((y <= 0).sum())
            y[y <= 0] = numpy.nan
            if low is not None:
                bottomless += int((low[drawn] <= 0).sum())
            if high is not None:
                high[high <= 0] = numpy.nan
        order = numpy.flatnonzero(drawn)[numpy.argsort(x[drawn], kind="stable")]
        bottom, top = (None if bound is None else bound[order] for bound in (low, high))
        lines.append(Line(name, x[order], y[order], bottom, top, stored[order]))
    notes = list(unknown_note([numbers(frame, view, view.y)]))
    if left_out:
        notes.append(f"{count_text(left_out, 'row')} with an unknown {label_text(view.x)} left out.")
    if not_positive:
        notes.append(f"{count_text(not_positive, 'value')} at or below zero cannot stand on a logarithmic axis.")
    if bottomless:
        reach = "interval reaches" if bottomless == 1 else "intervals reach"
        notes.append(f"{bottomless:,} {reach} to zero or below, which is farther down than a logarithmic axis goes.")
    return LinesDrawing(label_text(view.x), label_text(view.y), view.x_scale, view.y_scale, tuple(lines), tuple(notes))


def _bars(run: FinishedRun, view: BarsView) -> BarsDrawing:
    import numpy

    frame = table_of(run, view)
    values = numbers(frame, view, view.value)
    low, high = (numbers(frame, view, bound) if bound else numpy.full_like(values, numpy.nan) for bound in (view.low, view.high))
    return BarsDrawing(label_text(view.value), tuple(labels(frame, view.label)), values, low, high, unknown_note([values]))


def _histogram(run: FinishedRun, view: HistogramView) -> HistogramDrawing:
    import numpy

    frame = table_of(run, view)
    groups = []
    for name, part in parts_by_value(frame, view.group):
        left, right, count = (numbers(part, view, column) for column in (view.left, view.right, view.count))
        known = ~(numpy.isnan(left) | numpy.isnan(right) | numpy.isnan(count))
        order = numpy.flatnonzero(known)[numpy.argsort(left[known], kind="stable")]
        groups.append(Bins(name, left[order], right[order], count[order]))
    left_out = frame.height - sum(len(bins.counts) for bins in groups)
    notes = (f"{count_text(left_out, 'bin')} with an unknown edge or count left out.",) if left_out else ()
    shared = " ".join(word for word in view.left.split("_") if word in view.right.split("_"))  # bin_left and bin_right share bin
    return HistogramDrawing(
        label_text(shared), label_text(view.count), tuple(groups), notes if frame.height else ("The table has no rows.",)
    )


def _heat_map(run: FinishedRun, view: HeatMapView) -> HeatMapDrawing:
    import numpy

    frame = table_of(run, view)
    rows, columns = distinct(frame, view.row), distinct(frame, view.column)
    row_of, column_of = ({_key(value): at for at, value in enumerate(axis)} for axis in (rows, columns))
    values = numpy.full((len(rows), len(columns)), numpy.nan)  # (row, column)
    taken = numpy.zeros(values.shape, dtype=bool)
    for row, column, value in zip(frame[view.row].to_list(), frame[view.column].to_list(), numbers(frame, view, view.value), strict=True):
        cell = row_of[_key(row)], column_of[_key(column)]
        if taken[cell]:
            raise BadInput(f"view {view.name!r}: table {view.table!r} has two rows for the cell {label_text(row)}, {label_text(column)}")
        taken[cell], values[cell] = True, value
    return HeatMapDrawing(
        label_text(view.row),
        label_text(view.column),
        label_text(view.value),
        tuple(label_text(value) for value in rows),
        tuple(label_text(value) for value in columns),
        values,
        view.center,
        unknown_note([values]),
    )


def _token_strip(run: FinishedRun, view: TokenStripView) -> TokenStripDrawing:
    import numpy

    frame = table_of(run, view)
    texts = []
    for name, part in parts_by_value(frame, view.text):
        scores = numpy.stack([numbers(part, view, score) for score in view.scores]) if view.scores else numpy.empty((0, part.height))
        texts.append(TokenText(name, tuple(labels(part, view.token)), scores))  # scores: (score, token)
    return TokenStripDrawing(tuple(map(label_text, view.scores)), tuple(texts), unknown_note([text.scores for text in texts]))


def _graph(run: FinishedRun, view: GraphView) -> GraphDrawing:
    import numpy

    frame = table_of(run, view)
    weights = numbers(frame, view, view.weight) if view.weight else numpy.full(frame.height, numpy.nan)
    edges = [Edge(*edge) for edge in zip(labels(frame, view.source), labels(frame, view.target), weights.tolist(), strict=True)]
    if view.weight:
        order = numpy.argsort(-numpy.abs(weights), kind="stable")  # NaN last
        edges = [edges[at] for at in order]
    notes = unknown_note([weights]) if view.weight or not edges else ()
    return GraphDrawing(neutralised(view.weight) if view.weight else None, tuple(edges), notes)


def parts_by_value(frame: polars.DataFrame, column: str | None) -> list[tuple[str, polars.DataFrame]]:
    """One frame per distinct value with its name, or the whole frame under no name."""
    if column is None:
        return [("", frame)]
    parts = frame.partition_by(column, as_dict=True, maintain_order=True)
    known = {key: part for (key,), part in parts.items() if key is not None and key == key}
    found = [(label_text(key), known[key]) for key in distinct(frame, column) if key is not None]
    rest = [part for (key,), part in parts.items() if key is None or key != key]
    if rest:
        import polars

        found.append((label_text(None), polars.concat(rest)))
    return found


def _key(value: Any) -> Any:
    """NaN and null name the same unknown row or column."""
    return None if value != value else value


_DRAW: Mapping[type[View], Callable[[FinishedRun, Any], Drawing]] = {
    FactsView: _facts,
    TableView: _table,
    LinesView: _lines,
    BarsView: _bars,
    HistogramView: _histogram,
    HeatMapView: _heat_map,
    TokenStripView: _token_strip,
    GraphView: _graph,
}
