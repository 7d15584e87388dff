"""Runs and views as Rich text, for terminals of any width, with or without colour, with or without Unicode.

Text of runs is passed as `Text`, never as markup, so a tensor called `[bold]` prints as itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from modelscope_app.api import BadInput, FactsView, FinishedRun, View, neutralised
from modelscope_app.rendering.character_charts import bar_chart, heat_map, token_strip
from modelscope_app.rendering.character_plots import histogram_plot, line_plot
from modelscope_app.rendering.drawings import (
    BarsDrawing,
    Drawing,
    FactsDrawing,
    GraphDrawing,
    HeatMapDrawing,
    HistogramDrawing,
    LinesDrawing,
    TableDrawing,
    TokenStripDrawing,
    drawing,
    facts_drawing,
)
from modelscope_app.rendering.marks import BLOCKS, PLAIN, Marks
from modelscope_app.rendering.unpadded import Unpadded
from modelscope_app.rendering.wording import count_text, number_text, value_text

if TYPE_CHECKING:
    import polars

WIDEST_CELL = 40
"""Terminal cells a table column of names may take."""
_MOST_LINES = 12
_MOST_GROUPS = 6
_MOST_TEXTS = 5


def print_run(run: FinishedRun, console: Console, rows: int = 20) -> None:
    """Print a run: what it is, its facts, every view (at most `rows` rows of each), and where its tables lie.

    A view that does not fit its table is a sentence in its place; the others are printed.
    """
    marks = PLAIN if console.options.ascii_only else BLOCKS
    console.print(_text(f"{run.analysis}  {run.status}" + (f": {run.error}" if run.error else ""), marks, "bold"), soft_wrap=True)
    console.print(_text(f"run {run.id}  {run.folder}", marks, "dim"), soft_wrap=True)
    if run.facts and not any(isinstance(view, FactsView) for view in run.views):
        console.print()
        console.print(DrawnView("Facts", "", facts_drawing(run.facts), rows, None, False))
    for view in run.views:
        console.print()
        try:
            console.print(view_renderable(run, view, rows))
        except BadInput as error:
            console.print(Unpadded(_text(view.title, marks, "bold")))
            console.print(Unpadded(_text(f"cannot be drawn: {error}", marks)))
    if run.tables:
        console.print()
        console.print(Text("Tables", style="bold"))
        for name, path in run.tables.items():
            console.print(_text(f"{name}  {_shape(path)}  {_place(run, path)}", marks), soft_wrap=True)
    if run.artifacts:
        console.print()
        console.print(Text("Artifacts", style="bold"))
        for name, path in run.artifacts.items():
            console.print(_text(f"{name}  {_place(run, path)}", marks), soft_wrap=True)


def view_renderable(run: FinishedRun, view: View, rows: int = 20, numbers: bool = False) -> RenderableType:
    """A view as something a Rich console prints; it fits the width and the encoding it is printed to.

    At most `rows` table rows, bars or edges. With `numbers` a token strip shows scores in full, not in tenths.
    Raises BadInput where the view does not fit its table.
    """
    path = run.tables.get(getattr(view, "table", ""))
    return DrawnView(view.title, view.caption, drawing(run, view), rows, _place(run, path) if path else None, numbers)


@dataclass(frozen=True, slots=True, eq=False)
class DrawnView:
    """A drawing with its title, notes and caption; characters are chosen when it meets a console."""

    title: str
    caption: str
    drawing: Drawing
    rows: int
    place: str | None
    """Where the whole table lies, for people."""
    numbers: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = PLAIN if options.ascii_only else BLOCKS
        for part in self._parts(options.max_width, marks):
            fits = isinstance(part, Text) and cell_len(part.plain) <= options.max_width
            yield part if fits else Unpadded(part)  # a row of cells may end in blank ones, and these are no padding

    def _parts(self, width: int, marks: Marks) -> Iterator[RenderableType]:
        yield _text(self.title, marks, "bold")
        yield from self._body(width, marks)
        for note in self.drawing.notes:
            yield _text(note, marks, "dim")
        if self.caption:
            yield _text(self.caption, marks, "italic")

    def _body(self, width: int, marks: Marks) -> Iterator[RenderableType]:
        match self.drawing:
            case FactsDrawing() as facts:
                yield _facts(facts, marks)
            case TableDrawing(frame=frame) if frame.height:
                yield from _table(frame, width, self.rows, self.place, marks)
            case LinesDrawing() as lines:
                yield from line_plot(lines, width, marks, _MOST_LINES)
            case BarsDrawing() as bars:
                yield from bar_chart(bars, width, marks, self.rows)
            case HistogramDrawing() as histogram:
                yield from histogram_plot(histogram, width, marks, _MOST_GROUPS)
            case HeatMapDrawing() as cells:
                yield from heat_map(cells, width, marks)
            case TokenStripDrawing() as tokens:
                yield from token_strip(tokens, width, marks, self.numbers, _MOST_TEXTS)
            case GraphDrawing() as graph if graph.edges:
                yield from _edges(graph, width, self.rows, self.place, marks)


def _facts(facts: FactsDrawing, marks: Marks) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.facts:
        grid.add_row(_text(name, marks, "cyan"), _text(value, marks))
    return grid


def _table(frame: polars.DataFrame, width: int, rows: int, place: str | None, marks: Marks) -> Iterator[RenderableType]:
    """As many columns as fit, from the left, and the first rows."""
    shown = frame.head(rows)
    columns = [_cells([value_text(value, name) for value in shown[name].to_list()], width, marks) for name in frame.columns]
    heads = [marks.cut(neutralised(name), WIDEST_CELL) for name in frame.columns]
    widths = [max(map(cell_len, [head, *cells])) for head, cells in zip(heads, columns, strict=True)]
    fitting = 1
    while fitting < len(widths) and sum(widths[: fitting + 1]) + 2 * fitting <= width:
        fitting += 1
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name, head in zip(frame.columns[:fitting], heads, strict=False):
        table.add_column(Text(head), justify="right" if frame[name].dtype.is_numeric() else "left", no_wrap=True)
    for cells in zip(*columns[:fitting], strict=True):
        table.add_row(*map(Text, cells))
    yield table
    if frame.height > rows:
        yield _text(f"… {count_text(frame.height - rows, 'more row')}{_in(place)}", marks, "dim")
    if fitting < len(heads):
        left = ", ".join(heads[fitting : fitting + 8]) + (", …" if len(heads) > fitting + 8 else "")
        yield _text(f"… {count_text(len(heads) - fitting, 'more column')}: {left}", marks, "dim")


def _cells(texts: list[str], width: int, marks: Marks) -> list[str]:
    """A column's cells, cut to a width that takes no more than it must for different texts to look different."""
    longest = WIDEST_CELL
    while longest < width and len({marks.cut(text, longest) for text in texts}) < len(set(texts)):
        longest = min(width, longest + 8)
    return [marks.cut(text, longest) for text in texts]


def _edges(graph: GraphDrawing, width: int, rows: int, place: str | None, marks: Marks) -> Iterator[RenderableType]:
    grid = Table.grid(padding=(0, 1))
    for _ in range(3):
        grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, justify="right")
    room = max(8, (width - 20) // 2)
    for edge in graph.edges[:rows]:
        weight = number_text(edge.weight) if graph.weight_label else ""
        grid.add_row(Text(marks.cut(edge.source, room)), Text(marks.arrow), Text(marks.cut(edge.target, room)), Text(weight))
    yield grid
    if len(graph.edges) > rows:
        yield _text(f"… {count_text(len(graph.edges) - rows, 'more edge')}{_in(place)}", marks, "dim")


def _text(text: str, marks: Marks, style: str = "") -> Text:
    return Text(marks.text(neutralised(text)), style=style)


def _in(place: str | None) -> str:
    return f" in {place}" if place else ""


def _place(run: FinishedRun, path: Path) -> str:
    """A path as read from the run folder."""
    return neutralised(str(path.relative_to(run.folder) if path.is_relative_to(run.folder) else path))


def _shape(path: Path) -> str:
    """Rows and columns of a parquet file, read from its footer."""
    import polars

    scan = polars.scan_parquet(path)
    rows = scan.select(polars.len()).collect().item()
    return f"{count_text(rows, 'row')} × {count_text(len(scan.collect_schema()), 'column')}"
