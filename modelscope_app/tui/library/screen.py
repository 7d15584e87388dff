"""The library: recent checkpoints, folders, runs. What `mscope` shows when it is told nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.reactive import var
from textual.screen import Screen
from textual.widgets import Footer, OptionList, Static, TabbedContent, TabPane

from modelscope_app.tui.jobs.bar import JobsBar
from modelscope_app.tui.jobs.snapshot import JobsSnapshot
from modelscope_app.tui.library.folder_browser import FolderBrowser
from modelscope_app.tui.library.recent_list import RecentList
from modelscope_app.tui.on_screen import Explanation
from modelscope_app.tui.run_list import RunList

_PAGES = {"recent": "1 Recent", "folders": "2 Folders", "all-runs": "3 Runs"}


class LibraryScreen(Screen[None]):
    """Three pages; each is made when it is first looked at."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "page('recent')", "Recent", show=False),
        Binding("2", "page('folders')", "Folders", show=False),
        Binding("3", "page('all-runs')", "Runs", show=False),
    ]
    DEFAULT_CSS = """
    LibraryScreen {
        & > #library-head { height: 1; padding: 0 1; background: $panel; text-style: bold; }
        & > TabbedContent { height: 1fr; }
        & TabPane { padding: 0; }
        & ContentSwitcher { height: 1fr; }
    }
    """

    snapshot: var[JobsSnapshot] = var(JobsSnapshot)

    def __init__(self, folder: str | Path | None = None, *, page: str = "recent", clock: Callable[[], float] = time.time) -> None:
        """`folder` is where browsing begins, else the working folder; `page` is `recent`, `folders` or `all-runs`."""
        super().__init__()
        self._folder = folder
        self._first = page
        self._clock = clock

    def compose(self) -> ComposeResult:
        """Tabs, jobs, keys."""
        yield Static("Library", id="library-head")
        with TabbedContent(initial=self._first):
            for name, title in _PAGES.items():
                yield TabPane(title, id=name)
        yield JobsBar()
        yield Footer()

    def on_mount(self) -> None:
        """For the line at the bottom."""
        self.query_one(JobsBar).snapshot = self.snapshot

    def watch_snapshot(self, snapshot: JobsSnapshot) -> None:
        """For the line at the bottom."""
        if self.is_mounted:
            self.query_one(JobsBar).snapshot = snapshot

    def refresh_runs(self) -> None:
        """A job has ended."""
        for runs in self.query(RunList):
            runs.refresh_runs()

    async def action_page(self, name: str) -> None:
        """One of the pages, with the keyboard in it before the next key is given out."""
        tabs = self.query_one(TabbedContent)
        tabs.active = name
        await self._show(tabs.get_pane(name))

    async def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        """As with a digit."""
        event.stop()
        await self._show(event.pane)

    async def _show(self, pane: TabPane) -> None:
        """Make what is looked at for the first time."""
        name = pane.id or ""
        if not pane.children:
            match name:
                case "recent":
                    await pane.mount(RecentList(clock=self._clock))
                case "folders":
                    await pane.mount(FolderBrowser(self._folder))
                case "all-runs":
                    await pane.mount(RunList(clock=self._clock))
        self._focus_page(name)

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Library",
            "Where to begin: 1 checkpoints opened lately, 2 folders and the local Hugging Face cache, 3 every run. "
            "Enter opens what the cursor is on.",
        )

    def _focus_page(self, name: str) -> None:
        pane = self.query_one(f"#{name}", TabPane)
        for browser in pane.query(FolderBrowser):
            browser.focus_list()
        for listed in pane.query(OptionList):
            listed.focus()
