"""The mouse works everywhere, and is needed nowhere: clicks go where a person sees the words."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import polars
import pytest
from raw_terminal import raw_terminal
from rich.cells import cell_len
from textual import events
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import DataTable, Input, TabbedContent, Tabs
from tui_waiting import all_settled

from modelscope_app.api import TableView
from modelscope_app.checkpoints.samples import samples_folder
from modelscope_app.jobs.answers import JobInfo
from modelscope_app.runs.folder import RunFolder
from modelscope_app.testing.temporary_plugins import TemporaryPlugins
from modelscope_app.tui.app import MscopeApp
from modelscope_app.tui.checkpoint.tensor_detail import TensorDetail
from modelscope_app.tui.checkpoint.tensor_tree import TensorTree
from modelscope_app.tui.dialogs.export import ExportScreen
from modelscope_app.tui.dialogs.help import HelpScreen
from modelscope_app.tui.dialogs.question import Question
from modelscope_app.tui.forms.fields import Choice, Field, Flag
from modelscope_app.tui.forms.screen import FormScreen
from modelscope_app.tui.jobs.screen import JobsScreen
from modelscope_app.tui.jobs.snapshot import JobsSnapshot
from modelscope_app.tui.library.recent import remember
from modelscope_app.tui.library.screen import LibraryScreen
from modelscope_app.tui.messages import JobCancelled
from modelscope_app.tui.run.screen import RunScreen
from modelscope_app.tui.views.row_detail import RowDetail, RowFields
from modelscope_app.tui.views.table_grid import TableGrid
from modelscope_app.tui.views.table_pane import TablePane
from modelscope_app.tui.workspace import WorkspaceScreen

pytest_plugins = ["modelscope_app.testing"]

FOLDER = samples_folder()
assert FOLDER is not None
SAMPLE = FOLDER / "digits-mlp"
SIZE = (110, 36)


class Mouse:
    """A hand on the mouse, and eyes on the screen."""

    def __init__(self, pilot: Pilot[Any]) -> None:
        self.pilot = pilot
        self.app = pilot.app

    @property
    def lines(self) -> list[str]:
        return ["".join(segment.text for segment in strip) for strip in self.app.screen._compositor.render_strips()]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def place_of(self, words: str, at: int = 0) -> tuple[int, int]:
        """Column and line where these words stand, the one `at` if they stand in several lines."""
        found = [(cell_len(line[: line.index(words)]), number) for number, line in enumerate(self.lines) if words in line]
        assert len(found) > at, f"{words!r} is not on the screen:\n{self.text}"
        return found[at]

    async def click(self, words: str, at: int = 0, right: int = 0) -> None:
        """Click on words, `right` columns into them."""
        column, line = self.place_of(words, at)
        await self.pilot.click(offset=(column + right, line))
        await all_settled(self.pilot)

    async def double_click(self, words: str) -> None:
        """Twice on the same words."""
        column, line = self.place_of(words)
        await self.pilot.double_click(offset=(column, line))
        await all_settled(self.pilot)

    async def until(self, holds: Callable[[], object]) -> None:
        """Until what was clicked has done what it does."""
        for _ in range(200):
            if holds():
                return
            await self.pilot.pause(0.02)
        raise AssertionError(self.text)

    async def wheel(self, widget: Widget, turn: type[events.MouseScrollDown | events.MouseScrollUp], times: int = 3) -> None:
        """Turn the wheel over a widget."""
        column, line = widget.region.x + 1, widget.region.y + 1
        for _ in range(times):
            self.app.screen._forward_event(turn(None, column, line, 0, 0, 0, False, False, False, screen_x=column, screen_y=line))
            await self.pilot.pause()
        await all_settled(self.pilot)


Scene = Callable[[Mouse], Awaitable[None]]


async def play(app: MscopeApp, scene: Scene, size: tuple[int, int] = SIZE) -> None:
    async with app.run_test(size=size) as pilot:
        await all_settled(pilot)
        await scene(Mouse(pilot))
        assert app.is_running


async def test_the_library_is_gone_through_by_clicks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remember(str(SAMPLE))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "copy").symlink_to(SAMPLE)
    monkeypatch.chdir(tmp_path)

    async def scene(mouse: Mouse) -> None:
        assert isinstance(mouse.app.screen, LibraryScreen)
        await mouse.click("2 Folders")
        await mouse.click("models/")
        await mouse.click("copy/")
        assert isinstance(mouse.app.screen, WorkspaceScreen) and mouse.app.screen.checkpoint_path == str(tmp_path / "models" / "copy")
        await mouse.pilot.press("escape")
        await all_settled(mouse.pilot)
        await mouse.click("3 Runs")
        assert "No runs yet" in mouse.text
        await mouse.click("1 Recent")
        await mouse.click("digits-mlp  ", 1)
        assert isinstance(mouse.app.screen, WorkspaceScreen) and mouse.app.screen.checkpoint_path == str(SAMPLE)

    await play(MscopeApp(None), scene)


async def test_tabs_and_tensors_of_a_checkpoint_are_clicked() -> None:
    async def scene(mouse: Mouse) -> None:
        tabs = mouse.app.screen.query_one(TabbedContent)
        for title, page in (("3 Analyses", "analyses"), ("4 Runs", "runs"), ("2 Tensor", "tensor"), ("1 Overview", "overview")):
            await mouse.click(title)
            assert tabs.active == page
        assert "layers.1" not in mouse.text
        tree = mouse.app.screen.query_one(TensorTree)
        await mouse.click("layers.*")
        await mouse.click("bias ")
        await mouse.click("layers.1 ")
        assert tree.tensor is not None and tree.tensor.name == "layers.1.bias"
        assert tabs.active == "tensor" and mouse.app.screen.query_one(TensorDetail)

    await play(MscopeApp(str(SAMPLE)), scene)


@pytest.fixture
def table_run(made_run: Callable[..., RunFolder]) -> RunFolder:
    frame = polars.DataFrame({"tensor": [f"layers.{(at * 37) % 100}.weight" for at in range(100)], "norm": [at * 0.5 for at in range(100)]})
    return made_run({"tensors": frame}, [TableView(name="tensors", title="Tensors", table="tensors")])


async def test_a_table_is_sorted_by_its_header_and_read_by_its_cells(table_run: RunFolder) -> None:
    async def scene(mouse: Mouse) -> None:
        await mouse.click("1 Tensors")
        pane, grid = mouse.app.screen.query_one(TablePane), mouse.app.screen.query_one(TableGrid)
        await mouse.click("norm")
        assert "sorted by norm ascending" in mouse.text
        await mouse.click("norm ▲")
        assert "sorted by norm descending" in mouse.text and grid.rows.cell_text(0, 1) == "49.5"
        await mouse.click("norm ▼")
        assert "sorted by" not in mouse.text
        await mouse.click("layers.74.weight")
        assert mouse.app.focused is grid and (grid.cursor_row, grid.cursor_column) == (2, 0)
        assert not pane.has_class("-in-full")
        await mouse.double_click("layers.74.weight")
        assert pane.has_class("-in-full") and "row 2 of tensors" in mouse.text
        await mouse.click("norm  ")
        copied = mouse.app.screen.query_one(RowFields).copied()
        assert copied is not None and copied.what == "norm", "a click goes to a field, and does not leave the row"
        await mouse.click("Back to the table")
        assert not pane.has_class("-in-full") and mouse.app.focused is grid
        await mouse.wheel(grid, events.MouseScrollDown)
        assert "layers.0.weight " not in mouse.text
        await mouse.wheel(grid, events.MouseScrollUp)
        assert "layers.0.weight " in mouse.text

    await play(MscopeApp(str(table_run.folder)), scene, (80, 24))


async def test_keys_mean_the_page_whose_tab_was_clicked(table_run: RunFolder) -> None:
    async def scene(mouse: Mouse) -> None:
        await mouse.click("2 About")
        await mouse.pilot.press("e")
        await all_settled(mouse.pilot)
        assert not isinstance(mouse.app.screen, ExportScreen)
        await mouse.click("1 Tensors")
        assert isinstance(mouse.app.focused, Tabs)
        await mouse.pilot.press("e")
        await all_settled(mouse.pilot)
        assert isinstance(mouse.app.screen, ExportScreen)

    await play(MscopeApp(str(table_run.folder)), scene)


async def test_a_row_in_full_is_left_by_a_click_on_a_row_beside_it(table_run: RunFolder) -> None:
    async def scene(mouse: Mouse) -> None:
        await mouse.click("1 Tensors")
        await mouse.double_click("layers.37.weight")
        assert "row 1 of tensors" in mouse.text and mouse.app.screen.query_one(RowDetail).display
        await mouse.click("layers.11.weight")
        assert "row 3 of tensors" in mouse.text

    await play(MscopeApp(str(table_run.folder)), scene, (130, 30))


async def test_a_cell_that_is_cut_is_shown_whole_under_the_mouse(made_run: Callable[..., RunFolder]) -> None:
    name = "model." + "layers." * 20 + "weight"
    run = made_run({"tensors": polars.DataFrame({"tensor": [name]})}, [TableView(name="tensors", title="Tensors", table="tensors")])

    async def scene(mouse: Mouse) -> None:
        grid = mouse.app.screen.query_one(TableGrid)
        await mouse.pilot.hover(TableGrid, offset=(5, 1))
        await mouse.until(lambda: grid.tooltip is not None)
        assert str(grid.tooltip) == name

    await play(MscopeApp(str(run.folder)), scene, (80, 24))


FORMED = """
from typing import Literal
from pydantic import BaseModel, Field
from modelscope_app.api import Analysis, Checkpoints, Selection, hookimpl
MODELSCOPE_API = (1, 1)
class Params(BaseModel):
    rows: int = Field(4, ge=1, description="how many rows")
    how: Literal["fast", "slow"] = Field("fast", description="which way")
    flag: bool = Field(True, description="on or off")
    about: Selection["tensor"] = Field("", description="which tensor")
@hookimpl
def modelscope_analyses():
    return [Analysis(name="form", title="A form", summary="What?", params=Params, run="nowhere:run", checkpoints=Checkpoints(0, 0))]
"""


async def test_a_form_is_filled_and_run_by_clicks(temporary_plugins: TemporaryPlugins, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary_plugins.write("formed", FORMED)
    asked: list[object] = []
    monkeypatch.setattr(MscopeApp, "on_job_asked", lambda self, event: asked.append(event.params))

    async def scene(mouse: Mouse) -> None:
        await mouse.click("3 Analyses")
        await mouse.until(lambda: "formed.form" in mouse.text)
        await mouse.click("formed.form")
        form = mouse.app.screen
        assert isinstance(form, FormScreen)
        fields = {field.entry.key: field.control for field in form.query(Field)}
        await mouse.click("X▌ yes")
        flag = fields["flag"]
        assert isinstance(flag, Flag) and flag.value is False
        await mouse.click("fast")
        how = fields["how"]
        assert isinstance(how, Choice) and how.expanded
        await mouse.click("slow")
        assert not how.expanded and how.value == "slow"
        await mouse.click("where and how")
        assert "  seed" in mouse.text
        await mouse.click("rows")
        rows = fields["rows"]
        assert isinstance(rows, Input)
        await mouse.pilot.click(rows)
        assert mouse.app.focused is rows
        await mouse.pilot.press("end", "2")
        await all_settled(mouse.pilot)
        await mouse.click("Run")
        await mouse.until(lambda: asked)

    await play(MscopeApp(str(SAMPLE)), scene)
    assert asked == [{"rows": 42, "how": "slow", "flag": False, "about": ""}]


@pytest.fixture
def jobs(made_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch) -> JobsSnapshot:
    """Two jobs that the service is said to have."""
    run = made_run(facts={"tensors": 4})
    snapshot = JobsSnapshot(
        True,
        None,
        (
            JobInfo("20260102-1", "/runs/1", "weights.stats", "running", device="cpu", stage="moments", done=50, total=200, unit="tensors"),
            JobInfo(run.id, str(run.folder), "weights.diff", "done"),
        ),
    )

    async def follow(tell: Callable[[JobsSnapshot], object], *_: object) -> None:
        tell(snapshot)
        await asyncio.Event().wait()

    monkeypatch.setattr("modelscope_app.tui.app.follow", follow)
    return snapshot


async def test_jobs_are_clicked_in_the_line_at_the_bottom_and_on_their_screen(jobs: JobsSnapshot) -> None:
    async def scene(mouse: Mouse) -> None:
        await mouse.until(lambda: "> running" in mouse.text)
        await mouse.click("> running")
        assert isinstance(mouse.app.screen, JobsScreen)
        await mouse.click("Devices and models")
        assert mouse.app.screen.query_one(TabbedContent).active == "devices-pane"
        await mouse.click("Cancel job")
        assert isinstance(mouse.app.screen, Question)
        await mouse.click("Leave it running")
        assert isinstance(mouse.app.screen, JobsScreen)
        table = mouse.app.screen.query_one(DataTable)
        await mouse.click("weights.diff")
        assert table.cursor_row == 1
        await mouse.click("weights.diff")
        assert isinstance(mouse.app.screen, RunScreen) and mouse.app.screen.folder == Path(jobs.jobs[1].folder)

    await play(MscopeApp(str(SAMPLE)), scene)


async def test_keys_in_the_footer_are_clicked() -> None:
    async def scene(mouse: Mouse) -> None:
        await mouse.click("? Help")
        assert isinstance(mouse.app.screen, HelpScreen)
        await mouse.wheel(mouse.app.screen.query_one("VerticalScroll"), events.MouseScrollDown)
        await mouse.pilot.press("escape")
        await mouse.click("J Jobs")
        assert isinstance(mouse.app.screen, JobsScreen)
        await mouse.click("esc Back")
        assert isinstance(mouse.app.screen, WorkspaceScreen)
        await mouse.click("L Library")
        assert isinstance(mouse.app.screen, LibraryScreen)

    await play(MscopeApp(str(SAMPLE)), scene)


@pytest.mark.parametrize(("answer", "cancels"), [("y  Cancel the job", True), ("n  Leave it running", False)])
async def test_answers_to_a_question_are_clicked(monkeypatch: pytest.MonkeyPatch, answer: str, cancels: bool) -> None:
    asked: list[object] = []
    monkeypatch.setattr(MscopeApp, "ask_service", lambda self, question: asked.append(question))

    async def scene(mouse: Mouse) -> None:
        mouse.app.post_message(JobCancelled("20260102-1", "weights.stats"))
        await mouse.until(lambda: isinstance(mouse.app.screen, Question))
        await mouse.click(answer)
        assert isinstance(mouse.app.screen, WorkspaceScreen) and bool(asked) is cancels

    await play(MscopeApp(str(SAMPLE)), scene)


async def test_formats_and_the_palette_are_clicked(table_run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(table_run.folder.parent)

    async def scene(mouse: Mouse) -> None:
        await mouse.click("1 Tensors")
        await mouse.click("layers.37.weight")
        await mouse.pilot.press("e")
        await all_settled(mouse.pilot)
        assert isinstance(mouse.app.screen, ExportScreen)
        await mouse.click("parquet")
        await mouse.until(lambda: isinstance(mouse.app.screen, RunScreen))
        assert len(list(table_run.folder.parent.glob("*.parquet"))) == 1
        await mouse.pilot.press("ctrl+p")
        await mouse.until(lambda: "Jobs: queue, logs, memory" in mouse.text)
        await mouse.click("Jobs: queue, logs, memory")
        await mouse.until(lambda: isinstance(mouse.app.screen, JobsScreen))

    await play(MscopeApp(str(table_run.folder)), scene)


MOUSE_ON = b"\x1b[?1003h"


@pytest.mark.parametrize("mouse", [True, False])
def test_without_the_mouse_the_terminal_keeps_it_and_keys_reach_everything(mouse: bool) -> None:
    folder = Path(os.environ["MSCOPE_CONFIG_DIR"])
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f"[tui]\nmouse = {str(mouse).lower()}\n")
    with raw_terminal([sys.executable, "-m", "modelscope_app.cli.start", str(SAMPLE)], {}) as terminal:
        terminal.wait_for(b"4,810 in 4 tensors")
        assert (MOUSE_ON in terminal.written) is mouse
        terminal.press(b"\x1b[<0;5;5M\x1b[<0;5;5m")  # a click, as of a terminal that was left reporting them
        for keys, shown in (
            (b"3", b"Curvature for influence"),
            (b"\x1b[F\x1b[A\x1b[A", b"Weight statistics"),
            (b"\r", b"where and how"),
            (b"\x1b", b"1 Overview"),
            (b"J", b"Devices and models"),
            (b"?", b"Every job that was given"),
            (b"q", b"it starts with the first job"),
            (b"L", b"3 Runs"),
        ):
            terminal.press_and_wait(keys, shown)
        terminal.press_and_wait(b"\x11", b"\x1b[?1049l")
        assert (MOUSE_ON in terminal.written) is mouse
