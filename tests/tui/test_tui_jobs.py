"""The jobs bar and the jobs screen: what the service says, read without colour, and the keys that act on jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from textual.app import App
from textual.message import Message
from textual.widgets import DataTable, Static

from modelscope_app.jobs.answers import DeviceInfo, JobInfo, ResidentModel, WorkerInfo
from modelscope_app.runs.folder import RunFolder
from modelscope_app.tui.jobs.bar import JobsBar, jobs_line
from modelscope_app.tui.jobs.screen import JobsScreen, devices_text
from modelscope_app.tui.jobs.snapshot import JobsSnapshot, Pace, _each_once, follow
from modelscope_app.tui.messages import AnalysisChosen, JobCancelled, ModelsUnloaded, RunOpened, RunResumed

RUNNING = JobInfo("20260102-1", "/runs/1", "weights.stats", "running", device="cpu", stage="moments", done=50, total=200, unit="tensors")
QUEUED = JobInfo("20260102-2", "/runs/2", "weights.diff", "queued", position=0)
WAITING = JobInfo("20260102-3", "/runs/3", "probes.big", "waiting", waiting_for="waits for 3.2 GB on cuda:0")
FAILED = JobInfo("20260102-4", "/runs/4", "weights.diff", "failed", error="the disk is full")
DEVICE = DeviceInfo("cpu", "a processor", 16_000_000_000, None, 269_000_000, (WorkerInfo(1, "/usr/bin/python3"),), ("20260102-1",), 1)
MODEL = ResidentModel("/models/SmolLM2", "f1", "cpu", "float32", 269_000_000, 1000.0, 1100.0)
BUSY = JobsSnapshot(True, None, (RUNNING, QUEUED, WAITING, FAILED), (DEVICE,), (MODEL,), (("20260102-1", 5.0),))


class Host(App[None]):
    """Shows the jobs screen and keeps what it asks for."""

    def __init__(self, snapshot: JobsSnapshot) -> None:
        super().__init__()
        self.jobs_screen = JobsScreen()
        self.jobs_screen.set_reactive(JobsScreen.snapshot, snapshot)
        self.asked: list[Message] = []

    def on_mount(self) -> None:
        self.push_screen(self.jobs_screen)

    def on_job_cancelled(self, event: JobCancelled) -> None:
        self.asked.append(event)

    def on_models_unloaded(self, event: ModelsUnloaded) -> None:
        self.asked.append(event)

    def on_run_opened(self, event: RunOpened) -> None:
        self.asked.append(event)

    def on_run_resumed(self, event: RunResumed) -> None:
        self.asked.append(event)

    def on_analysis_chosen(self, event: AnalysisChosen) -> None:
        self.asked.append(event)


def test_the_line_says_how_far_the_running_job_is_and_what_else_there_is() -> None:
    line = jobs_line(BUSY, 200)
    assert line.startswith("> running  weights.stats")
    assert " 25%" in line and "50 of 200 tensors, 5 tensors/s, 30 s left" in line
    assert "+2 jobs" in line and "cpu 1 model 269 MB of 16 GB" in line


@pytest.mark.parametrize("width", [20, 40, 79])
def test_a_narrow_line_keeps_what_matters(width: int) -> None:
    line = jobs_line(BUSY, width)
    assert len(line) <= width and line.startswith("> running")


def test_the_line_of_nothing_says_whether_there_is_a_service() -> None:
    assert jobs_line(JobsSnapshot(), 80) == "no jobs; the service is not running"
    assert jobs_line(JobsSnapshot(is_running=True, jobs=(FAILED,)), 80) == "no jobs  last: ! failed weights.diff"
    assert jobs_line(JobsSnapshot(problem="it speaks\x1b[31m version 2"), 80) == "jobs: it speaks\\x1b[31m version 2"


def test_rates_come_from_what_was_seen_of_a_stage() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    assert pace.rates((RUNNING,)) == ()
    now[0] = 110.0
    assert pace.rates((replace(RUNNING, done=100),)) == (("20260102-1", 5.0),)
    assert pace.rates((replace(RUNNING, done=10, stage="spectra"),)) == ()
    now[0] = 112.0
    spectra = replace(RUNNING, done=30, stage="spectra")
    assert pace.rates((spectra, QUEUED)) == (("20260102-1", 10.0),)
    now[0] = 113.5
    assert pace.rates((spectra,)) == (("20260102-1", 10.0),)  # progress comes once a second
    now[0] = 120.0
    assert pace.rates((spectra,)) == (("20260102-1", 2.0),)


class Answering:
    """A client of a service where a job gets one unit further with each look; after so many looks there is nothing new."""

    def __init__(self, looks: int) -> None:
        self._looks, self._done = looks, 0
        self.is_over = asyncio.Event()

    async def __aenter__(self) -> Answering:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close."""

    async def jobs(self) -> tuple[JobInfo, ...]:
        if self._done == self._looks:
            self.is_over.set()
            await asyncio.Event().wait()
        self._done += 1
        return (replace(RUNNING, done=self._done),)

    async def devices(self) -> tuple[DeviceInfo, ...]:
        return ()

    async def resident(self) -> tuple[ResidentModel, ...]:
        return ()


async def followed(monkeypatch: pytest.MonkeyPatch, tell: Callable[[JobsSnapshot], None]) -> None:
    """Three looks at such a service."""
    client = Answering(3)
    monkeypatch.setattr("modelscope_app.jobs.client.AsyncClient", lambda start: client)
    following, over = asyncio.create_task(follow(tell, asyncio.Event(), 0.0)), asyncio.create_task(client.is_over.wait())
    await asyncio.wait({following, over}, return_when=asyncio.FIRST_COMPLETED)
    assert not following.done(), "following has ended"
    following.cancel()


async def test_following_goes_on_after_a_widget_raised_and_says_what(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[JobsSnapshot] = []

    def raises_once(snapshot: JobsSnapshot) -> None:
        told.append(snapshot)
        if len(told) == 1:
            raise ValueError("no room")

    await followed(monkeypatch, raises_once)
    assert [(snapshot.jobs[0].done, snapshot.problem) for snapshot in told] == [
        (1, None),
        (1, "internal error (ValueError: no room)"),
        (2, None),
        (3, None),
    ]
    assert jobs_line(told[1], 80) == "jobs: internal error (ValueError: no room)"


async def test_following_goes_on_while_a_widget_raises_whatever_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[JobsSnapshot] = []

    def raises(snapshot: JobsSnapshot) -> None:
        told.append(snapshot)
        raise ValueError("no room")

    await followed(monkeypatch, raises)
    assert [(snapshot.jobs[0].done, snapshot.problem is not None) for snapshot in told] == [
        (done, is_problem) for done in (1, 2, 3) for is_problem in (False, True)
    ]


def test_devices_say_what_is_resident_since_when_and_how_big() -> None:
    text = devices_text(BUSY, 1200.0)
    assert "SmolLM2  float32  269 MB  loaded 3 min ago, used 1 min ago" in text and "1 job queued for it" in text
    assert devices_text(JobsSnapshot(), 0.0) == "The service is not running."


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_jobs_are_listed_with_state_progress_and_reason(size: tuple[int, int]) -> None:
    app = Host(BUSY)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        table = app.jobs_screen.query_one(DataTable)
        rows = [[cell.plain for cell in table.get_row_at(at)] for at in range(table.row_count)]
        assert [row[0] for row in rows] == ["> running", "· queued", "~ waiting", "! failed"]
        assert "50 of 200 tensors" in rows[0][4] and rows[1][4] == "next"
        assert rows[2][4] == "waits for 3.2 GB on cuda:0" and rows[3][4] == "the disk is full"
        assert app.focused is table


async def test_a_snapshot_keeps_the_cursor_on_its_job_while_jobs_come_and_go() -> None:
    app = Host(BUSY)
    async with app.run_test() as pilot:
        await pilot.press("down", "down")
        app.jobs_screen.snapshot = replace(BUSY, jobs=(WAITING, FAILED))
        await pilot.pause()
        table = app.jobs_screen.query_one(DataTable)
        assert table.get_row_at(table.cursor_row)[-1].plain == WAITING.run


async def test_nothing_to_list_says_what_to_do() -> None:
    app = Host(JobsSnapshot())
    async with app.run_test() as pilot:
        await pilot.pause()
        assert "it starts with the first job" in str(app.jobs_screen.query_one("#none", Static).render())
        await pilot.press("x", "R")
        app.jobs_screen.snapshot = BUSY
        await pilot.pause()
        assert app.jobs_screen.query_one(DataTable).display and not app.jobs_screen.query_one("#none").display
        assert not app.asked


async def test_keys_cancel_open_unload_and_run_again(made_run: Callable[..., RunFolder]) -> None:
    run = made_run(params={"bins": 32})
    app = Host(replace(BUSY, jobs=(replace(RUNNING, folder=str(run.folder)), FAILED)))
    async with app.run_test() as pilot:
        await pilot.press("x", "enter", "m", "R")
        await pilot.press("down", "x")
        await pilot.pause()
    cancelled, opened, unloaded, chosen = app.asked
    assert isinstance(cancelled, JobCancelled) and cancelled.run == RUNNING.run
    assert isinstance(opened, RunOpened) and opened.folder == run.folder
    assert isinstance(unloaded, ModelsUnloaded)
    assert isinstance(chosen, AnalysisChosen) and (chosen.analysis, chosen.params) == ("weights.stats", {"bins": 32})


async def test_only_a_job_that_ended_too_early_is_resumed() -> None:
    app = Host(BUSY)
    async with app.run_test() as pilot:
        for _ in BUSY.jobs:
            await pilot.press("ctrl+r", "down")
        await pilot.pause()
    (resumed,) = app.asked
    assert isinstance(resumed, RunResumed) and resumed.folder == Path(FAILED.folder)


async def test_a_run_that_is_listed_twice_is_one_line() -> None:
    again = replace(FAILED, state="running")
    assert _each_once((again, RUNNING, FAILED)) == (again, RUNNING)


async def test_the_log_and_events_of_the_job_under_the_cursor_are_shown_harmless(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(b"first\n\x1b[31mred [bold]x[/bold]\n")
    (tmp_path / "events.jsonl").write_text(json.dumps({"seq": 0, "time": 1.0, "kind": "stage", "name": "mo\x1b[1mments"}) + "\nnot json\n")
    app = Host(replace(BUSY, jobs=(replace(RUNNING, folder=str(tmp_path)),)))
    async with app.run_test() as pilot:
        await pilot.pause()
        await app.workers.wait_for_complete()
        await pilot.pause()
        log, events = (str(app.jobs_screen.query_one(f"#{name}", Static).render()) for name in ("log", "events"))
        assert log == "first\n\\x1b[31mred [bold]x[/bold]"
        assert events == "stage  name mo\\x1b[1mments\nnot json"


async def test_the_bar_cuts_itself_to_the_terminal() -> None:
    app = Host(BUSY)
    async with app.run_test(size=(40, 20)) as pilot:
        await pilot.pause()
        assert str(app.jobs_screen.query_one(JobsBar).render()).endswith("…")
