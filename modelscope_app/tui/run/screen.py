"""One run on the whole screen: a tab for each view, then its other tables, what was asked, its log, and panels of plugins.

A tab's content is made when it is first looked at. A run that has not ended is looked at every second, and its views are read
again when it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content
from textual.message import Message
from textual.reactive import var
from textual.widget import Widget
from textual.widgets import Footer, Static, TabbedContent, TabPane

from modelscope_app.api import FactsView, MscopeError, TableView, View, neutralised
from modelscope_app.rendering.wording import age_text
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.status import FINAL_STATES, RESUMABLE_STATES, Status
from modelscope_app.tui.fence import Fence, FencingScreen
from modelscope_app.tui.jobs.bar import JobsBar
from modelscope_app.tui.jobs.snapshot import JobsSnapshot
from modelscope_app.tui.jobs.words import checkpoint_name, progress_of, state_text
from modelscope_app.tui.messages import AnalysisChosen, JobCancelled, RunResumed
from modelscope_app.tui.on_screen import Explanation
from modelscope_app.tui.run.about import AboutRun, LogPage, ReadPage
from modelscope_app.tui.thread_work import failure_told

if TYPE_CHECKING:
    from modelscope_app.tui.run.panels import FoundPanel

_LOOK_SECONDS = 1.0
_LONGEST_TAB = 20


@dataclass(frozen=True, slots=True)
class _Page:
    """One tab."""

    title: str
    make: Callable[[], Widget]


class RunScreen(FencingScreen[None]):
    """Shows the run in `folder`."""

    DEFAULT_CSS = """
    RunScreen #head { height: 1; padding: 0 1; background: $panel; }
    RunScreen #said { padding: 1 2; height: 1fr; }
    RunScreen TabbedContent { height: 1fr; }
    RunScreen TabPane { padding: 0; }
    """
    BINDINGS = [
        ("escape", "app.back", "Back"),
        ("R", "again", "Run again"),
        ("ctrl+r", "resume", "Resume"),
        ("x", "cancel", "Cancel job"),
        *[Binding(str(number), f"tab({number})", "Show the tab of that number", show=False) for number in range(1, 10)],
    ]

    snapshot: var[JobsSnapshot] = var(JobsSnapshot)

    class _Read(Message):
        """The run folder was read."""

        def __init__(self, run: RunFolder, views: tuple[View, ...], status: Status, panels: tuple[FoundPanel, ...]) -> None:
            self.run, self.views, self.status, self.panels = run, views, status, panels
            super().__init__()

    class _Failed(Message):
        """The run folder cannot be read."""

        def __init__(self, sentence: str) -> None:
            self.sentence = sentence
            super().__init__()

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.run: RunFolder | None = None
        """None until it is read."""
        self._status: Status | None = None
        self._pages: dict[str, _Page] = {}
        """By the id of their tab."""
        self._panels: tuple[FoundPanel, ...] = ()
        self._head = ""
        self._was_active = False
        """At the last snapshot, for the keys that depend on it."""
        self._wanted: str | None = None
        """The tab whose content is to have the keyboard as soon as it is there."""

    def compose(self) -> ComposeResult:
        yield Static("", id="head", markup=False)
        yield Static("Reading ...", id="said", markup=False)
        yield JobsBar()
        yield Footer()

    def on_mount(self) -> None:
        """Read the folder; look again while the run goes on."""
        self.query_one(JobsBar).snapshot = self.snapshot
        self._read()
        self.set_interval(_LOOK_SECONDS, self._look)

    def watch_snapshot(self, snapshot: JobsSnapshot) -> None:
        """For the line at the bottom, and the head while the run goes on."""
        if self.is_mounted:
            self.query_one(JobsBar).snapshot = snapshot
            self._show_head()
            if self._is_active != self._was_active:
                self._was_active = self._is_active
                self.refresh_bindings()

    def _look(self) -> None:
        """Whether a run that had not ended has."""
        if self.run is None or self._status is None:
            return
        if self._status.state not in FINAL_STATES or self._is_active:
            self._look_at(self.run)
        else:
            self._show_head()  # it says how long ago that was

    @work(thread=True, exclusive=True, exit_on_error=False, group="look")
    def _look_at(self, run: RunFolder) -> None:
        try:
            status = run.read_status()
        except (MscopeError, OSError):
            return  # it is being written or removed; the next look tells
        self.app.call_from_thread(self._looked, status)

    def _looked(self, status: Status) -> None:
        was, self._status = self._status, status
        self._show_head()
        self.refresh_bindings()
        if was is None or status.state in FINAL_STATES:
            self._read()
        else:
            for page in self.query(ReadPage):
                page.read_again()

    @work(thread=True, exclusive=True, exit_on_error=False, group="read")
    def _read(self) -> None:
        with failure_told(lambda sentence: self.post_message(self._Failed(sentence)), "it cannot be read: internal error"):
            run = RunFolder.open(self.folder)
            status = run.read_status()
            views = tuple(run.views)
            shown = {view.table for view in views if isinstance(view, TableView)}
            tables = [TableView(name=f"table-{name}", title=f"Table {name}", table=name) for name in run.tables if name not in shown]
            if run.facts and not any(isinstance(view, FactsView) for view in views):
                views = (FactsView(name="facts", title="Facts"), *views)
            self.post_message(self._Read(run, (*views, *tables), status, ()))

    @work(exclusive=True, exit_on_error=False, group="panels")
    async def _find_panels(self, run: RunFolder, views: tuple[View, ...], status: Status) -> None:
        """Panels come after the views, because plugins take a while to import. Settings that are wrong were said at the start."""
        from modelscope_app.tui.plugins import shared_plugins
        from modelscope_app.tui.run.panels import panels_of

        with suppress(MscopeError):
            if panels := await shared_plugins().ask(partial(panels_of, run)):
                self.post_message(self._Read(run, views, status, panels))

    @on(_Failed)
    async def _say(self, event: _Failed) -> None:
        """A sentence in the place of the run."""
        said = self.query_one("#said", Static)
        said.display = True
        said.update(Content(neutralised(event.sentence, 2000)))

    @on(_Read)
    async def _show(self, event: _Read) -> None:
        """Tabs for what there is; the one that was looked at stays."""
        first = self.run is None
        self.run, self._status = event.run, event.status
        self._show_head()
        self.refresh_bindings()
        if first:
            self._find_panels(event.run, event.views, event.status)
        elif not event.panels and self._panels:  # read again, as it has ended: its panels are known
            event.panels = self._panels
        self._panels = event.panels
        self.query_one("#said").display = False
        pages = self._pages_of(event)
        if {tab: page.title for tab, page in pages.items()} == {tab: page.title for tab, page in self._pages.items()}:
            self._pages = pages
            self._read_again()
            return
        if not first and list(pages)[: len(self._pages)] == list(self._pages):
            added = {tab: page for tab, page in pages.items() if tab not in self._pages}
            self._pages = pages
            for tab, page in added.items():
                await self.query_one(TabbedContent).add_pane(_pane(tab, page))
            self._read_again()
            return
        self._pages = pages
        await self.query(TabbedContent).remove()
        with self.app.batch_update():
            tabs = TabbedContent()
            await self.mount(tabs, before=self.query_one(JobsBar))
            for tab, page in pages.items():
                await tabs.add_pane(_pane(tab, page))
        if event.status.state in ("failed", "lost") and not event.views:
            tabs.active = "about"
        if self.focused is None:
            tabs.query_one("ContentTabs").focus()

    def _pages_of(self, event: _Read) -> dict[str, _Page]:
        from modelscope_app.tui.views import board_for

        pages: dict[str, _Page] = {}
        for at, view in enumerate(event.views):
            what = f"The view {neutralised(view.name, 80)}"
            pages[f"view-{at}"] = _Page(view.title or view.name, partial(Fence, what, partial(board_for, event.run, view)))
        pages["about"] = _Page("About", partial(AboutRun, event.run))
        pages["log"] = _Page("Log", partial(LogPage, event.run.folder))
        for at, panel in enumerate(event.panels):  # last, because finding them takes longer than reading the run
            pages[f"panel-{at}"] = _Page(panel.title, partial(Fence, f"The panel {neutralised(panel.id, 80)}", panel.make))
        return {tab: _Page(_tab_title(at, page.title), page.make) for at, (tab, page) in enumerate(pages.items(), start=1)}

    async def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        """Make what is looked at for the first time."""
        pane = event.pane
        page = self._pages.get(pane.id or "")
        if page is not None and not len(pane.children):
            await pane.mount(page.make())
        if self._wanted != pane.id:
            self._wanted = None  # somebody went elsewhere meanwhile
        self._give_keyboard()

    def action_tab(self, number: int) -> None:
        """The tab of that number, its content with the keyboard."""
        tabs = list(self._pages)
        if number <= len(tabs) and len(self.query(TabbedContent)):
            self._wanted = tabs[number - 1]
            if self.query_one(TabbedContent).active == self._wanted:
                self._give_keyboard()
            else:
                self.query_one(TabbedContent).active = self._wanted

    def on_view_board_shown(self) -> None:
        """A picture is there: it may be the one that is wanted."""
        self._give_keyboard()

    def _give_keyboard(self) -> None:
        """The keyboard to what a digit asked for, once it is there."""
        if self._wanted is None:
            return
        for widget in self.query_one(f"#{self._wanted}", TabPane).query(Widget):
            if widget.focusable:
                widget.focus()
                self._wanted = None
                return

    def action_again(self) -> None:
        """The form with what this run was given."""
        if self.run is not None:
            job = self.run.job
            checkpoints = [checkpoint.path for checkpoint in job.checkpoints]
            self.post_message(AnalysisChosen(job.analysis, checkpoints, job.params, job.device, job.dtype, job.seed))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only a job that goes on is cancelled, and only one that has ended too early resumed."""
        state = self._status.state if self._status is not None else None
        if action == "resume":
            return state in RESUMABLE_STATES & FINAL_STATES and not self._is_active
        if action == "cancel":
            return self._is_active
        return True

    @property
    def _is_active(self) -> bool:
        """Whether the service has it."""
        return self.run is not None and any(job.run == self.run.id for job in self.snapshot.active)

    def action_resume(self) -> None:
        """The same run goes on from what it has saved."""
        if self.run is not None:
            self.post_message(RunResumed(self.run.folder, neutralised(self.run.analysis, 60)))

    def action_cancel(self) -> None:
        """Asks first."""
        if self.run is not None:
            self.post_message(JobCancelled(self.run.id, f"{neutralised(self.run.analysis, 60)} ({neutralised(self.run.id)})"))

    def headless_command(self) -> str | None:
        """The command that computes the run again."""
        return self.run.job.command if self.run is not None else None

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "A run",
            "What an analysis left behind: one tab for each view, then tables without one, panels of plugins, what was asked, and the "
            "log. The digits choose a tab. A run that goes on is followed.",
        )

    def _read_again(self) -> None:
        for page in self.query(ReadPage):
            page.read_again()
        for board in self.query("ViewBoard"):
            reload = getattr(board, "reload", None)
            if reload is not None and self._status is not None and self._status.state in FINAL_STATES:
                reload()

    def _show_head(self) -> None:
        if self.run is None or self._status is None:
            return
        job, status = self.run.job, self._status
        parts = [state_text(status.state), neutralised(job.analysis, 60)]
        if job.checkpoints:
            parts.append("on " + ", ".join(checkpoint_name(checkpoint.path) for checkpoint in job.checkpoints[:3]))
        if status.state in FINAL_STATES:
            parts.append(f"{age_text(time.time() - (status.finished or job.created_at.timestamp()))} ago")
        known = next((one for one in self.snapshot.jobs if one.run == job.id and not one.is_final), None)
        if known is not None:
            parts.append(progress_of(known, self.snapshot.rate(known.run)))
        if status.error:
            parts.append(status.error)
        if (head := "  ".join(parts)) != self._head:
            self._head = head
            self.query_one("#head", Static).update(Content(head))


def _pane(tab: str, page: _Page) -> TabPane:
    return TabPane(Content(page.title), id=tab)


def _tab_title(number: int, title: str) -> str:
    """With the digit that shows it, where there is one."""
    return f"{number} {neutralised(title, _LONGEST_TAB)}" if number < 10 else neutralised(title, _LONGEST_TAB)
