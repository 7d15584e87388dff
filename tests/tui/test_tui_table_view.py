"""Tables of a run in the terminal app, as a person at the keyboard meets them."""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import polars
import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import Input, Static
from tui.slow_disk import SlowCalls, until

from modelscope_app.api import BadInput, FinishedRun, TableView, View
from modelscope_app.checkpoints import natural_key
from modelscope_app.rendering.drawings import TableDrawing, drawing
from modelscope_app.rendering.html import write_report
from modelscope_app.testing.tiny_checkpoints import write_checkpoint
from modelscope_app.tui.messages import Selected
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.views import board_for, table_answers
from modelscope_app.tui.views.board import ViewBoard
from modelscope_app.tui.views.row_detail import RowFields
from modelscope_app.tui.views.table_answers import found, ordered
from modelscope_app.tui.views.table_filter import condition
from modelscope_app.tui.views.table_grid import TableGrid
from modelscope_app.tui.views.table_pane import TablePane
from modelscope_app.tui.views.table_prompt import TablePrompt

FRAME = polars.DataFrame(
    {
        "tensor": ["model.layers.0.mlp", "model.layers.1.attn", "model.layers.2.mlp", "model.norm"],
        "layer": [0, 1, 2, None],
        "norm": [0.5, math.nan, 2.0, 1 / 3],
        "weight_bytes": [269_060_552, 1000, 12, 0],
    }
)
VIEW = TableView(name="tensors", title="Tensors", table="tensors")

MadeRun = Callable[..., FinishedRun]


class Host(App[None]):
    """One board and nothing else; remembers what was selected."""

    def __init__(self, run: FinishedRun, view: View) -> None:
        super().__init__()
        self.board = board_for(run, view)
        self.selections: list[Selection | None] = []

    def compose(self) -> ComposeResult:
        yield self.board

    def on_selected(self, message: Selected) -> None:
        self.selections.append(message.selection)


class Screen:
    """What a test sees and does."""

    def __init__(self, app: Host, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    async def settle(self) -> None:
        await self.pilot.pause()
        await self.app.workers.wait_for_complete()
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.app.workers.wait_for_complete()
        await self.pilot.pause()

    async def type(self, text: str) -> None:
        """As from a clipboard, which is one event."""
        assert self.app.focused is not None
        self.app.focused.post_message(events.Paste(text))
        await self.settle()

    @property
    def text(self) -> str:
        """All characters on the screen, line by line."""
        lines = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)

    @property
    def rows(self) -> list[str]:
        """The first column, as shown."""
        grid = self.app.query_one(TableGrid)
        return [grid.rows.cell_text(at, 0) for at in range(grid.row_count)]

    @property
    def status(self) -> str:
        return str(self.app.query_one(".table-status", Static).render())

    @property
    def pane(self) -> TablePane:
        return self.app.query_one(TablePane)


@asynccontextmanager
async def on_screen(run: FinishedRun, view: View = VIEW, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Screen]:
    app = Host(run, view)
    async with app.run_test(size=size) as pilot:
        screen = Screen(app, pilot)
        await screen.settle()
        app.board.focus_body()
        await screen.settle()
        yield screen


@pytest.fixture
def run(made_run: MadeRun) -> FinishedRun:
    return made_run({"tensors": FRAME})


async def test_cells_read_as_they_do_everywhere_and_unknown_is_a_word(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        for shown in ("Tensors", "model.layers.0.mlp", "0.3333", "unknown", "269.1 MB", "4 rows"):
            assert shown in screen.text
        assert "nan" not in screen.text.lower().replace("norm", "")


async def test_s_sorts_rising_then_falling_then_not_and_unknown_stays_last(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        await screen.press("right", "right", "s")
        assert [row[-1] for row in screen.rows] == ["m", "p", "p", "n"]
        assert screen.rows[-1] == "model.layers.1.attn" and "sorted by norm ascending" in screen.status and "norm ▲" in screen.text
        await screen.press("s")
        assert screen.rows == ["model.layers.2.mlp", "model.layers.0.mlp", "model.norm", "model.layers.1.attn"]
        assert "sorted by norm descending" in screen.status and "norm ▼" in screen.text
        await screen.press("s")
        assert screen.rows == FRAME["tensor"].to_list() and "sorted" not in screen.status


async def test_a_view_that_asks_for_an_order_opens_in_it(run: FinishedRun) -> None:
    view = TableView(name="t", title="T", table="tensors", columns=("tensor", "layer"), sort_by="norm", descending=True)
    async with on_screen(run, view) as screen:
        assert screen.rows[0] == "model.layers.2.mlp" and screen.rows[-1] == "model.layers.1.attn"
        assert "2 of 4 columns hidden" in screen.status
        await screen.press("H")
        assert "weight_bytes" in screen.text
        await screen.press("enter")
        assert "weight_bytes" in screen.text


async def test_names_are_sorted_by_the_numbers_in_them_in_the_app_and_in_a_report(made_run: MadeRun, tmp_path: Path) -> None:
    names = [f"layers.{layer}.{part}.{zeros}{layer % 3}" for layer in range(13) for part in ("mlp", "Attn") for zeros in ("", "00")]
    names += ["norm", "layers.2", "layers.١", ""]
    random.Random(0).shuffle(names)
    run = made_run({"tensors": polars.DataFrame({"tensor": [*names, None]})})
    wanted = [*sorted(names, key=natural_key), "unknown"]
    async with on_screen(run) as screen:
        await screen.press("s")
        assert screen.rows == wanted
        await screen.press("s")
        assert screen.rows == [*wanted[-2::-1], "unknown"]
    view = TableView(name="t", title="T", table="tensors", sort_by="tensor")
    async with on_screen(run, view) as screen:
        assert screen.rows == wanted
    drawn = drawing(run, view)
    assert isinstance(drawn, TableDrawing) and drawn.frame["tensor"].to_list() == [*wanted[:-1], None]
    run.write_view(view)
    report = write_report(run, tmp_path / "report.html").read_text()
    assert report.index("layers.2.mlp.2<") < report.index("layers.10.mlp.1<")


async def test_a_column_whose_name_looks_like_a_pattern_is_that_column_only(made_run: MadeRun, tmp_path: Path) -> None:
    run = made_run({"tensors": polars.DataFrame({"^.*$": ["b", "a", "c"], "layer": [1, 2, 3]})})
    async with on_screen(run) as screen:
        await screen.press("s")
        assert screen.rows == ["a", "b", "c"] and "sorted by ^.*$ ascending" in screen.status
        await screen.press("f")
        await screen.type("'^.*$' ~ [bc]")
        await screen.press("enter", "/")
        await screen.type("c")
        assert screen.rows == ["b", "c"] and "1 of 1 with 'c'" in screen.status
        exports = screen.app.board.exports()
    assert exports is not None
    assert exports.write("csv", tmp_path / "t.csv").read_text().splitlines() == ["^.*$,layer", "b,1", "c,3"]


async def test_f_filters_and_an_empty_filter_shows_all_again(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        await screen.press("f")
        await screen.type("tensor contains MLP and norm > 1")
        await screen.press("enter")
        assert screen.rows == ["model.layers.2.mlp"] and "1 match" in screen.status and "4 rows" in screen.status
        assert isinstance(screen.app.focused, TableGrid)
        await screen.press("f", "ctrl+u", "enter")
        assert len(screen.rows) == 4 and "match" not in screen.status


async def test_a_wrong_filter_is_answered_in_place_with_the_nearest_column(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        await screen.press("f")
        await screen.type("tensr = x")
        await screen.press("enter")
        assert "no column 'tensr'; did you mean 'tensor'?" in screen.text and len(screen.rows) == 4
        await screen.press("escape")
        assert "did you mean" not in screen.text and isinstance(screen.app.focused, TableGrid)


async def test_a_filter_that_nothing_meets_leaves_a_table_that_still_answers(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        await screen.press("f")
        await screen.type("layer > 99")
        await screen.press("enter")
        assert screen.rows == [] and "0 match" in screen.status
        await screen.press("down", "enter", "s", "G", "n", "h")
        assert screen.pane.copied() is None and screen.pane.selection() is None
        await screen.press("f", "ctrl+u", "enter")
        assert len(screen.rows) == 4


async def test_search_goes_to_matches_while_typing_and_n_goes_on(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        await screen.press("/")
        await screen.type("MLP")
        assert screen.app.query_one(TableGrid).cursor_row == 0 and "1 of 2 with 'MLP'" in screen.status
        await screen.press("enter", "n")
        assert screen.app.query_one(TableGrid).cursor_row == 2 and "2 of 2 with" in screen.status
        await screen.press("n")
        assert screen.app.query_one(TableGrid).cursor_row == 0
        await screen.press("N")
        assert screen.app.query_one(TableGrid).cursor_row == 2
        await screen.press("/")
        await screen.type("zz")
        assert "nothing holds 'MLPzz'" in screen.status
        await screen.press("escape")
        assert "holds" not in screen.status


async def test_the_matches_follow_the_order(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        await screen.press("/")
        await screen.type("mlp")
        await screen.press("enter", "right", "right", "s", "s")
        await screen.settle()
        assert screen.rows[0] == "model.layers.2.mlp" and "1 of 2 with" in screen.status
        await screen.press("n")
        assert screen.rows[screen.app.query_one(TableGrid).cursor_row] == "model.layers.0.mlp"


async def test_r_goes_to_a_row_by_its_number_and_g_to_the_ends(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        await screen.press("G")
        assert "row 3 " in screen.status
        await screen.press("g")
        assert "row 0 " in screen.status
        await screen.press("r", "2", "enter")
        assert "row 2 " in screen.status
        await screen.press("r", "9", "enter")
        assert "rows are numbered from 0 to 3" in screen.text


async def test_a_column_is_hidden_and_shown(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        await screen.press("right", "h")
        assert "layer " not in screen.text.splitlines()[1] and "1 of 4 columns hidden" in screen.status
        await screen.press("H")
        assert "layer" in screen.text.splitlines()[1] and "hidden" not in screen.status


async def test_the_answer_to_an_earlier_filter_does_not_close_the_prompt(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowCalls(ordered)
    monkeypatch.setattr("modelscope_app.tui.views.table_pane.ordered", slow)
    async with on_screen(run) as screen:
        await screen.pilot.press("f", *"layer=0", "enter")
        await until(screen.pilot, lambda: slow.started)
        await screen.pilot.press("backspace")
        slow.finish.set()
        await screen.press("2")
        prompt = screen.app.query_one(TablePrompt)
        assert prompt.display and prompt.query_one(Input).value == "layer=2"


async def test_a_search_typed_while_rows_are_sorted_goes_to_its_match(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    sorting, seeking = SlowCalls(ordered), SlowCalls(found)
    monkeypatch.setattr("modelscope_app.tui.views.table_pane.ordered", sorting)
    monkeypatch.setattr("modelscope_app.tui.views.table_pane.found", seeking)
    async with on_screen(run) as screen:
        await screen.pilot.press("s")
        await until(screen.pilot, lambda: sorting.started)
        await screen.pilot.press("/", *"norm")
        await until(screen.pilot, lambda: seeking.started)
        sorting.finish.set()
        seeking.finish.set()
        await screen.settle()
        await screen.press("enter")
        assert screen.app.query_one(TableGrid).rows.cell_text(screen.app.query_one(TableGrid).cursor_row, 0) == "model.norm"


async def test_all_columns_are_shown_at_once_also_those_the_view_leaves_out(run: FinishedRun) -> None:
    view = TableView(name="t", title="T", table="tensors", columns=("tensor", "layer"))
    async with on_screen(run, view) as screen:
        await screen.press("right", "h", "H")
        assert "hidden" not in screen.status
        await screen.press("H")
        assert "2 of 4 columns hidden" in screen.status


@pytest.mark.parametrize("size", [(80, 24), (130, 30)])
async def test_enter_shows_the_row_in_full_and_escape_goes_back(run: FinishedRun, size: tuple[int, int]) -> None:
    async with on_screen(run, size=size) as screen:
        await screen.press("G", "enter")
        assert "row 3 of tensors" in screen.text and "0.3333333333333333" in screen.text
        assert screen.app.query_one(TableGrid).display is (size[0] > 100)
        fields = screen.app.query_one(RowFields)
        await screen.press("down", "down")
        copied = fields.copied()
        assert copied is not None and copied.text == "0.3333333333333333" and copied.what == "norm"
        await screen.press("left")
        assert "row 2 of tensors" in screen.text
        for back in ("escape", "enter"):
            await screen.press(back)
            assert isinstance(screen.app.focused, TableGrid) and "of tensors" not in screen.text
            await screen.press("enter")
            assert "row 2 of tensors" in screen.text


async def test_y_copies_the_row_with_every_digit(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        await screen.press("G")
        copied = screen.pane.copied()
        assert copied is not None and copied.text == "model.norm\t\t0.3333333333333333\t0" and copied.what == "row 3 of tensors"


async def test_a_row_that_names_a_tensor_is_a_selection(made_run: MadeRun, tmp_path: Path) -> None:
    there = "model.norm.weight"
    checkpoint = write_checkpoint(tmp_path / "tiny", {there: [1.0]})
    run = made_run({"tensors": polars.DataFrame({"name": ["no such tensor", there]})}, checkpoint=str(checkpoint))
    async with on_screen(run) as screen:
        await screen.press("down")
        found = screen.app.selections[-1]
        assert found is not None and (found.kind, found.value, found.checkpoint) == ("tensor", there, str(checkpoint))
        await screen.press("up")
        assert screen.app.selections[-1] is None


async def test_the_column_under_the_cursor_says_which_selection(made_run: MadeRun) -> None:
    run = made_run({"tensors": polars.DataFrame({"example": [7], "token": [" the"], "score": [0.5]})})
    async with on_screen(run) as screen:
        await screen.press("right")
        found = screen.app.selections[-1]
        assert found is not None and (found.kind, found.value) == ("token", " the")
        await screen.press("right")
        found = screen.app.selections[-1]
        assert found is not None and (found.kind, found.value) == ("example", "7")


HOSTILE = ["\x1b[31mred\x07", "[bold red]x[/]", "[/]", "a\u202eb", "tab\there\nand there", "名前" * 40, "x" * 10_000]


@pytest.mark.parametrize("size", [(80, 24), (20, 6)])
async def test_text_from_strangers_cannot_break_the_screen(made_run: MadeRun, size: tuple[int, int]) -> None:
    frame = polars.DataFrame({"\x1b[2J[b]" + "c" * 10_000: HOSTILE, "[/]": HOSTILE, "bytes": [b"\x00\x1b" * 100] * len(HOSTILE)})
    view = TableView(name="[b]", title="\x1b[31m[b]title", table="tensors", caption="[/caption]\x1b")
    async with on_screen(made_run({"tensors": frame}), view, size) as screen:
        for keys in (["down"] * 6, ["s"], ["/", "x"], ["enter"], ["enter"], ["down", "down"], ["escape"], ["f", "[", "enter"]):
            await screen.press(*keys)
            assert "\x1b" not in screen.text and "\x07" not in screen.text and "\u202e" not in screen.text
        assert screen.app.is_running


async def test_lists_structs_dates_and_a_wide_table_are_shown(made_run: MadeRun) -> None:
    frame = polars.DataFrame(
        {"list": [[1.0] * 100], "struct": [{"a": 1, "b": None}], "empty": [None], "yes": [True], **{f"c{at}": [at] for at in range(300)}}
    )
    async with on_screen(made_run({"tensors": frame})) as screen:
        assert "[1, 1, 1, 1, 1, 1, 1, 1, …]" in screen.text and "a 1, b unknown" in screen.text and "yes" in screen.text
        await screen.press("end")
        assert "c299" in screen.text
        copied = screen.pane.copied()
        assert copied is not None and copied.text.startswith("[1.0, 1.0")


class Slow:
    """A run whose tables come when they are let."""

    def __init__(self, run: FinishedRun) -> None:
        self.run = run
        self.let = threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self.run, name)

    def table(self, name: str) -> polars.DataFrame:
        assert self.let.wait(10)
        return self.run.table(name)


async def test_a_table_that_takes_its_time_says_that_it_is_coming(run: FinishedRun) -> None:
    slow = Slow(run)
    app = Host(slow, VIEW)  # type: ignore[arg-type]
    async with app.run_test(size=(80, 24)) as pilot:
        screen = Screen(app, pilot)
        await pilot.pause()
        assert "Computing ..." in screen.text and "Tensors" in screen.text
        slow.let.set()
        await screen.settle()
        assert "model.norm" in screen.text and "Computing" not in screen.text


async def test_sorting_is_seen_while_it_lasts(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    let = threading.Event()
    sort = table_answers.row_order
    monkeypatch.setattr(table_answers, "row_order", lambda *asked: let.wait(10) and sort(*asked))
    async with on_screen(run) as screen:
        await screen.pilot.press("s")
        assert "sorting by tensor ..." in screen.status
        let.set()
        await screen.settle()
        assert "sorting" not in screen.status and "sorted by tensor ascending" in screen.status


@pytest.mark.parametrize("raised", [ZeroDivisionError("no \x1b[2J"), MemoryError(), polars.exceptions.PanicException("no way")])
async def test_an_order_or_a_search_that_fails_ends_in_a_sentence(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def fails(*_: object) -> None:
        raise raised

    monkeypatch.setattr(table_answers, "row_order", fails)
    monkeypatch.setattr(table_answers, "matches", fails)
    said = "no \\x1b[2J" if isinstance(raised, ZeroDivisionError) else str(raised) or "MemoryError"
    async with on_screen(run) as screen:
        await screen.press("s")
        assert said in screen.status and "..." not in screen.status and screen.rows == FRAME["tensor"].to_list()
        await screen.press("f")
        await screen.type("layer = 1")
        await screen.press("enter")
        assert said in str(screen.app.query_one(".prompt-error", Static).render()) and "..." not in screen.status
        await screen.press("escape", "/")
        await screen.type("mlp")
        assert said in screen.status and "..." not in screen.status
        monkeypatch.undo()
        await screen.press("escape", "s")
        assert screen.rows == sorted(FRAME["tensor"]) and "sorted by tensor" in screen.status


async def test_a_search_that_is_given_up_is_not_said_to_go_on(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    let = threading.Event()
    search = table_answers.matches
    monkeypatch.setattr(table_answers, "matches", lambda *asked: let.wait(10) and search(*asked))
    async with on_screen(run) as screen:
        await screen.pilot.press("/", "m")
        assert "searching ..." in screen.status
        await screen.pilot.press("backspace")
        assert "searching" not in screen.status
        let.set()
        await screen.settle()
        assert screen.status == "row 0 · 4 rows"


async def test_sorting_while_a_filter_is_applied_keeps_the_filter(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    let = threading.Event()
    order = table_answers.row_order
    monkeypatch.setattr(table_answers, "row_order", lambda *asked: let.wait(10) and order(*asked))
    async with on_screen(run) as screen:
        await screen.pilot.press("f", *"layer<2", "enter")
        await screen.pilot.click(TableGrid, offset=(2, 0))
        let.set()
        await screen.settle()
        assert "sorted by tensor ascending" in screen.status and "filter layer<2" in screen.status and len(screen.rows) == 2
        assert not screen.app.query_one(TablePrompt).display


class Growing:
    """A run whose table is what it is said to be."""

    def __init__(self, run: FinishedRun, frame: polars.DataFrame) -> None:
        self.run = run
        self.frame = frame

    def __getattr__(self, name: str) -> object:
        return getattr(self.run, name)

    def table(self, name: str) -> polars.DataFrame:
        return self.frame


LATER = polars.concat(
    [FRAME, polars.DataFrame({"tensor": ["model.layers.10.mlp"], "layer": [10], "norm": [1.0], "weight_bytes": [7]})]
).with_columns(weight_bytes=polars.col("weight_bytes") + 1, new=polars.lit("late"))


async def test_a_table_that_is_read_again_stays_as_it_was_made(run: FinishedRun) -> None:
    growing = Growing(run, FRAME)
    async with on_screen(growing) as screen:  # type: ignore[arg-type]
        await screen.press("s", "s", "/", *"mlp", "enter", "f")
        await screen.type("layer != unknown")
        await screen.press("enter", "right", "right", "h", "G")
        pane, grid = screen.pane, screen.app.query_one(TableGrid)
        assert screen.rows == ["model.layers.2.mlp", "model.layers.1.attn", "model.layers.0.mlp"] and grid.cursor_row == 2
        growing.frame = LATER
        screen.app.board.reload()
        await screen.settle()
        assert screen.pane is pane and screen.app.focused is grid
        assert screen.rows == ["model.layers.10.mlp", "model.layers.2.mlp", "model.layers.1.attn", "model.layers.0.mlp"]
        assert screen.rows[grid.cursor_row] == "model.layers.0.mlp" and grid.column_name == "weight_bytes"
        for said in ("row 0", "5 rows", "4 match", "sorted by tensor descending", "3 of 3 with 'mlp'", "1 of 5 columns hidden"):
            assert said in screen.status
        assert "269.1 MB" in screen.text and "late" in screen.text
        await screen.press("enter")
        assert "269,060,553" in screen.text


async def test_a_row_in_full_shows_what_was_read_again(run: FinishedRun) -> None:
    growing = Growing(run, FRAME)
    async with on_screen(growing) as screen:  # type: ignore[arg-type]
        await screen.press("down", "enter", "down", "down", "down")
        growing.frame = LATER
        screen.app.board.reload()
        await screen.settle()
        assert "1,001" in screen.text and isinstance(screen.app.focused, RowFields) and screen.app.focused.highlighted == 3


async def test_the_rows_stay_until_those_that_were_read_again_are_in_order(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    let = threading.Event()
    let.set()
    order = table_answers.row_order
    monkeypatch.setattr(table_answers, "row_order", lambda *asked: let.wait(10) and order(*asked))
    growing = Growing(run, FRAME)
    async with on_screen(growing) as screen:  # type: ignore[arg-type]
        await screen.press("s", "f")
        let.clear()
        growing.frame = LATER
        screen.app.board.reload()
        for _ in range(100):
            await screen.pilot.pause(0.02)
            if screen.pane._newest.height == 5:
                break
        assert len(screen.rows) == 4 and "4 rows" in screen.status
        await screen.pilot.press(*"nothing=1", "enter")
        let.set()
        await screen.settle()
        await screen.settle()
        assert "no column 'nothing'" in screen.text, "the prompt is still open, with its sentence"
        assert len(screen.rows) == 5 and screen.rows[-2] == "model.layers.10.mlp" and "sorted by tensor ascending" in screen.status


async def test_a_table_that_shrank_keeps_the_cursor_on_a_row_there_is(run: FinishedRun) -> None:
    growing = Growing(run, LATER)
    async with on_screen(growing) as screen:  # type: ignore[arg-type]
        await screen.press("G")
        for frame, row in ((FRAME, 3), (FRAME.head(2), 1), (FRAME.clear(), 0), (LATER, 0)):
            growing.frame = frame.with_columns(new=polars.lit("late"))
            screen.app.board.reload()
            await screen.settle()
            assert screen.app.query_one(TableGrid).cursor_row == row and len(screen.rows) == frame.height


async def test_a_table_that_lost_a_column_in_use_is_made_anew(run: FinishedRun) -> None:
    growing = Growing(run, FRAME)
    async with on_screen(growing) as screen:  # type: ignore[arg-type]
        await screen.press("right", "s", "h")
        pane = screen.pane
        growing.frame = FRAME.drop("layer")
        screen.app.board.reload()
        await screen.settle()
        assert screen.pane is not pane and "sorted" not in screen.status and "layer " not in screen.text.splitlines()[1]
        await screen.press("f")
        await screen.type("norm > 1")
        await screen.press("enter")
        growing.frame = FRAME.drop("norm")
        screen.app.board.reload()
        await screen.settle()
        assert screen.rows == FRAME["tensor"].to_list() and "filter" not in screen.status


async def test_a_million_rows_are_sorted_filtered_and_walked_to_their_end(made_run: MadeRun) -> None:
    frame = polars.DataFrame({"at": polars.int_range(1_000_000, eager=True)}).with_columns(name=polars.format("tensor {}", "at"))
    async with on_screen(made_run({"tensors": frame})) as screen:
        assert "1,000,000 rows" in screen.status
        await screen.press("s", "s")
        await screen.press("G")
        assert "row 0 " in screen.status
        await screen.press("f")
        await screen.type("name contains 99999")
        await screen.press("enter")
        assert "1,000,000 rows · 19 match" in screen.status
        assert screen.rows[0] == "999,999"


@pytest.mark.parametrize("frame", [FRAME.clear(), polars.DataFrame()])
async def test_an_empty_table_says_so(made_run: MadeRun, frame: polars.DataFrame) -> None:
    async with on_screen(made_run({"tensors": frame})) as screen:
        assert "The table has no rows." in screen.text or "The table has no columns." in screen.text
        await screen.press("s", "f", "escape", "/", "x", "enter", "enter", "n", "G")
        assert screen.app.is_running


async def test_a_table_that_is_not_there_is_a_sentence_and_the_app_goes_on(made_run: MadeRun) -> None:
    async with on_screen(made_run({"other": FRAME})) as screen:
        assert "has no table 'tensors'; it has: other" in screen.text.replace("\n", " ").replace("  ", " ")
        assert screen.app.board.error is not None and screen.app.board.exports() is None


async def test_a_damaged_table_is_a_sentence(run: FinishedRun) -> None:
    run.tables["tensors"].write_bytes(b"PAR1 nothing")
    async with on_screen(run) as screen:
        assert "damaged" in screen.text


async def test_a_kind_of_view_from_the_future_is_a_sentence(run: FinishedRun) -> None:
    class Hologram(View):
        kind = "hologram"

    async with on_screen(run, Hologram(name="h", title="Hologram")) as screen:
        assert "which this version cannot draw" in screen.text.replace("\n", " ")


async def test_a_body_that_raises_is_a_sentence(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelscope_app.tui.views.table import TableBoard

    def broken(self: TableBoard, drawing: object) -> Static:
        raise ZeroDivisionError("[b]no")

    monkeypatch.setattr(TableBoard, "body", broken)
    async with on_screen(run) as screen:
        assert "This view cannot be drawn: [b]no" in screen.text


async def test_exports_hold_the_rows_shown_in_their_order(run: FinishedRun, tmp_path: Path) -> None:
    async with on_screen(run) as screen:
        await screen.press("f")
        await screen.type("tensor contains mlp")
        await screen.press("enter", "right", "right", "s", "s", "h")
        exports = screen.app.board.exports()
    assert exports is not None and set(exports.formats) == {"csv", "parquet", "json", "html", "svg"}
    assert exports.write("csv", tmp_path / "t.csv").read_text().splitlines() == [
        "tensor,layer,weight_bytes",
        "model.layers.2.mlp,2,12",
        "model.layers.0.mlp,0,269060552",
    ]
    assert polars.read_parquet(exports.write("parquet", tmp_path / "t.parquet")).height == 2
    shown = json.loads(exports.write("json", tmp_path / "t.json").read_text())
    assert (list(shown["columns"]), [row["tensor"] for row in shown["rows"]]) == (
        ["tensor", "layer", "weight_bytes"],
        ["model.layers.2.mlp", "model.layers.0.mlp"],
    )
    for format in ("svg", "html"):
        text = exports.write(format, tmp_path / f"t.{format}").read_text()
        assert "<svg" in text or "<html" in text
        assert "model.norm" not in text and "norm_of_it" not in text
        if format == "html":
            assert text.index("model.layers.2.mlp") < text.index("model.layers.0.mlp")
    with pytest.raises(BadInput, match="belongs to the run itself"):
        exports.write("parquet", run.tables["tensors"])


async def test_the_command_shows_the_run(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        assert screen.app.board.headless_command() == f"mscope runs show {run.folder}"


async def test_every_widget_that_takes_the_keyboard_explains_itself(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        for keys in ([], ["f"], ["escape", "/"], ["escape", "enter"]):
            await screen.press(*keys)
            focused = screen.app.focused
            assert focused is not None and focused.explanation().text  # type: ignore[attr-defined]
        assert isinstance(screen.app.board, ViewBoard) and screen.app.board.explanation().title == "Tensors"


async def test_the_prompt_is_not_there_until_it_is_asked_for(run: FinishedRun) -> None:
    async with on_screen(run) as screen:
        assert not screen.app.query_one(TablePrompt).display


@pytest.mark.parametrize(
    ("typed", "rows"),
    [
        ("layer > 0", [1, 2]),
        ("layer>=1 and layer<2", [1]),
        ("layer != 1", [0, 2]),
        ("norm = unknown", [1]),
        ("norm != unknown", [0, 2, 3]),
        ("norm < 1e9", [0, 2, 3]),
        ("weight_bytes >= 1,000", [0, 1]),
        (r"tensor ~ layers\.[01]\.", [0, 1]),
        ("tensor = 'model.norm'", [3]),
        ('"tensor" contains "NORM"', [3]),
        ("layer contains 2", [2]),
    ],
)
def test_a_filter_keeps_what_it_says(typed: str, rows: list[int]) -> None:
    assert FRAME.with_row_index("at").filter(condition(typed, FRAME.schema))["at"].to_list() == rows


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("", "begins with a column"),
        ("layer", "comes one of"),
        ("layer >", "value is missing"),
        ("layer > many", "'many' is none"),
        ("layer > 1 or norm > 1", "is none"),
        ("tensor ~ (", "no regular expression"),
        ("norm contains 1", "holds no text"),
        ("laier > 1", "did you mean 'layer'"),
        ("layer = 1 and", "is none"),
        ("tensor = 'a' 'b'", "one too many"),
        ("__import__('os') = 1", "no column"),
        ("norm > 1e999", "too large"),
        ("x" * 2000, "at most"),
    ],
)
def test_a_wrong_filter_is_a_sentence(typed: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        condition(typed, FRAME.schema)
