"""Facts and graphs of a run in the terminal app."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import polars
import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from modelscope_app.api import FactsView, FinishedRun, GraphView, View
from modelscope_app.rendering.drawings import Edge
from modelscope_app.rendering.marks import BLOCKS, PLAIN
from modelscope_app.tui.messages import Selected
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.views import board_for
from modelscope_app.tui.views.facts import FactList
from modelscope_app.tui.views.graph import EdgeList
from modelscope_app.tui.views.graph_picture import edge_letters, graph_picture
from modelscope_app.tui.views.table_grid import TableGrid

MadeRun = Callable[..., FinishedRun]

FACTS = {
    "best_auroc": {"value": 0.91234567, "ci_low": 0.87, "ci_high": 0.94},
    "parameters": 134_515_008,
    "loss": None,
    "weights_bytes": 269_060_552,
    "is_tied": True,
}
FACTS_VIEW = FactsView(name="facts", title="Facts")
GRAPH_VIEW = GraphView(name="circuit", title="Circuit", table="edges", source="from", target="to", weight="weight")
CIRCUIT = [
    ("embed", "head.0", 1.5),
    ("embed", "head.1", -0.25),
    ("head.0", "mlp", None),
    ("head.1", "mlp", 0.125),
    ("embed", "logits", 0.5),
]


class Host(App[None]):
    def __init__(self, run: FinishedRun, view: View) -> None:
        super().__init__()
        self.board = board_for(run, view)
        self.selections: list[Selection | None] = []

    def compose(self) -> ComposeResult:
        yield self.board

    def on_selected(self, message: Selected) -> None:
        self.selections.append(message.selection)

    @property
    def text(self) -> str:
        """All characters on the screen, line by line."""
        lines = self.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)


@asynccontextmanager
async def on_screen(run: FinishedRun, view: View, size: tuple[int, int] = (80, 24)) -> AsyncIterator[tuple[Host, Pilot[None]]]:
    app = Host(run, view)
    async with app.run_test(size=size) as pilot:
        await _settle(pilot)
        app.board.focus_body()
        await _settle(pilot)
        yield app, pilot


async def _settle(pilot: Pilot[None]) -> None:
    await pilot.pause()
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


def edges(*rows: tuple[str, str, float | None]) -> polars.DataFrame:
    return polars.DataFrame(rows, schema={"from": polars.String, "to": polars.String, "weight": polars.Float64}, orient="row")


async def test_facts_have_their_uncertainty_and_unknown_is_a_word(made_run: MadeRun) -> None:
    async with on_screen(made_run(facts=FACTS), FACTS_VIEW) as (app, _):
        lines = app.text.splitlines()
        for name, value in (("best_auroc", "0.9123 [0.87, 0.94]"), ("parameters", "134,515,008"), ("loss", "unknown"), ("is_tied", "yes")):
            assert any(name in line and value in line for line in lines)


async def test_y_copies_the_fact_under_the_cursor_with_every_digit(made_run: MadeRun) -> None:
    async with on_screen(made_run(facts=FACTS), FACTS_VIEW) as (app, pilot):
        facts = app.query_one(FactList)
        copied = facts.copied()
        assert copied is not None and copied.text == 'best_auroc: {"value": 0.91234567, "ci_low": 0.87, "ci_high": 0.94}'
        await pilot.press("down")
        copied = facts.copied()
        assert copied is not None and copied.text == "parameters: 134515008" and copied.what == "fact parameters"
        assert facts.explanation().text


async def test_facts_that_are_not_there_are_a_note(made_run: MadeRun) -> None:
    async with on_screen(made_run(facts=FACTS), FactsView(name="f", title="F", keys=("loss", "gone"))) as (app, _):
        assert "Not among the run's facts: gone." in app.text and "parameters" not in app.text
    exports = app.board.exports()
    assert exports is not None and exports.formats == ("json", "html", "svg")


async def test_a_run_without_facts_says_so(made_run: MadeRun) -> None:
    async with on_screen(made_run(), FACTS_VIEW) as (app, pilot):
        assert "The run has no facts." in app.text
        await pilot.press("down", "enter")


@pytest.mark.parametrize("size", [(80, 24), (24, 6)])
async def test_long_and_hostile_facts_are_wrapped_and_harmless(made_run: MadeRun, size: tuple[int, int]) -> None:
    facts = {"[/]\x1b[2J" + "n" * 10_000: "[bold]\x1b[31m" + "long " * 4000, "rtl": "a\u202eb"}
    async with on_screen(made_run(facts=facts), FACTS_VIEW, size) as (app, pilot):
        await pilot.press("down", "up", "end")
        assert "\x1b" not in app.text and "\u202e" not in app.text and app.is_running
        if size[0] == 80:
            assert "\\u202e" in app.text
    copied = app.board.query(FactList).first().copied() if app.board.query(FactList) else None
    assert copied is None or "\u202e" in copied.text


async def test_damaged_facts_are_a_sentence(made_run: MadeRun) -> None:
    run = made_run(facts=FACTS)
    (run.folder / "facts.json").write_text("[]")
    async with on_screen(run, FACTS_VIEW) as (app, _):
        assert "holds no facts" in app.text.replace("\n", " ")


@pytest.mark.parametrize("size", [(80, 24), (130, 40)])
async def test_a_small_graph_is_drawn_with_a_letter_for_every_edge(made_run: MadeRun, size: tuple[int, int]) -> None:
    async with on_screen(made_run({"edges": edges(*CIRCUIT)}), GRAPH_VIEW, size) as (app, _):
        for shown in ("│ embed  │", "head.0", "embed → head.0", "+1.5", "-0.25", "1 of 5 values is unknown."):
            assert shown in app.text
        lines = app.text.splitlines()
        assert any(line.strip().startswith("a ") or " a " in line for line in lines if "+1.5" in line)


async def test_moving_through_the_edges_selects_them(made_run: MadeRun) -> None:
    run = made_run({"edges": edges(*CIRCUIT)})
    async with on_screen(run, GRAPH_VIEW) as (app, pilot):
        await pilot.press("down", "enter")
        found = app.selections[-1]
        assert found is not None and (found.kind, found.value, found.run) == ("edge", "embed->logits", str(run.folder))
        copied = app.query_one(EdgeList).copied()
        assert copied is not None and copied.text == "embed\tlogits\t0.5"
        assert app.query_one(EdgeList).explanation().text


async def test_v_changes_between_picture_and_table(made_run: MadeRun) -> None:
    async with on_screen(made_run({"edges": edges(*CIRCUIT)}), GRAPH_VIEW) as (app, pilot):
        await pilot.press("v")
        await _settle(pilot)
        assert isinstance(app.focused, TableGrid) and "source" in app.text and "│ embed" not in app.text
        await pilot.press("down")
        await _settle(pilot)
        found = app.selections[-1]
        assert found is not None and found.value == "embed->logits"
        await pilot.press("v")
        await _settle(pilot)
        assert isinstance(app.focused, EdgeList) and "│ embed" in app.text


async def test_a_large_graph_is_a_table_the_heaviest_edge_first(made_run: MadeRun) -> None:
    rows = [(f"a{at}", f"b{at % 7}", at / 100 - 2) for at in range(300)]
    async with on_screen(made_run({"edges": edges(*rows)}), GRAPH_VIEW) as (app, pilot):
        assert "307 nodes and 300 edges are too many to draw" in app.text
        assert app.query_one(TableGrid).rows.cell_text(0, 2) == "-2"
        await pilot.press("v", "s", "enter")
        assert app.is_running


async def test_a_graph_that_is_too_wide_is_a_table_until_v_draws_it(made_run: MadeRun) -> None:
    rows = [("root", f"leaf number {at}", 1.0) for at in range(20)]
    async with on_screen(made_run({"edges": edges(*rows)}), GRAPH_VIEW) as (app, pilot):
        assert "v draws the graph." in app.text and isinstance(app.focused, TableGrid)
        await pilot.press("v")
        await _settle(pilot)
        assert isinstance(app.focused, EdgeList) and "root" in app.text


async def test_a_graph_without_edges_says_so(made_run: MadeRun) -> None:
    async with on_screen(made_run({"edges": edges()}), GRAPH_VIEW) as (app, _):
        assert "The graph has no edges." in app.text


async def test_an_edge_that_leads_back_is_listed_and_not_drawn(made_run: MadeRun) -> None:
    frame = edges(("a", "b", 1.0), ("b", "a", 2.0), ("b", "b", 3.0))
    async with on_screen(made_run({"edges": frame}), GRAPH_VIEW) as (app, pilot):
        assert app.text.count("↺") == 2 and "2 edges that lead back not drawn." in app.text
        await pilot.press("down", "down", "down")


async def test_hostile_names_cannot_break_a_graph(made_run: MadeRun) -> None:
    frame = edges(("[/]\x1b[31m", "n" * 10_000, 1.0), ("a\u202eb", "[bold]名前[/bold]", -1.0), ("n" * 10_000, "e\u0301", 0.0))
    async with on_screen(made_run({"edges": frame}), GRAPH_VIEW) as (app, pilot):
        await pilot.press("down", "down", "up")
        assert "\x1b" not in app.text and "\u202e" not in app.text and "名前" in app.text


def test_every_edge_runs_from_the_border_of_its_source_to_that_of_its_target() -> None:
    """Followed cell by cell, in a graph with skips and crossings, no edge is broken and none shares a vertical line."""
    nodes = [f"{layer}.{at}" for layer in range(5) for at in range(3)]
    drawn = [
        Edge(a, b, 1.0)
        for at, a in enumerate(nodes)
        for b in nodes[at + 1 :]
        if a[0] < b[0] and (int(a[0]) * 7 + int(b[-1]) * 3 + at) % 4 == 0
    ]
    assert len(drawn) > 15
    picture = graph_picture(drawn, BLOCKS)
    letters = edge_letters(len(drawn))
    lines = picture.lines
    for at, edge in enumerate(drawn):
        cells = sorted(set(picture.cells[at]))
        for (row, _), (after, _) in pairwise(cells):
            assert after - row <= 1
        first, last = cells[0], cells[-1]
        assert lines[first[0]][first[1]] == letters[at][0] and letters[at] in lines[last[0]]
        assert edge.source in lines[first[0] - 1] and edge.target in lines[last[0] + 1]
    assert {len(row) for row in picture.rows} == {picture.width}


def test_a_graph_can_be_drawn_in_ascii() -> None:
    picture = graph_picture([Edge("a", "b", 1.0), Edge("a", "c", 1.0)], PLAIN)
    assert "\n".join(picture.lines).isascii() and "|  a   |" in "\n".join(picture.lines)
