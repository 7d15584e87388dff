"""Histograms as a user meets them: bins said exactly, groups, logarithms, more bins than the screen has room for."""

from __future__ import annotations

import polars
import pytest
from textual.app import App, ComposeResult
from textual.widget import Widget

from modelscope_app.api import HistogramView
from modelscope_app.tui.views import board_for
from modelscope_app.tui.views.histogram import HistogramColumns


@pytest.fixture
def colour(monkeypatch):
    """A terminal with all colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")


class Host(App[None]):
    """Shows one board."""

    def __init__(self, board: Widget) -> None:
        super().__init__()
        self.board = board

    def compose(self) -> ComposeResult:
        yield self.board


def screen_text(app: App[None]) -> str:
    """What a user reads."""
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


async def shown(pilot) -> HistogramColumns:
    """Once the board has computed and drawn."""
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    await pilot.pause()
    bins = pilot.app.query_one(HistogramColumns)
    bins.focus()
    return bins


HISTOGRAM = HistogramView(name="v", title="Weights", table="t", left="bin_left", right="bin_right", count="count", group="tensor")


def histogram_frame(counts: list[float], groups: int = 1) -> polars.DataFrame:
    rows = [(f"g{group}", float(at), float(at + 1), count) for group in range(groups) for at, count in enumerate(counts)]
    return polars.DataFrame(rows, schema=["tensor", "bin_left", "bin_right", "count"], orient="row")


def made(made_run, frame: polars.DataFrame) -> Host:
    return Host(board_for(made_run(tables={"t": frame}, views=[HISTOGRAM]), HISTOGRAM))


async def test_a_bin_is_said_exactly_with_its_share_and_the_share_up_to_it(made_run, colour):
    app = made(made_run, histogram_frame([1.0, 2.0, 5.0, 2.0]))
    async with app.run_test() as pilot:
        bins = await shown(pilot)
        assert "from 2 to 3, count 5  (bin 3 of 4)" in screen_text(app)  # the fullest to begin with
        await pilot.press("left")
        await pilot.pause()
        assert "from 1 to 2, count 2  (bin 2 of 4)" in screen_text(app)
        assert "20% of all, 30% in this and the bins below it" in screen_text(app)
        assert bins.copied().text == "g0\t1\t2\t2"


async def test_groups_and_logarithms_are_a_key_away(made_run, colour):
    app = made(made_run, histogram_frame([1.0, 100_000.0, 10.0], groups=3))
    async with app.run_test() as pilot:
        await shown(pilot)
        await pilot.press("down", "l")
        await pilot.pause()
        assert "g1 (2 of 3 groups)" in screen_text(app)
        assert "(log scale)" in screen_text(app)


async def test_more_bins_than_characters_are_added_up_until_one_looks_closer(made_run, colour):
    app = made(made_run, histogram_frame([float(at) for at in range(1000)]))
    async with app.run_test(size=(80, 24)) as pilot:
        bins = await shown(pilot)
        assert "a column adds up 16 bins" in screen_text(app)
        await pilot.press("home", "plus", "plus", "plus", "plus", "plus", "plus")
        await pilot.pause()
        assert "15 of 1,000 bins are shown" in " ".join(screen_text(app).split())
        await pilot.press(*["right"] * 20)
        assert bins.first > 0 and bins.first <= bins.cursor < bins.last


@pytest.mark.parametrize("counts", [[], [0.0, 0.0], [7.0], [1e308, 1e308], [None, 3.0]])
async def test_no_bins_no_counts_one_bin_and_the_largest_counts(made_run, colour, counts):
    app = made(made_run, histogram_frame(counts))
    async with app.run_test(size=(40, 12)) as pilot:
        bins = await shown(pilot)
        await pilot.press("right", "left", "plus", "minus", "l", "down", "end", "r")
        await pilot.pause()
        assert (bins.copied() is None) == (not counts)
        assert bins.explanation().text


async def test_hostile_names_of_groups_stay_on_their_line(made_run, colour):
    frame = histogram_frame([1.0, 2.0], groups=3).with_columns(
        tensor=polars.Series([name for name in ("\x1b[31mred", "[b]m[/]", "x" * 10_000) for _ in range(2)])
    )
    app = made(made_run, frame)
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot)
        assert "\\x1b[31mred (1 of 3 groups)" in screen_text(app)
        await pilot.press("down")
        await pilot.pause()
        assert "[b]m[/] (2 of 3 groups)" in screen_text(app)
        await pilot.press("down")
        await pilot.pause()
        assert "(3 of 3 groups)" in screen_text(app)
