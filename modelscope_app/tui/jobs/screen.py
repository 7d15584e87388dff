"""The jobs screen: every job the service knows, the log and events of the one under the cursor, devices and resident models."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.reactive import var
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static, TabbedContent, TabPane
from textual.widgets.data_table import ColumnKey, RowKey

from modelscope_app.api import MscopeError, neutralised
from modelscope_app.rendering.wording import age_text, bytes_text, count_text
from modelscope_app.runs.status import FINAL_STATES, RESUMABLE_STATES
from modelscope_app.tui.jobs.bar import JobsBar
from modelscope_app.tui.jobs.snapshot import JobsSnapshot
from modelscope_app.tui.jobs.words import bar_of, checkpoint_name, device_text, progress_of, share_of, state_text
from modelscope_app.tui.messages import AnalysisChosen, JobCancelled, ModelsUnloaded, RunOpened, RunResumed
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.thread_work import failure_told

if TYPE_CHECKING:
    from modelscope_app.jobs.answers import JobInfo

_LAST_LINES = 200
_LAST_BYTES = 64_000
_LONGEST_LINE = 500


class JobsTable(DataTable[Text]):
    """One line a job."""

    def put(self, run: str, column: str, cell: Text) -> None:
        """Another cell in the line of a run. textual would draw the whole table anew, which through ssh is a lot four times a second."""
        if cell.cell_len > self.columns[ColumnKey(column)].content_width:
            self.update_cell(run, column, cell, update_width=True)
            return
        self._data[RowKey(run)][ColumnKey(column)] = cell
        self._update_count += 1
        self.refresh_row(self.get_row_index(run))

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Jobs",
            "Every job that was given to the service since it started: those on the queue and running first, then those that ended, "
            "newest first. Closing the app stops none of them. Jobs that ran before are under Runs in the library.",
        )


class JobsScreen(Screen[None]):
    """Follows the app's snapshot of the service."""

    DEFAULT_CSS = """
    JobsScreen #jobs { height: 1fr; min-height: 5; scrollbar-size: 0 1; }
    JobsScreen #none { padding: 1 2; color: $text-muted; height: 1fr; }
    JobsScreen TabbedContent { height: 1fr; min-height: 8; }
    JobsScreen .text { padding: 0 1; height: auto; }
    """
    BINDINGS = [
        ("x", "cancel", "Cancel job"),
        ("R", "again", "Run again"),
        ("ctrl+r", "resume", "Resume"),
        ("enter", "open", "Open run"),
        ("m", "unload", "Unload models"),
        ("escape", "app.back", "Back"),
    ]

    snapshot: var[JobsSnapshot] = var(JobsSnapshot)

    class Read(Message):
        """What lies in a run folder: its log and its events."""

        def __init__(self, run: str, log: str, events: str) -> None:
            self.run, self.log_text, self.events_text = run, log, events
            super().__init__()

    def compose(self) -> ComposeResult:
        yield Static("", id="none")
        yield JobsTable(id="jobs", cursor_type="row", zebra_stripes=False)
        with TabbedContent():
            with TabPane("Log", id="log-pane"), VerticalScroll():
                yield Static("", id="log", classes="text")
            with TabPane("Events", id="events-pane"), VerticalScroll():
                yield Static("", id="events", classes="text")
            with TabPane("Devices and models", id="devices-pane"), VerticalScroll():
                yield Static("", id="devices", classes="text")
        yield JobsBar()
        yield Footer()

    def on_mount(self) -> None:
        """Columns; rows come with the snapshot."""
        table = self.query_one(JobsTable)
        for name in ("state", "analysis", "asked", "device", "progress", "run"):
            table.add_column(name, key=name)
        self._show(self.snapshot)
        table.focus()

    def watch_snapshot(self, snapshot: JobsSnapshot) -> None:
        """The service said something new."""
        if self.is_mounted:
            self._show(snapshot)

    def on_data_table_row_highlighted(self) -> None:
        """Another job: its log."""
        self._read_shown()

    def on_data_table_row_selected(self) -> None:
        """Enter or a click."""
        self.action_open()

    def on_jobs_screen_read(self, event: Read) -> None:
        """The log came."""
        job = self._job()
        if job is not None and job.run == event.run:
            self._say("#log", event.log_text)
            self._say("#events", event.events_text)

    def action_open(self) -> None:
        """The run of the job."""
        if (job := self._job()) is not None:
            self.post_message(RunOpened(Path(job.folder)))

    def action_cancel(self) -> None:
        """Asks first."""
        job = self._job()
        if job is None:
            return
        if job.is_final:
            self.app.notify(f"{neutralised(job.run)} has ended: {job.state}", markup=False)
        else:
            self.post_message(JobCancelled(job.run, f"{neutralised(job.analysis)} ({neutralised(job.run)})"))

    def action_resume(self) -> None:
        """The same run goes on from what it has saved."""
        if (job := self._job()) is None:
            return
        if job.state in RESUMABLE_STATES & FINAL_STATES:
            self.post_message(RunResumed(Path(job.folder), neutralised(job.analysis)))
        else:
            self.app.notify(f"{neutralised(job.run)} is {job.state}; a run that was cancelled, failed or lost can be resumed", markup=False)

    def action_again(self) -> None:
        """The form with what this job was given."""
        from modelscope_app.runs.folder import RunFolder

        if (job := self._job()) is None:
            return
        try:
            asked = RunFolder.open(Path(job.folder)).job
        except MscopeError as error:
            self.app.notify(str(error), severity="error", markup=False)
            return
        checkpoints = [checkpoint.path for checkpoint in asked.checkpoints]
        self.post_message(AnalysisChosen(asked.analysis, checkpoints, asked.params, asked.device, asked.dtype, asked.seed))

    def action_unload(self) -> None:
        """All resident models."""
        self.post_message(ModelsUnloaded())

    def copied(self) -> Copied | None:
        """The run's id."""
        job = self._job()
        return Copied(job.run, "the run's id") if job else None

    def headless_command(self) -> str | None:
        """Following the job from a shell."""
        job = self._job()
        return f"mscope runs watch {job.run}" if job else "mscope service status"

    def explanation(self) -> Explanation:
        """For `?`."""
        return self.query_one(JobsTable).explanation()

    def _job(self) -> JobInfo | None:
        table = self.query_one(JobsTable)
        jobs = self.snapshot.jobs
        return jobs[table.cursor_row] if 0 <= table.cursor_row < len(jobs) else None

    def _show(self, snapshot: JobsSnapshot) -> None:
        self.query_one(JobsBar).snapshot = snapshot
        none = self.query_one("#none", Static)
        table = self.query_one(JobsTable)
        table.display, none.display = bool(snapshot.jobs), not snapshot.jobs
        if not snapshot.jobs:
            none.update(Content(_nothing(snapshot)))
        kept = table.get_row_at(table.cursor_row)[-1].plain if table.row_count else None
        rows = [_row(job, snapshot) for job in snapshot.jobs]
        if [key.value for key in table.rows] == [job.run for job in snapshot.jobs]:
            for job, row in zip(snapshot.jobs, rows, strict=True):
                for name, cell in zip(("state", "analysis", "asked", "device", "progress"), row, strict=False):
                    if table.get_cell(job.run, name) != cell:
                        table.put(job.run, name, cell)
        else:
            table.clear()
            for job, row in zip(snapshot.jobs, rows, strict=True):
                table.add_row(*row, key=job.run)
            at = next((at for at, job in enumerate(snapshot.jobs) if neutralised(job.run) == kept), 0)
            table.move_cursor(row=at, animate=False)
        self._say("#devices", devices_text(snapshot, time.time()))
        self._read_shown()

    def _say(self, place: str, text: str) -> None:
        """Where that is something new: each update lays out and draws all of it."""
        shown, said = self.query_one(place, Static), Content(text)
        if not (isinstance(shown.content, Content) and shown.content.is_same(said)):
            shown.update(said)

    def _read_shown(self) -> None:
        if (job := self._job()) is not None:
            self._read(job.run, Path(job.folder))

    @work(thread=True, exclusive=True, exit_on_error=False, group="log")
    def _read(self, run: str, folder: Path) -> None:
        with failure_told(lambda sentence: self.post_message(self.Read(run, sentence, sentence)), "this cannot be read"):
            log = "\n".join(neutralised(line, _LONGEST_LINE) for line in _tail(folder / "log.txt")) or "Nothing was printed."
            self.post_message(self.Read(run, log, _events(folder) or "No events yet."))


def _row(job: JobInfo, snapshot: JobsSnapshot) -> tuple[Text, ...]:
    share = share_of(job)
    bar = bar_of(share, 8) + "  " if share is not None and job.state == "running" else ""
    asked = f"{age_text(time.time() - job.submitted)} ago" if job.submitted else ""
    progress = bar + progress_of(job, snapshot.rate(job.run))
    device = neutralised(job.device or "", 20)
    cells = (state_text(job.state), neutralised(job.analysis, 40), asked, device, progress[:120], neutralised(job.run, 80))
    return tuple(map(Text, cells))  # of textual's Content the table does not know the width


def _nothing(snapshot: JobsSnapshot) -> str:
    if snapshot.problem:
        return neutralised(snapshot.problem)
    if not snapshot.is_running:
        return "The service is not running; it starts with the first job. Choose an analysis, fill its form and press ctrl+r."
    return "No jobs since the service started. Choose an analysis, fill its form and press ctrl+r."


def devices_text(snapshot: JobsSnapshot, now: float) -> str:
    """Devices, and what is resident on each: how big, since when, last used."""
    if not snapshot.is_running:
        return "The service is not running."
    lines = []
    for device in snapshot.devices:
        lines.append(f"{device_text(device, snapshot)}  ({neutralised(device.name, 60)})")
        lines.append(f"  {count_text(len(device.workers), 'worker')}, {count_text(device.queued, 'job')} queued for it")
        for model in (model for model in snapshot.resident if model.device == device.device):
            used = f"loaded {age_text(now - model.since)} ago, used {age_text(now - model.last_used)} ago"
            lines.append(f"  {checkpoint_name(model.path)}  {neutralised(model.dtype, 20)}  {bytes_text(model.memory_bytes)}  {used}")
    return "\n".join(lines) or "No devices are known yet; workers start with the first job."


def _tail(path: Path) -> list[str]:
    """The last lines of a file. Empty where there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _LAST_BYTES))
            return stream.read().decode("utf-8", "replace").splitlines()[-_LAST_LINES:]
    except OSError:
        return []


def _events(folder: Path) -> str:
    """The last events, harmless to print."""
    lines = []
    for line in _tail(folder / "events.jsonl"):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            line = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("kind", "time", "seq"))
            line = f"{event.get('kind', '')}  {line}"
        lines.append(neutralised(line, _LONGEST_LINE))
    return "\n".join(lines)
