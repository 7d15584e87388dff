"""Lines, bars and histograms as a user meets them: keys, what is on the screen, what is copied."""

from __future__ import annotations

import math
from collections.abc import Callable

import polars
import pytest
from textual.app import App, ComposeResult
from textual.widget import Widget

from modelscope_app.api import BarsView, HistogramView, LinesView
from modelscope_app.api.views import View
from modelscope_app.rendering.wording import number_text
from modelscope_app.tui.messages import Selected
from modelscope_app.tui.on_screen import Copyable, Explained
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.views import board_for
from modelscope_app.tui.views.bars import BarLines
from modelscope_app.tui.views.lines_axis import Axis
from modelscope_app.tui.views.lines_plot import LinePlot

HOSTILE = ("\x1b[31mred", "[bold]markup[/]", "\u202eevil", "x" * 10_000, "日本語")


@pytest.fixture
def colour(monkeypatch):
    """A terminal with all colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")


class Host(App[None]):
    """Shows one board and keeps what was selected."""

    def __init__(self, board: Widget) -> None:
        super().__init__()
        self.board = board
        self.selected: list[Selection | None] = []

    def compose(self) -> ComposeResult:
        yield self.board

    def on_selected(self, event: Selected) -> None:
        self.selected.append(event.selection)


def screen_text(app: App[None]) -> str:
    """What a user reads."""
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


async def settled(pilot) -> None:
    """Until the board has computed and drawn."""
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    await pilot.pause()


def made(made_run, view: View, frame: polars.DataFrame) -> Host:
    return Host(board_for(made_run(tables={"t": frame}, views=[view]), view))


def focused(app: App[None], kind: type[Widget]) -> Widget:
    widget = app.query_one(kind)
    widget.focus()
    return widget


BARS = BarsView(name="v", title="Effects", table="t", label="tensor", value="effect", low="low", high="high")


def bars_frame(names: list[str], values: list[float | None]) -> polars.DataFrame:
    ends = {
        "low": [None if value is None else value - 0.5 for value in values],
        "high": [None if value is None else value + 0.5 for value in values],
    }
    return polars.DataFrame({"tensor": names, "effect": values, **ends}, schema_overrides={"effect": polars.Float64})


async def test_a_bar_below_zero_reaches_to_the_left_and_an_unknown_one_says_so(made_run, colour):
    app = made(made_run, BARS, bars_frame(["up", "down", "lost"], [2.0, -1.0, None]))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        lines = screen_text(app).splitlines()
        up, down, lost = (next(line for line in lines if f" {name} " in line or f"›{name} " in line) for name in ("up", "down", "lost"))
        assert up.index("█") > down.index("█")
        assert down.rindex("█") < up.index("█")
        assert "-1 [-1.5, -0.5]" in down
        assert "?" in lost and "unknown" in lost


async def test_the_cursor_says_a_bar_exactly_copies_it_and_hands_its_tensor_over(made_run, colour):
    app = made(made_run, BARS, bars_frame(["a.weight", "b\nweight"], [1.0, 2 / 3]))
    async with app.run_test() as pilot:
        await settled(pilot)
        bars = focused(app, BarLines)
        await pilot.press("down", "down", "down")
        await pilot.pause()
        assert "0.666666667" in screen_text(app)
        assert "2 of 2 bars" in screen_text(app)
        copied = bars.copied()
        assert copied and copied.text.split("\t")[:2] == ["b\\nweight", repr(2 / 3)]
        chosen = app.selected[-1]
        assert chosen and (chosen.kind, chosen.value) == ("tensor", "b\nweight")


async def test_three_hundred_thousand_bars_are_reached_end_to_end(made_run, colour):
    count = 300_000
    frame = polars.DataFrame({"name": [f"model.layers.{at}.mlp" for at in range(count)], "value": [float(at) for at in range(count)]})
    app = made(made_run, BarsView(name="v", title="Many", table="t", label="name", value="value"), frame)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        focused(app, BarLines)
        await pilot.press("end", "pageup", "end")
        await pilot.pause()
        assert "model.layers.299999.mlp" in screen_text(app)
        assert "300,000 of 300,000 bars" in screen_text(app)
        assert app.selected[-1] is None


async def test_hostile_names_of_bars_stay_text_and_on_their_lines(made_run, colour):
    app = made(made_run, BARS, bars_frame(list(HOSTILE), [1.0] * len(HOSTILE)))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        focused(app, BarLines)
        for _ in HOSTILE:
            text = screen_text(app)
            assert "\x1b" not in text and "\u202e" not in text
            await pilot.press("down")
        assert "[bold]markup[/]" in screen_text(app)


@pytest.mark.parametrize("view", [BARS, LinesView(name="v", title="L", table="t", x="low", y="effect")])
async def test_a_view_of_a_table_without_rows_says_so(made_run, colour, view):
    app = made(made_run, view, bars_frame([], []))
    async with app.run_test() as pilot:
        await settled(pilot)
        assert "no rows" in screen_text(app)
        for widget in (*app.query(BarLines), *app.query(LinePlot)):
            widget.focus()
            await pilot.press("down", "right", "end", "pageup", "plus", "minus", "r")
            assert widget.copied() is None


@pytest.mark.parametrize("size", [(20, 6), (80, 24), (200, 60)])
async def test_every_size_shows_bars_lines_and_histograms(made_run, colour, size):
    frame = bars_frame([f"t{at}" for at in range(30)], [math.sin(at) for at in range(30)]).with_row_index("step")
    views: list[View] = [
        BARS,
        LinesView(name="v", title="L", table="t", x="step", y="effect", low="low", high="high"),
        HistogramView(name="v", title="H", table="t", left="low", right="high", count="step"),
    ]
    for at, view in enumerate(views):
        run = made_run(tables={"t": frame}, views=[view], id=f"20260102-030405-weights-stats-abc{at}")
        app = Host(board_for(run, view))
        async with app.run_test(size=size) as pilot:
            await settled(pilot)
            app.board.focus_body()
            await pilot.press("down", "right", "end", "plus", "left")
            await pilot.resize_terminal(size[0] + 7, size[1] + 3)
            await pilot.pause()
            assert app.board.error is None
            assert isinstance(app.focused, Copyable) and app.focused.copied()
            assert isinstance(app.focused, Explained) and app.focused.explanation().text


LINES = LinesView(name="v", title="Loss", table="t", x="step", y="loss", series="run")


def lines_frame(series: int, points: int, value: Callable[[int, int], float | None]) -> polars.DataFrame:
    rows = [(step, f"run {one}", value(one, step)) for one in range(series) for step in range(1, points + 1)]
    return polars.DataFrame(rows, schema={"step": polars.Int64, "run": polars.String, "loss": polars.Float64}, orient="row")


async def test_the_cursor_along_x_says_every_line_exactly(made_run, colour):
    app = made(made_run, LINES, lines_frame(3, 9, lambda one, step: one + step / 7))
    async with app.run_test() as pilot:
        await settled(pilot)
        plot = focused(app, LinePlot)
        await pilot.press("left", "left")
        await pilot.pause()
        text = screen_text(app)
        assert "at step 7  (7 of 9)" in text
        for letter, value in zip("ABC", ("1", "2", "3"), strict=True):
            assert any(letter in line and line.split()[-1] == value for line in text.splitlines() if "run " in line)
        assert plot.copied().text.splitlines()[1] == "7\trun 1\t2"


async def test_a_zero_on_a_logarithmic_axis_is_read_as_zero_and_not_as_unknown(made_run, colour):
    view = LinesView(name="v", title="Change", table="t", x="step", y="loss", series="run", y_scale="log")
    app = made(made_run, view, lines_frame(1, 3, lambda one, step: [0.0, None, 5.0][step - 1]))
    async with app.run_test() as pilot:
        await settled(pilot)
        plot = focused(app, LinePlot)
        said = []
        for _ in range(3):
            said.append(plot.copied().text.split("\t")[2])
            await pilot.press("left")
        assert sorted(said) == ["0", "5", "unknown"]


async def test_each_line_carries_its_letter_so_that_colour_is_not_needed(made_run, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = made(made_run, LINES, lines_frame(3, 50, lambda one, step: one * 10.0 + step / 50))
    async with app.run_test() as pilot:
        await settled(pilot)
        plot = screen_text(app).split("at step")[0]
        assert all(letter in plot for letter in "ABC")


async def test_of_many_lines_one_is_chosen_and_the_screen_says_which(made_run, colour):
    app = made(made_run, LINES, lines_frame(40, 12, lambda one, step: one + step / 7))
    async with app.run_test() as pilot:
        await settled(pilot)
        focused(app, LinePlot)
        await pilot.press(*["down"] * 9)
        await pilot.pause()
        text = screen_text(app)
        assert "line 10 of 40" in text
        assert any(line.lstrip("│ ").startswith("›") and "run 9" in line for line in text.splitlines())


async def test_unknown_values_are_gaps_and_the_list_says_unknown(made_run, colour):
    app = made(made_run, LINES, lines_frame(1, 9, lambda one, step: None if step > 4 else 1.0))
    async with app.run_test() as pilot:
        await settled(pilot)
        assert "unknown" in screen_text(app)
        drawn = [len(data.x) for data in app.query_one(LinePlot)._datasets if hasattr(data, "line_style")]
        assert drawn == [4]


async def test_lines_zoom_around_the_cursor_and_r_shows_all_again(made_run, colour):
    app = made(made_run, LINES, lines_frame(1, 1001, lambda one, step: float(step)))
    async with app.run_test() as pilot:
        await settled(pilot)
        plot = focused(app, LinePlot)
        await pilot.press("home", "plus", "plus")
        await pilot.pause()
        assert "shown 1 to 251" in screen_text(app)
        await pilot.press("right")
        assert plot.xs[plot.cursor] > 1
        await pilot.press("r")
        await pilot.pause()
        assert "shown" not in screen_text(app)


@pytest.mark.parametrize("values", [[1e308, -1e308], [5e-324, 0.0], [1e15, 1e15 + 1], [3.0, 3.0], [1e-300, 2e-300]])
async def test_extreme_numbers_have_an_axis(made_run, colour, values):
    app = made(made_run, LINES, lines_frame(1, 2, lambda one, step: values[step - 1]))
    async with app.run_test() as pilot:
        await settled(pilot)
        focused(app, LinePlot)
        await pilot.press("left", "plus", "plus", "right", "minus")
        await pilot.pause()
        assert app.board.error is None
        assert number_text(values[1], 9) in screen_text(app)


def test_ticks_of_a_logarithmic_axis_are_powers_of_ten_and_no_tick_is_cut():
    axis = Axis("log", 1e-6, 1e12)
    ticks, labels = axis.get_ticks_and_labels(0.0, 1.0)
    assert all(len(label) <= 9 for label in labels)
    assert [float(label.replace(",", "")) for label in labels] == pytest.approx([axis.value(place) for place in ticks])
    _, labels = Axis("linear", 1e9, 1e9 + 4).get_ticks_and_labels(0.0, 1.0)
    assert all(label.replace(",", "").replace(".", "").replace("e", "").isdigit() for label in labels)


async def test_hostile_names_of_axes_and_lines_are_text(made_run, colour):
    frame = polars.DataFrame({"[red]x": [1, 2] * 5, "y[/]": [1.0, 2.0] * 5, "name": [name for name in HOSTILE for _ in range(2)]})
    view = LinesView(name="v", title="T", table="t", x="[red]x", y="y[/]", series="name")
    app = made(made_run, view, frame)
    async with app.run_test() as pilot:
        await settled(pilot)
        text = screen_text(app)
        assert "y[/] over [red]x" in text
        assert "\x1b" not in text and "\u202e" not in text
        assert "[bold]markup[/]" in text


async def test_a_click_on_the_plot_sets_the_cursor(made_run, colour):
    app = made(made_run, LINES, lines_frame(1, 101, lambda one, step: float(step)))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        plot = focused(app, LinePlot)
        await pilot.click(LinePlot, offset=(plot.margin_left + (plot.size.width - plot.margin_left) // 2, 5))
        await pilot.pause()
        assert 48 <= plot.xs[plot.cursor] <= 54


async def test_another_theme_redraws_the_lines_in_its_own_colours(made_run, colour):
    app = made(made_run, LINES, lines_frame(2, 9, lambda one, step: one + step / 7))
    async with app.run_test() as pilot:
        await settled(pilot)
        plot = app.query_one(LinePlot)
        before = plot.colour(0)
        app.theme = "textual-light"
        await pilot.pause()
        await pilot.pause()
        assert plot.colour(0) != before
        assert {data.line_style for data in plot._datasets if hasattr(data, "line_style")} == {plot.colour(0), plot.colour(1)}


async def test_a_view_that_does_not_fit_its_table_says_so_in_place(made_run, colour):
    app = made(made_run, BarsView(name="v", title="T", table="t", label="tensor", value="absent"), bars_frame(["a"], [1.0]))
    async with app.run_test() as pilot:
        await settled(pilot)
        assert "absent" in screen_text(app)
