"""The workspace: one checkpoint or series, its tensors on the left, and in the middle its overview, a tensor, analyses and runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.reactive import var
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static, TabbedContent, TabPane

from modelscope_app.api import neutralised
from modelscope_app.tui.checkpoint.early import EarlyReading
from modelscope_app.tui.checkpoint.opening import Opened, opened
from modelscope_app.tui.checkpoint.overview_page import OverviewPage
from modelscope_app.tui.checkpoint.tensor_tree import TensorChosen, TensorTree
from modelscope_app.tui.jobs.bar import JobsBar
from modelscope_app.tui.jobs.snapshot import JobsSnapshot
from modelscope_app.tui.on_screen import Explanation
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.thread_work import failure_told

_PAGES = {"overview": "1 Overview", "tensor": "2 Tensor", "analyses": "3 Analyses", "runs": "4 Runs"}
_GLANCE_SECONDS = 0.25
"""For which the first screen waits for the overview rather than say that headers are being read."""
_AFTER_PAINT_SECONDS = 0.1
"""For which the tensors, which take as long to hand over, wait for the overview to be painted."""
_NARROW = 100
"""Columns of the terminal below which the tree takes less."""


class WorkspaceScreen(Screen[None]):
    """Shows what `path` names; reading its headers is the first thing it does."""

    DEFAULT_CSS = """
    WorkspaceScreen #head { height: 1; padding: 0 1; background: $panel; }
    WorkspaceScreen #middle { height: 1fr; }
    WorkspaceScreen TensorTree { width: 42; border-right: solid $panel; }
    WorkspaceScreen.narrow TensorTree { width: 28; }
    WorkspaceScreen TabbedContent { width: 1fr; height: 1fr; }
    WorkspaceScreen TabPane { padding: 0; }
    WorkspaceScreen #no-tensor { padding: 1 2; }
    """
    BINDINGS = [
        *[Binding(str(at), f"page({name!r})", title[2:], show=False) for at, (name, title) in enumerate(_PAGES.items(), start=1)],
        ("t", "tree", "Tensors"),
        Binding("escape", "app.back", "Library", show=False),
    ]

    snapshot: var[JobsSnapshot] = var(JobsSnapshot)

    class _Opened(Message):
        """Its headers were read."""

        def __init__(self, found: Opened) -> None:
            self.found = found
            super().__init__()

    class _Failed(Message):
        """It cannot be opened."""

        def __init__(self, sentence: str) -> None:
            self.sentence = sentence
            super().__init__()

    def __init__(self, path: str, snapshot: JobsSnapshot | None = None, early: EarlyReading | None = None) -> None:
        """`early` is reading it already."""
        super().__init__()
        self._path = path
        self.found: Opened | None = None
        """None until it is read."""
        self._early = early
        self._wanted: str | None = None
        """The page that is to have the keyboard as soon as it is there."""
        if snapshot is not None:
            self.set_reactive(WorkspaceScreen.snapshot, snapshot)

    @property
    def checkpoint_path(self) -> str | None:
        """Absolute path of what is open; None while it is not."""
        return self.found.path if self.found is not None else None

    def compose(self) -> ComposeResult:
        glance = self._early.glance(_GLANCE_SECONDS) if self._early is not None else None
        yield Static(_head(glance) if glance else Content(neutralised(self._path, 300)), id="head", markup=False)
        with Horizontal(id="middle"):
            yield TensorTree()
            with TabbedContent():
                for name, title in _PAGES.items():
                    with TabPane(title, id=name):
                        if name == "overview":
                            yield OverviewPage(glance)
        yield JobsBar()
        yield Footer()

    def on_mount(self) -> None:
        """Read the headers, or take what was read."""
        self.query_one(JobsBar).snapshot = self.snapshot
        self.set_class(self.app.size.width < _NARROW, "narrow")
        self.query_one(TensorTree).focus_tree()
        if self._early is None:
            self._open()
        else:
            self.set_timer(_AFTER_PAINT_SECONDS, self._open)

    def on_unmount(self) -> None:
        """Whoever leaves at once waits for nothing."""
        if self._early is not None:
            self._early.close()

    def on_resize(self) -> None:
        """As there is room."""
        self.set_class(self.app.size.width < _NARROW, "narrow")

    def watch_snapshot(self, snapshot: JobsSnapshot) -> None:
        """For the line at the bottom."""
        if self.is_mounted:
            self.query_one(JobsBar).snapshot = snapshot

    @work(thread=True, exclusive=True, exit_on_error=False, group="open")
    def _open(self) -> None:
        early, self._early = self._early, None
        with failure_told(lambda sentence: self.post_message(self._Failed(sentence)), "it cannot be opened: internal error"):
            found = early.whole() if early is not None else None
            self.post_message(self._Opened(found or opened(self._path)))

    @on(_Failed)
    def _say(self, event: _Failed) -> None:
        self.query_one(TensorTree).fail(event.sentence)
        self.query_one(OverviewPage).fail(event.sentence)

    @on(_Opened)
    async def _show(self, event: _Opened) -> None:
        self.found = event.found
        self.query_one("#head", Static).update(_head(event.found))
        self.query_one(TensorTree).show(event.found)
        self.query_one(OverviewPage).show(event.found)
        active = self.query_one(TabbedContent).active_pane
        if active is not None:
            await self._fill(active)
        self._wanted = None
        self._remember()

    @work(thread=True, exclusive=True, exit_on_error=False, group="remember")
    def _remember(self) -> None:
        from modelscope_app.tui.library.recent import remember

        remember(self._path)

    async def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        """Make what is looked at for the first time."""
        await self._fill(event.pane)

    async def _fill(self, pane: TabPane) -> None:
        if self.found is None:
            return  # as soon as it is read
        if not len(pane.children):
            await pane.mount(self._page(pane.id or "", self.found))
        if self._wanted == pane.id:
            self._focus_page(pane)

    def _page(self, name: str, found: Opened) -> Widget:
        match name:
            case "analyses":
                from modelscope_app.tui.analyses import AnalysesBrowser

                one = found.checkpoint
                can_build = one is None or one.config is not None
                has_tokenizer = one is None or bool(one.tokenizer_files)
                return AnalysesBrowser(found.path, found.series is not None, has_config=can_build, has_tokenizer=has_tokenizer)
            case "runs":
                from modelscope_app.tui.run_list import RunList

                return RunList(found.path)
            case _:
                return Static("Choose a tensor on the left: t goes there, enter shows it.", id="no-tensor", markup=False)

    @on(TensorChosen)
    async def _show_chosen(self, event: TensorChosen) -> None:
        from modelscope_app.tui.checkpoint.tensor_detail import TensorDetail

        assert self.found is not None
        pane = self.query_one("#tensor", TabPane)
        await pane.remove_children()
        await pane.mount(TensorDetail(self.found, event.header))
        self.query_one(TabbedContent).active = "tensor"

    def refresh_runs(self) -> None:
        """A job has ended: runs and what they say of a tensor may be others."""
        for widget in self.query("RunList, TensorDetail"):
            refresh = getattr(widget, "refresh_runs", None)
            if refresh is not None:
                refresh()

    async def action_page(self, name: str) -> None:
        """One of the tabs, with the keyboard in it; also one that was asked for before the headers were read."""
        self._wanted = name
        tabs = self.query_one(TabbedContent)
        tabs.active = name
        await self._fill(tabs.get_pane(name))  # here and not when the tab says so: the next key is already the page's
        if self.found is not None:
            self._wanted = None

    def _focus_page(self, pane: TabPane) -> None:
        for widget in pane.query("*"):  # nothing where it is still being made: whoever makes it asks again
            if widget.focusable:
                widget.focus()
                self._wanted = None
                return

    def action_tree(self) -> None:
        """The keyboard to the tensors."""
        for tree in self.query(TensorTree):
            tree.focus_tree()

    def tensor_names(self) -> Iterable[str]:
        """For the palette."""
        return [header.name for header in self.found.headers] if self.found is not None else ()

    def show_tensor(self, name: str) -> None:
        """For the palette: open the tree to it and show it."""
        if self.found is None:
            return
        self.query_one(TensorTree).reveal(name)
        header = next((header for header in self.found.headers if header.name == name), None)
        if header is not None:
            self.post_message(TensorChosen(header, self.found.path))

    def selection(self) -> Selection | None:
        """The checkpoint itself, where nothing in it is selected."""
        if self.found is None:
            return None
        return Selection("checkpoint", self.found.path, neutralised(self.found.name, 100), self.found.path)

    def headless_command(self) -> str | None:
        """What prints the overview."""
        import shlex

        return f"mscope inspect {shlex.quote(self.found.path if self.found else self._path)}"

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "A checkpoint",
            "Left its tensors, repeated layers folded into one line. In the middle its overview, one tensor, what can be run on it, and "
            "what was run. Nothing of its values is read before an analysis asks for them.",
        )


def _head(found: Opened) -> Content:
    return Content.assemble((neutralised(found.name, 100), "bold"), f"  {neutralised(str(Path(found.path)), 300)}")
