"""Heat maps as a user meets them: what a mark means, zoom, the cursor, matrices of a million cells."""

from __future__ import annotations

import numpy
import polars
import pytest
from textual.app import App, ComposeResult
from textual.widget import Widget

from modelscope_app.api import HeatMapView
from modelscope_app.rendering.drawings import HeatMapDrawing
from modelscope_app.tui.views import board_for
from modelscope_app.tui.views.heat_map import HeatMapCells
from modelscope_app.tui.views.heat_map_cells import NumberCells, ShadeCells, SignCells
from modelscope_app.tui.views.lines_of_cells import WithReadout

VIEW = HeatMapView(name="v", title="Heads", table="t", row="layer", column="head", value="score", center=0.0)


@pytest.fixture
def colour(monkeypatch):
    """A terminal with all colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")


class Host(App[None]):
    """Shows one widget."""

    def __init__(self, shown: Widget, theme: str | None = None) -> None:
        super().__init__()
        self.shown = shown
        if theme:
            self.theme = theme

    def compose(self) -> ComposeResult:
        yield self.shown


def screen_text(app: App[None]) -> str:
    """What a user reads, without the margins."""
    return "\n".join("".join(segment.text for segment in strip).strip() for strip in app.screen._compositor.render_strips())


def drawn(values: numpy.ndarray, center: float | None = 0.0, rows=None, columns=None) -> HeatMapDrawing:
    rows = tuple(rows or (str(at) for at in range(values.shape[0])))
    columns = tuple(columns or (str(at) for at in range(values.shape[1])))
    return HeatMapDrawing("layer", "head", "score", rows, columns, values, center, ())


def waves(rows: int, columns: int) -> numpy.ndarray:
    return numpy.sin(numpy.arange(rows)[:, None] / 7) * numpy.cos(numpy.arange(columns)[None] / 5)


async def shown(pilot) -> HeatMapCells:
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    await pilot.pause()
    cells = pilot.app.query_one(HeatMapCells)
    cells.focus()
    await pilot.pause()
    return cells


async def test_a_small_matrix_shows_its_numbers_and_the_cursor_says_one_exactly(made_run, colour):
    frame = polars.DataFrame({"layer": [0, 0, 1, 1], "head": ["a", "b", "a", "b"], "score": [1.0, -2.0, None, 2 / 3]})
    app = Host(board_for(made_run(tables={"t": frame}, views=[VIEW]), VIEW))
    async with app.run_test(size=(80, 24)) as pilot:
        cells = await shown(pilot)
        text = screen_text(app)
        assert "-2" in text and "0.67" in text and "?" in text
        assert "1 of 4 values is unknown" in text
        await pilot.press("down", "right")
        await pilot.pause()
        assert "layer 1, head b" in screen_text(app)
        assert "score 0.666666667" in screen_text(app)
        assert cells.copied().text == f"1\tb\t{2 / 3!r}"
        await pilot.press("left")
        await pilot.pause()
        assert "score unknown" in screen_text(app)


async def test_plus_and_minus_change_how_much_a_cell_says(colour):
    app = Host(WithReadout(HeatMapCells(drawn(waves(10, 8)))))
    async with app.run_test(size=(100, 30)) as pilot:
        cells = await shown(pilot)
        assert isinstance(cells.cells, NumberCells)
        await pilot.press("minus")
        assert isinstance(cells.cells, SignCells)
        await pilot.press("minus")
        assert isinstance(cells.cells, ShadeCells)
        await pilot.press("minus", "minus", "plus")
        assert isinstance(cells.cells, SignCells)


async def test_what_does_not_fit_is_pooled_and_enter_goes_to_the_cell_a_mark_shows(colour):
    values = numpy.zeros((1000, 1000))
    values[17, 23], values[500, 500] = -7.0, 1.0
    app = Host(WithReadout(HeatMapCells(drawn(values))))
    async with app.run_test(size=(80, 24)) as pilot:
        cells = await shown(pilot)
        tall, wide = cells.pooled
        text = screen_text(app)
        assert f"A mark stands for {tall} x {wide} cells, the farthest from 0 of them" in text
        assert "layer 17, head 23" in text and "score -7, the farthest from 0" in text
        await pilot.press("enter")
        await pilot.pause()
        assert cells.pooled == (1, 1) and (cells.row, cells.column) == (17, 23)
        assert "score -7" in screen_text(app)
        assert "layer 17, head 23" in screen_text(app)
        await pilot.press("minus")
        await pilot.pause()
        assert cells.pooled == (tall, wide)


async def test_the_end_of_a_million_cells_is_reached_with_names_and_header_in_place(colour):
    app = Host(WithReadout(HeatMapCells(drawn(waves(1000, 1000)))))
    async with app.run_test(size=(80, 24)) as pilot:
        cells = await shown(pilot)
        await pilot.press("plus", "plus", "plus", "ctrl+end", "end")
        await pilot.pause()
        text = screen_text(app)
        assert "layer 999, head 999" in text
        assert any(line.startswith("›999") for line in text.splitlines())
        assert text.splitlines()[0].split()[-1] == "999"
        assert cells.cells and text.splitlines()[1].rstrip().endswith("▼")


@pytest.mark.parametrize("theme", ["textual-dark", "textual-light", "ansi-dark", "ansi-light"])
async def test_sign_and_distance_are_read_without_colour(monkeypatch, theme):
    monkeypatch.setenv("NO_COLOR", "1")
    values = numpy.array([[-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, numpy.nan]])
    app = Host(WithReadout(HeatMapCells(drawn(values))), theme)
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot)
        await pilot.press("minus")
        await pilot.pause()
        lines = screen_text(app).splitlines()
        assert "-█-▒-░  +░+▒+█??" in lines[2]
        assert any(line.startswith("score: -4") and "0" in line and "? unknown" in line for line in lines)
        await pilot.press("minus")
        await pilot.pause()
        assert "≡-· ░▒█?" in screen_text(app).splitlines()[2]


@pytest.mark.parametrize(
    "values", [numpy.empty((0, 0)), numpy.full((3, 4), numpy.nan), numpy.full((3, 4), 2.0), numpy.array([[1e308, -1e308]])]
)
@pytest.mark.parametrize("center", [None, 0.0])
async def test_empty_unknown_constant_and_extreme_matrices_are_drawn(colour, values, center):
    app = Host(WithReadout(HeatMapCells(drawn(values, center))))
    async with app.run_test(size=(80, 24)) as pilot:
        cells = await shown(pilot)
        await pilot.press("right", "down", "plus", "minus", "minus", "minus", "enter", "end", "pagedown")
        await pilot.pause()
        assert cells.explanation().text
        assert (cells.copied() is None) == (values.size == 0)
        if values.size and numpy.isnan(values).all():
            assert "nothing is known" in screen_text(app)


@pytest.mark.parametrize("size", [(20, 8), (40, 12), (80, 24), (200, 60)])
async def test_every_size_shows_a_matrix_and_follows_a_resize(colour, size):
    app = Host(WithReadout(HeatMapCells(drawn(waves(60, 60)))))
    async with app.run_test(size=size) as pilot:
        cells = await shown(pilot)
        await pilot.press("plus", "plus", "end", "ctrl+end")
        await pilot.resize_terminal(size[0] + 11, size[1] + 3)
        await pilot.pause()
        assert (cells.row, cells.column) == (59, 59)
        assert "layer 59, head 59" in " ".join(screen_text(app).split())


async def test_hostile_names_cannot_break_the_lines(made_run, colour):
    names = ["\x1b[31mred", "[bold]markup[/]", "\u202eevil", "x" * 10_000, "日本語"]
    frame = polars.DataFrame({"layer": names, "head": names[::-1], "score": [1.0] * 5})
    app = Host(board_for(made_run(tables={"t": frame}, views=[VIEW]), VIEW))
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot)
        for key in ("down", "right", "down", "right", "minus", "down", "down"):
            await pilot.press(key)
            await pilot.pause()
            text = screen_text(app)
            assert "\x1b" not in text and "\u202e" not in text
        assert "[bold]markup[/]" in screen_text(app)


async def test_a_click_sets_the_cursor(colour):
    app = Host(WithReadout(HeatMapCells(drawn(waves(10, 8)))))
    async with app.run_test(size=(100, 30)) as pilot:
        cells = await shown(pilot)
        await pilot.click(HeatMapCells, offset=(cells.name_width + 2 + 3 * cells.cells.width, 2 + 4))
        await pilot.pause()
        assert "layer 4, head 3" in screen_text(app)
