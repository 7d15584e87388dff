"""Graphs: drawn in layers with a list of their edges where that fits, else a table of the edges, the heaviest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from rich.table import Table
from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import ScrollableContainer, Vertical
from textual.content import Content, Span
from textual.geometry import Region
from textual.widget import Widget
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from modelscope_app.api import neutralised
from modelscope_app.rendering.drawings import Drawing, Edge, GraphDrawing, drawing
from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.rendering.wording import count_text, number_text
from modelscope_app.tui.messages import Selected
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.views.board import ViewBoard
from modelscope_app.tui.views.graph_picture import GraphPicture, edge_letters, graph_picture

if TYPE_CHECKING:
    import polars

MOST_NODES = 40
MOST_EDGES = 100
"""What is still drawn."""
_LIST_WIDTH = 44
_BESIDE_FROM = 100
"""Cells from which the list of edges stands beside the picture."""
_LONGEST_SAID = 60


@dataclass(frozen=True, slots=True, eq=False)
class DrawnGraph(GraphDrawing):
    """A graph with its picture, where it is small enough for one."""

    picture: GraphPicture | None
    table: polars.DataFrame


def signed_text(weight: float) -> str:
    """A weight with its sign, also where it is above zero.

    >>> signed_text(0.5), signed_text(-0.25), signed_text(0.0), signed_text(float("nan"))
    ('+0.5', '-0.25', '0', 'unknown')
    """
    text = number_text(weight)
    return f"+{text}" if weight > 0 and text != "unknown" else text


def edge_selection(source: str, target: str, run: str | None) -> Selection:
    """An edge as the user is on it."""
    return Selection("edge", f"{source}->{target}", neutralised(f"edge {source} → {target}", _LONGEST_SAID), None, run)


class EdgeList(OptionList):
    """The edges of a picture, by the letters that they have in it."""

    DEFAULT_CSS = """
    EdgeList { border: none; padding: 0 1; background: $surface; height: 1fr; max-height: 100%; scrollbar-size: 1 1; }
    EdgeList:focus { border: none; }
    """

    def __init__(self, graph: DrawnGraph, run: str) -> None:
        letters = edge_letters(len(graph.edges))
        drawn = graph.picture.cells if graph.picture is not None else {}
        super().__init__(
            *(Option(_edge_line(graph, at, letters[at] if drawn.get(at) else "")) for at in range(len(graph.edges))), markup=False
        )
        self._edges = graph.edges
        self._run = run

    @property
    def edge(self) -> Edge | None:
        """The edge under the cursor."""
        return self._edges[self.highlighted] if self.highlighted is not None else None

    def selection(self) -> Selection | None:
        """For `u`."""
        return None if self.edge is None else edge_selection(self.edge.source, self.edge.target, self._run)

    def copied(self) -> Copied | None:
        """For `y`: source, target and weight, tab-separated."""
        if self.edge is None:
            return None
        weight = repr(self.edge.weight) if self.edge.weight == self.edge.weight else ""
        return Copied(f"{self.edge.source}\t{self.edge.target}\t{weight}", neutralised(f"edge {self.edge.source} → {self.edge.target}", 60))

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Graph",
            "Boxes are nodes, and edges lead downwards. Each edge has a letter, which stands where it leaves its source, where it enters "
            "its target, and in this list with its weight and sign, the heaviest first. ↺ is an edge that leads back; it is in the list "
            "alone. Up and down choose an edge and mark it in the picture, y copies it, v shows the edges as a table.",
        )


def _edge_line(graph: DrawnGraph, at: int, letter: str) -> Table:
    edge = graph.edges[at]
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=2)
    grid.add_column(ratio=1, overflow="fold")
    grid.add_column(justify="right", no_wrap=True)
    weight = signed_text(edge.weight) if graph.weight_label is not None else ""
    grid.add_row(Text(letter or "↺", style="bold"), Text(f"{edge.source} → {edge.target}"), Text(weight))
    return grid


class GraphPane(Vertical):
    """The picture with its list, or the table: `v` changes."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("v", "change", "Picture/table")]

    DEFAULT_CSS = """
    GraphPane { layout: vertical; height: 1fr; width: 1fr; }
    GraphPane.-beside { layout: horizontal; }
    GraphPane > ScrollableContainer { height: 2fr; width: 1fr; scrollbar-size: 1 1; }
    GraphPane > ScrollableContainer > Static { width: auto; height: auto; padding: 0 1; }
    GraphPane > EdgeList { height: 1fr; border-top: solid $panel; }
    GraphPane > EdgeList:focus { border-top: solid $panel; }
    GraphPane.-beside > EdgeList { width: 44; height: 1fr; border-top: none; border-left: solid $panel; }
    GraphPane.-beside > EdgeList:focus { border-top: none; border-left: solid $panel; }
    GraphPane > .graph-said { height: 1; padding: 0 1; color: $text-muted; display: none; }
    GraphPane.-as-table { layout: vertical; }
    GraphPane.-as-table > ScrollableContainer, GraphPane.-as-table > EdgeList { display: none; }
    GraphPane.-as-table > .graph-said { display: block; }
    """

    def __init__(self, graph: DrawnGraph, run: str) -> None:
        super().__init__()
        self._graph = graph
        self._run = run
        self._chosen = False
        """Whether the user said which of the two to show."""

    def compose(self) -> ComposeResult:
        yield Static("", classes="graph-said", markup=False)
        if self._graph.picture is not None:
            with ScrollableContainer(can_focus=False):
                yield Static(self._picture(None))
            yield EdgeList(self._graph, self._run)

    async def on_resize(self, event: events.Resize) -> None:
        picture = self._graph.picture
        room = event.size.width - 3
        self.set_class(event.size.width >= _BESIDE_FROM and picture is not None and picture.width <= room - _LIST_WIDTH, "-beside")
        if not self._chosen:
            await self._show_table(picture is None or picture.width > room)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A graph without a picture has nothing to change to."""
        return self._graph.picture is not None if action == "change" else True

    async def action_change(self) -> None:
        """Picture or table, whichever is not shown."""
        if self._graph.picture is None:
            return
        self._chosen = True
        await self._show_table(not self.has_class("-as-table"))
        self._focus()

    async def _show_table(self, is_table: bool) -> None:
        if is_table == self.has_class("-as-table"):
            return
        had_focus = self.screen.focused is not None and self in self.screen.focused.ancestors
        self.set_class(is_table, "-as-table")
        said = self.query_one(".graph-said", Static)
        if self._graph.picture is None:
            nodes = len({name for edge in self._graph.edges for name in (edge.source, edge.target)})
            said.update(
                f"{count_text(nodes, 'node')} and {count_text(len(self._graph.edges), 'edge')} are too many to draw; here are the edges."
            )
        else:
            said.update("v draws the graph.")
        tables = self.query("EdgeTable")
        if is_table and not tables:
            from modelscope_app.tui.views.edge_table import EdgeTable

            await self.mount(EdgeTable(self._graph.table, self._run))
        for table in tables:
            table.display = is_table
        if had_focus:
            self._focus()

    def _focus(self) -> None:
        wanted = "TableGrid" if self.has_class("-as-table") else "EdgeList"
        for widget in self.query(wanted):
            widget.focus()

    def _picture(self, marked: int | None) -> Content:
        """The picture with one edge standing out: its letters reversed, its line bold."""
        picture = self._graph.picture
        if picture is None:
            return Content("")
        marks = set(picture.cells.get(marked, ())) if marked is not None else set()
        parts: list[str] = []
        spans: list[Span] = []
        at = 0
        for row, cells in enumerate(picture.rows):
            for column, character in enumerate(cells):
                if (row, column) in marks:
                    spans.append(Span(at, at + len(character), "bold reverse" if character.isalpha() else "bold $accent"))
                parts.append(character)
                at += len(character)
            parts.append("\n")
            at += 1
        return Content("".join(parts).rstrip("\n"), spans)

    @on(OptionList.OptionHighlighted)
    def _mark(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        picture = self._graph.picture
        if picture is None:
            return
        scroller = self.query_one(ScrollableContainer)
        scroller.query_one(Static).update(self._picture(event.option_index), layout=False)
        cells = picture.cells.get(event.option_index, ())
        if cells:
            rows, columns = [row for row, _ in cells], [column for _, column in cells]
            region = Region(min(columns), min(rows), max(columns) - min(columns) + 3, max(rows) - min(rows) + 1)
            scroller.scroll_to_region(region, animate=False)
        self.post_message(Selected(self.query_one(EdgeList).selection()))

    @on(OptionList.OptionSelected)
    def _choose(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(Selected(self.query_one(EdgeList).selection()))


class GraphBoard(ViewBoard):
    """A graph."""

    about = "Up and down go through the edges, v changes between the picture and a table of the edges."

    def computed(self) -> Drawing:
        """The edges, and the picture of a graph that is small enough."""
        drawn = cast("GraphDrawing", drawing(self.finished_run, self.view))
        nodes = {name for edge in drawn.edges for name in (edge.source, edge.target)}
        is_small = len(nodes) <= MOST_NODES and len(drawn.edges) <= MOST_EDGES
        picture = graph_picture(drawn.edges, BLOCKS) if drawn.edges and is_small else None
        notes = list(drawn.notes)
        back = sum(not cells for cells in picture.cells.values()) if picture is not None else 0
        if back:
            notes.append(f"{count_text(back, 'edge')} that {'leads' if back == 1 else 'lead'} back not drawn.")
        return DrawnGraph(drawn.weight_label, drawn.edges, tuple(notes), picture, _edge_frame(drawn.edges, drawn.weight_label))

    def body(self, drawing: Drawing) -> Widget:
        """The picture or the table; a sentence where there are no edges."""
        graph = cast("DrawnGraph", drawing)
        if not graph.edges:
            return Static("The graph has no edges.", classes="view-sentence", markup=False)
        return GraphPane(graph, str(self.finished_run.folder))


def _edge_frame(edges: Sequence[Edge], weight_label: str | None) -> polars.DataFrame:
    import polars

    columns = {"source": [edge.source for edge in edges], "target": [edge.target for edge in edges]}
    frame = polars.DataFrame(columns, schema={"source": polars.String, "target": polars.String})
    if weight_label is None:
        return frame
    name = weight_label if weight_label not in columns else f"{weight_label} (weight)"
    return frame.with_columns(polars.Series(name, [edge.weight for edge in edges], dtype=polars.Float64))
