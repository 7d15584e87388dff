"""A run on the screen: its tabs, what was asked, its log, a run that goes on, one that cannot be read, panels, and two runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import polars
import pytest
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import DataTable, Static, TabbedContent, TabPane
from textual.widgets._footer import FooterKey
from tui.recording_host import hosted
from tui.slow_disk import SlowCalls, until
from tui_waiting import all_settled

from modelscope_app.api import BadInput, BarsView, FactsView, TableView
from modelscope_app.jobs.answers import JobInfo
from modelscope_app.rendering.drawings import FactsDrawing
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.status import RunLock, Status, write_status
from modelscope_app.testing.temporary_plugins import TemporaryPlugins
from modelscope_app.tui.app import MscopeApp
from modelscope_app.tui.fence import Fence
from modelscope_app.tui.jobs.snapshot import JobsSnapshot
from modelscope_app.tui.run.about import ReadPage, about, log_text
from modelscope_app.tui.run.compare import CompareScreen, difference_rows
from modelscope_app.tui.run.screen import RunScreen
from modelscope_app.tui.views.board import ViewBoard

pytest_plugins = ["modelscope_app.testing"]

Made = Callable[..., RunFolder]
TENSORS = polars.DataFrame({"tensor": ["a.weight", "b.weight"], "norm": [1.5, 2.5]})
VIEWS = [
    FactsView(name="facts", title="At a glance"),
    BarsView(name="bars", title="Norms", table="tensors", label="tensor", value="norm"),
    TableView(name="tensors", title="All tensors", table="tensors"),
]


async def settled(pilot: Pilot[None]) -> RunScreen:
    """The run screen once everything that was read is shown."""
    await all_settled(pilot)
    screen = pilot.app.screen
    assert isinstance(screen, RunScreen)
    return screen


def titles(screen: RunScreen) -> list[str]:
    """Of its tabs."""
    return [screen.query_one(TabbedContent).get_tab(pane).label_text for pane in screen.query(TabPane)]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_each_view_has_a_tab_then_other_tables_then_what_was_asked_and_the_log(made_run: Made, size: tuple[int, int]) -> None:
    run = made_run({"tensors": TENSORS, "rest": TENSORS}, VIEWS, {"tensors": 2})
    app = MscopeApp(str(run.folder))
    async with app.run_test(size=size) as pilot:
        screen = await settled(pilot)
        assert titles(screen) == ["1 At a glance", "2 Norms", "3 All tensors", "4 Table rest", "5 About", "6 Log"]
        assert str(screen.query_one("#head", Static).render()).startswith("+ done  weights.stats  on tiny")
        assert len(screen.query(ViewBoard)) == 1, "a tab is made when it is looked at"
        await pilot.press("3")
        await settled(pilot)
        board = screen.query_one("#view-2 ViewBoard", ViewBoard)
        assert board.error is None and board.drawing is not None
        await pilot.press("5")
        await settled(pilot)
        said = str(screen.query_one("#about Static", Static).render())
        assert "mscope run weights.stats /models/tiny" in said and "fingerprint" in said


async def test_facts_without_a_view_of_theirs_come_first(made_run: Made) -> None:
    app = MscopeApp(str(made_run(facts={"answer": 42}).folder))
    async with app.run_test() as pilot:
        assert titles(await settled(pilot)) == ["1 Facts", "2 About", "3 Log"]


async def test_a_failed_run_says_why(made_run: Made) -> None:
    run = made_run(state="failed", error="the disk is full")
    app = MscopeApp(str(run.folder))
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        assert "! failed" in str(screen.query_one("#head", Static).render())
        assert "the disk is full" in str(screen.query_one("#about Static", Static).render())


async def test_a_view_that_does_not_fit_its_table_is_a_sentence_and_the_others_are_shown(made_run: Made) -> None:
    broken = BarsView(name="broken", title="Broken", table="nowhere", label="a", value="b")
    app = MscopeApp(str(made_run({"tensors": TENSORS}, [broken, *VIEWS]).folder))
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        assert "no table 'nowhere'" in (screen.query_one("#view-0 ViewBoard", ViewBoard).error or "")
        await pilot.press("3")
        await settled(pilot)
        assert screen.query_one("#view-2 ViewBoard", ViewBoard).error is None


async def test_a_folder_that_cannot_be_read_is_a_sentence(made_run: Made) -> None:
    run = made_run()
    (run.folder / "job.json").write_text("{")
    app = MscopeApp(str(run.folder))
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        assert "not readable as JSON" in str(screen.query_one("#said", Static).render())
        await pilot.press("y", "c", "e", "R", "1", "question_mark", "escape")
        assert app.is_running


async def test_a_run_that_goes_on_is_followed_to_its_end(made_run: Made) -> None:
    run = made_run(state="running")
    lock = RunLock(run.folder)
    app = MscopeApp(str(run.folder))
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        assert titles(screen) == ["1 About", "2 Log"]
        assert "> running" in str(screen.query_one("#head", Static).render())
        run.write_table("tensors", TENSORS)
        for view in VIEWS:
            run.write_view(view)
        (run.folder / "log.txt").write_text("printed")
        write_status(run.folder, Status(state="done", started=1.0, finished=2.0))
        lock.release()
        screen._look()
        await settled(pilot)
        assert "+ done" in str(screen.query_one("#head", Static).render())
        assert {"At a glance", "Norms", "All tensors"} <= {title.partition(" ")[2] for title in titles(screen)}


@pytest.mark.parametrize(
    ("state", "is_active", "keys"),
    [
        ("done", False, set()),
        ("cancelled", False, {"ctrl+r"}),
        ("failed", False, {"ctrl+r"}),
        ("lost", True, {"x"}),  # it was resumed, and has not begun yet
    ],
)
async def test_a_run_is_cancelled_and_resumed_from_its_page_when_it_can_be(
    made_run: Made, state: str, is_active: bool, keys: set[str]
) -> None:
    run = made_run(state=state)
    app = MscopeApp(str(run.folder))
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        if is_active:
            job = JobInfo(run.id, str(run.folder), run.analysis, "queued", position=0)
            screen.snapshot = JobsSnapshot(True, None, (job,))
            await pilot.pause()
        assert keys == {"ctrl+r", "x"} & set(screen.active_bindings)


async def test_a_run_that_was_cancelled_offers_to_resume_it(made_run: Made) -> None:
    run = made_run(state="running")
    lock = RunLock(run.folder)
    app = MscopeApp(str(run.folder))
    async with app.run_test(size=(120, 30)) as pilot:
        screen = await settled(pilot)
        write_status(run.folder, Status(state="cancelled", started=1.0, finished=2.0))
        lock.release()
        screen._look()
        await settled(pilot)
        assert "Resume" in [key.description for key in screen.query(FooterKey)]


def said_by(screen: RunScreen, tab: str) -> str:
    """The text of a page."""
    return str(screen.query_one(f"#{tab} Static", Static).render())


async def test_what_was_asked_and_the_log_are_read_in_threads(made_run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[threading.Thread] = []

    def noted(read: Callable[..., object]) -> Callable[..., object]:
        def reads(*given: object) -> object:
            readers.append(threading.current_thread())
            return read(*given)

        return reads

    monkeypatch.setattr("modelscope_app.tui.run.about.about", noted(about))
    monkeypatch.setattr("modelscope_app.tui.run.about.log_text", noted(log_text))
    app = MscopeApp(str(made_run().folder))
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        await pilot.press("2")
        await settled(pilot)
        for page in screen.query(ReadPage):
            page.read_again()
        await settled(pilot)
        assert said_by(screen, "log") == "Nothing was printed."
    assert len(readers) == 4
    assert threading.main_thread() not in readers


async def test_a_log_that_grows_stays_where_it_was_scrolled_to_and_is_drawn_only_when_it_grew(made_run: Made) -> None:
    run = made_run()
    log = run.folder / "log.txt"
    log.write_text("\n".join(f"line {number}" for number in range(300)))
    app = MscopeApp(str(run.folder))
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        await pilot.press("2")
        await settled(pilot)
        page = screen.query_one("#log ReadPage", ReadPage)
        page.scroll_to(y=100, animate=False)
        await settled(pilot)
        drawn = page.query_one(Static).content
        page.read_again()
        await settled(pilot)
        assert page.query_one(Static).content is drawn
        with log.open("a") as stream:
            stream.write("\nthe last line")
        page.read_again()
        await settled(pilot)
        assert said_by(screen, "log").endswith("the last line")
        assert page.scroll_y == 100


async def test_a_page_that_cannot_be_read_says_why_in_its_place(made_run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: object) -> None:
        raise ValueError("too odd \x1b[2J")

    monkeypatch.setattr("modelscope_app.tui.run.about.about", breaks)
    run = made_run()
    (run.folder / "log.txt").mkdir()
    app = MscopeApp(str(run.folder))
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        assert said_by(screen, "about") == "This cannot be read: too odd \\x1b[2J"
        await pilot.press("2")
        await settled(pilot)
        assert said_by(screen, "log") == f"{run.folder / 'log.txt'}: Is a directory"


async def test_a_page_on_a_slow_disk_is_read_once_more_and_no_oftener(made_run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowCalls(log_text)
    monkeypatch.setattr("modelscope_app.tui.run.about.log_text", slow)
    run = made_run()
    app = MscopeApp(str(run.folder))
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        await pilot.press("2")
        await until(pilot, lambda: slow.started)
        assert said_by(screen, "log") == "Reading ..."
        for _ in range(3):
            screen.query_one("#log ReadPage", ReadPage).read_again()
        (run.folder / "log.txt").write_text("printed")
        slow.finish.set()
        await settled(pilot)
        assert said_by(screen, "log") == "printed"
        assert slow.started == 2


HOSTILE = "\x1b[31mred\x1b[0m[bold]x[/bold]" + "n" * 10_000


async def test_hostile_text_is_shown_and_obeyed_nowhere(made_run: Made) -> None:
    view = TableView(name="tensors", title=HOSTILE, table="tensors", caption=HOSTILE)
    table = polars.DataFrame({"tensor": [HOSTILE], "norm": [1.0]})
    facts = {HOSTILE[:50]: HOSTILE}
    run = made_run({"tensors": table}, [view], facts, state="failed", error=HOSTILE, checkpoint="/models/" + HOSTILE[:100])
    (run.folder / "log.txt").write_text(HOSTILE)
    app = MscopeApp(str(run.folder))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await settled(pilot)
        for number in "1234":
            await pilot.press(number)
            await settled(pilot)
            strips = [segment.text for strip in screen._compositor.render_strips() for segment in strip]
            assert "\x1b" not in "".join(strips)
        assert "[bold]x[/bold]" in str(screen.query_one("#log Static", Static).render())


PANEL = """
from textual.widgets import Static
class Timeline(Static):
    def __init__(self, run):
        super().__init__(f"timeline of {run.id}")
class Broken(Static):
    def __init__(self, run):
        raise ValueError("no timeline today")
"""
PLUGIN = """
from modelscope_app.api import Panel, hookimpl
MODELSCOPE_API = (1, 1)
@hookimpl
def modelscope_panels():
    return [
        Panel(name="timeline", title="Timeline", widget="weights_panel_widgets:Timeline", analyses=("stats",)),
        Panel(name="broken", title="Broken", widget="weights_panel_widgets:Broken"),
        Panel(name="other", title="Other", widget="weights_panel_widgets:Timeline", analyses=("diff",)),
    ]
"""


async def test_panels_of_the_runs_plugin_are_tabs_and_a_broken_one_breaks_nothing(
    made_run: Made, temporary_plugins: TemporaryPlugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights_panel_widgets.py").write_text(PANEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    temporary_plugins.write("lines", PLUGIN)
    app = MscopeApp(str(made_run(facts={"answer": 42}, analysis="lines.stats").folder))
    async with app.run_test() as pilot:
        screen = await settled(pilot)
        assert titles(screen) == ["1 Facts", "2 About", "3 Log", "4 Timeline", "5 Broken"]
        await pilot.press("4")
        await settled(pilot)
        assert "timeline of" in str(screen.query_one("#panel-0 Static", Static).render())
        await pilot.press("5")
        await settled(pilot)
        fence = screen.query_one("#panel-1 Fence", Fence)
        assert "The panel lines.broken failed" in str(fence.query_one(".fallen", Static).render())


def test_differences_of_facts_are_signed_and_unknown_ones_are_not_made_up() -> None:
    left = {"a": 1, "b": {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}, "c": None}
    rows = difference_rows(left, {"a": 3, "b": {"value": 0.25}, "d": True})
    assert rows == [
        ("a", "1", "3", "+2"),
        ("b", "0.5 [0.4, 0.6]", "0.25", "-0.25"),
        ("c", "unknown", "not there", ""),
        ("d", "not there", "yes", ""),
    ]


@pytest.mark.parametrize("size", [(80, 24), (140, 40)])
async def test_two_runs_stand_side_by_side_or_one_above_the_other(made_run: Made, size: tuple[int, int]) -> None:
    left = made_run({"tensors": TENSORS}, VIEWS, {"tensors": 2})
    right = made_run({"tensors": TENSORS}, VIEWS[:2], {"tensors": 3}, id="20260102-030406-weights-stats-0000")
    app = MscopeApp(str(left.folder))
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        await app.push_screen(CompareScreen(left.folder, right.folder))
        await all_settled(pilot)
        table = app.screen.query_one(DataTable)
        assert [cell.plain for cell in table.get_row_at(0)] == ["tensors", "2", "3", "+1"]
        assert table.ordered_columns[0].content_width >= len("tensors"), "no cell is cut to the width of its heading"
        await pilot.press("2")
        await all_settled(pilot)
        boards = list(app.screen.query(ViewBoard))
        assert [board.finished_run.id for board in boards] == [left.id, right.id]
        assert (boards[0].region.x == boards[1].region.x) is (size[0] < 100)


class CountingBoard(ViewBoard):
    """Draws how often it was computed; `drawing_of` stands in for what reads the run."""

    keeps = True
    computations = 0

    def drawing_of(self, number: int) -> FactsDrawing:
        return FactsDrawing((), (f"note {number}",))

    def computed(self) -> FactsDrawing:
        self.computations += 1
        return self.drawing_of(self.computations)

    def body(self, drawing: FactsDrawing) -> Widget:
        return Static(f"drawn {drawing.notes[0]}", classes="body")

    def renewed(self, body: Widget, drawing: FactsDrawing) -> bool:
        if self.keeps:
            body.update(f"renewed {drawing.notes[0]}")
        return self.keeps


async def reloaded(board: ViewBoard, pilot: Pilot[None]) -> Widget:
    """What shows the drawing then."""
    board.reload()
    await all_settled(pilot)
    return board.query_one(".view-body > *")


@pytest.fixture
def counting(made_run: Made) -> CountingBoard:
    return CountingBoard(made_run(), VIEWS[0])


async def test_a_picture_that_can_be_renewed_is_kept_when_its_run_has_gone_on(counting: CountingBoard) -> None:
    async with hosted(counting) as (_, pilot):
        first = counting.query_one(".body", Static)
        assert str(first.render()) == "drawn note 1"
        assert await reloaded(counting, pilot) is first
        assert str(first.render()) == "renewed note 2"
        assert str(counting.query_one(".view-notes", Static).render()) == "note 2"


async def test_a_picture_that_cannot_be_renewed_is_replaced(counting: CountingBoard) -> None:
    counting.keeps = False
    async with hosted(counting) as (_, pilot):
        first = counting.query_one(".body", Static)
        second = await reloaded(counting, pilot)
        assert second is not first
        assert isinstance(second, Static) and str(second.render()) == "drawn note 2"


async def test_a_sentence_in_the_place_of_a_picture_is_not_renewed(counting: CountingBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> FactsDrawing:
        raise BadInput("no such table")

    async with hosted(counting) as (_, pilot):
        with monkeypatch.context() as broken:
            broken.setattr(counting, "drawing_of", fails)
            sentence = await reloaded(counting, pilot)
            assert isinstance(sentence, Static) and str(sentence.render()) == counting.error == "no such table"
        picture = await reloaded(counting, pilot)
        assert isinstance(picture, Static) and str(picture.render()) == "drawn note 3"
        assert counting.error is None


async def test_a_picture_that_fails_to_be_renewed_is_a_sentence(counting: CountingBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> bool:
        raise ValueError("no room")

    async with hosted(counting) as (_, pilot):
        monkeypatch.setattr(counting, "renewed", fails)
        await reloaded(counting, pilot)
        assert counting.error == "This view cannot be drawn: no room"


async def test_a_drawing_that_comes_after_a_newer_one_is_dropped(counting: CountingBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hosted(counting) as (app, pilot):
        slow = SlowCalls(counting.drawing_of, lambda number: number == 2)
        monkeypatch.setattr(counting, "drawing_of", slow)
        counting.reload()
        await until(pilot, lambda: slow.started)
        counting.reload()
        await until(pilot, lambda: "renewed note 3" in app.text())
        slow.finish.set()
        await all_settled(pilot)
        assert "renewed note 3" in app.text()
