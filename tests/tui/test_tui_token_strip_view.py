"""Token strips as a user meets them: running text, digits and numbers, several scores and texts."""

from __future__ import annotations

import numpy
import polars
import pytest
from textual.app import App, ComposeResult
from textual.widget import Widget

from modelscope_app.api import TokenStripView
from modelscope_app.rendering.drawings import TokenStripDrawing, TokenText
from modelscope_app.tui.messages import Selected
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.views import board_for
from modelscope_app.tui.views.lines_of_cells import WithReadout
from modelscope_app.tui.views.token_strip import TokenLines

VIEW = TokenStripView(name="v", title="Scores", table="t", token="token", scores=("loss", "gradient"), text="text")


@pytest.fixture
def colour(monkeypatch):
    """A terminal with all colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")


class Host(App[None]):
    """Shows one widget and keeps what was selected."""

    def __init__(self, shown: Widget) -> None:
        super().__init__()
        self.shown = shown
        self.selected: list[Selection | None] = []

    def compose(self) -> ComposeResult:
        yield self.shown

    def on_selected(self, event: Selected) -> None:
        self.selected.append(event.selection)


def screen_text(app: App[None]) -> str:
    """What a user reads, without the margins."""
    return "\n".join("".join(segment.text for segment in strip).strip() for strip in app.screen._compositor.render_strips())


async def shown(pilot) -> TokenLines:
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    await pilot.pause()
    tokens = pilot.app.query_one(TokenLines)
    tokens.focus()
    await pilot.pause()
    return tokens


def frame() -> polars.DataFrame:
    return polars.DataFrame(
        {
            "text": ["one"] * 4 + ["two"] * 3,
            "token": ["The", " cat", "\n", "", " a", "[bold]", "\x1b[31m"],
            "loss": [1.0, 0.25, None, 0.5, 2.0, 1.5, 0.0],
            "gradient": [-1.0, 1.0, 0.5, -0.25, 1 / 3, 0.0, 0.125],
        }
    )


def long_drawing(tokens: int, texts: int = 1, scores: int = 2) -> TokenStripDrawing:
    random = numpy.random.default_rng(0)
    words = ("The", " cat", " sat", ".", "\\n", "日本", " ", "multi")
    made = [
        TokenText(f"text {at}", tuple(words[one] for one in random.integers(0, len(words), tokens)), random.normal(size=(scores, tokens)))
        for at in range(texts)
    ]
    return TokenStripDrawing(tuple(f"score {at}" for at in range(scores)), tuple(made), ())


async def test_tokens_run_on_with_a_digit_below_and_spaces_seen(made_run, colour):
    app = Host(board_for(made_run(tables={"t": frame()}, views=[VIEW]), VIEW))
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot)
        lines = screen_text(app).splitlines()
        at = next(at for at, line in enumerate(lines) if line.startswith("The"))
        assert lines[at - 1].startswith("one")
        assert lines[at].startswith("The·cat\\n∅")
        assert lines[at + 1].startswith("5  1   ? 2")
        assert any(line.startswith("loss (1 of 2): 0") and "tenths of 2" in line for line in lines)


async def test_another_score_and_its_numbers_are_a_key_away(made_run, colour):
    app = Host(board_for(made_run(tables={"t": frame()}, views=[VIEW]), VIEW))
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot)
        await pilot.press("s")
        await pilot.pause()
        assert "-9 +9" in screen_text(app)
        await pilot.press("n")
        await pilot.pause()
        assert "0.33" in screen_text(app) and "-0.25" in screen_text(app)
        await pilot.press("s", "n")
        await pilot.pause()
        assert "loss (1 of 2)" in screen_text(app)


async def test_the_token_under_the_cursor_is_said_copied_and_handed_over_as_it_is_stored(made_run, colour):
    app = Host(board_for(made_run(tables={"t": frame()}, views=[VIEW]), VIEW))
    async with app.run_test(size=(80, 24)) as pilot:
        tokens = await shown(pilot)
        await pilot.press("right", "right")
        await pilot.pause()
        text = screen_text(app)
        assert "(token 3 of 4 in one)" in text
        assert "loss unknown   gradient 0.5" in text
        assert tokens.copied().text == "\\n\tunknown\t0.5"
        assert app.selected[-1] and (app.selected[-1].kind, app.selected[-1].value) == ("token", "\n")
        await pilot.press("t")
        await pilot.pause()
        assert "(token 1 of 3 in two)" in screen_text(app)
        await pilot.press("end")
        await pilot.pause()
        assert app.selected[-1].value == "\x1b[31m"
        assert "\x1b" not in screen_text(app) and "[bold]" in screen_text(app)
        await pilot.press("T")
        await pilot.pause()
        assert "(token 1 of 4 in one)" in screen_text(app)


async def test_down_and_up_keep_to_the_column_and_come_back(colour):
    app = Host(WithReadout(TokenLines(long_drawing(400, texts=3))))
    async with app.run_test(size=(60, 20)) as pilot:
        tokens = await shown(pilot)
        await pilot.press(*["right"] * 5)
        start = tokens.cursor
        await pilot.press("down")
        laid = tokens.layout_of_lines
        assert laid.first_line_of(*tokens._where()) == laid.first_line_of(0, start) + 2
        await pilot.press("pagedown", "pagedown", "pageup", "pageup", "up", "up")
        assert laid.first_line_of(*tokens._where()) == 1
        await pilot.press("end", "down")
        assert tokens.cursor == 1199


async def test_a_hundred_thousand_tokens_are_reached_end_to_end(colour):
    app = Host(WithReadout(TokenLines(long_drawing(100_000))))
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot)
        await pilot.press("pagedown", "end")
        await pilot.pause()
        assert "token 100,000 of 100,000" in screen_text(app)


async def test_digits_and_the_cursor_are_read_without_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = Host(WithReadout(TokenLines(long_drawing(30))))
    app.theme = "ansi-dark"
    async with app.run_test(size=(80, 24)) as pilot:
        tokens = await shown(pilot)
        strip = tokens.render_line(1)
        assert next(iter(strip)).style.reverse
        assert any(sign in screen_text(app).splitlines()[2] for sign in "+-")


@pytest.mark.parametrize("size", [(12, 6), (40, 10), (80, 24), (200, 60)])
async def test_every_size_shows_tokens_and_follows_a_resize(colour, size):
    app = Host(WithReadout(TokenLines(long_drawing(200))))
    async with app.run_test(size=size) as pilot:
        tokens = await shown(pilot)
        await pilot.press("end")
        await pilot.resize_terminal(size[0] + 9, size[1] + 4)
        await pilot.pause()
        assert tokens.cursor == 199 and tokens.layout_of_lines.height > 2


@pytest.mark.parametrize("drawing", [long_drawing(0), long_drawing(1), long_drawing(3, scores=0), TokenStripDrawing(("a",), (), ())])
async def test_nothing_one_token_and_no_score_are_drawn(colour, drawing):
    app = Host(WithReadout(TokenLines(drawing)))
    async with app.run_test(size=(80, 24)) as pilot:
        tokens = await shown(pilot)
        await pilot.press("right", "down", "up", "s", "n", "t", "T", "end", "pagedown", "home")
        await pilot.pause()
        assert tokens.explanation().text
        count = sum(len(text.tokens) for text in drawing.texts)
        assert (tokens.copied() is None) == (count == 0)


async def test_a_token_longer_than_the_screen_is_cut_and_named_on_one_line(made_run, colour):
    long = polars.DataFrame({"token": ["x" * 10_000, "\u202eevil", "日本語" * 60], "loss": [1.0, 2.0, 3.0]})
    view = TokenStripView(name="v", title="T", table="t", token="token", scores=("loss",))
    app = Host(board_for(made_run(tables={"t": long}, views=[view]), view))
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot)
        await pilot.press("right", "right")
        await pilot.pause()
        assert "\u202e" not in screen_text(app)
        assert "loss 3" in screen_text(app)
