"""The overview of a checkpoint or a series: every line can be read, copied and, where there is more behind it, opened."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Static, Tree
from textual.widgets.tree import TreeNode

from modelscope_app.api import neutralised
from modelscope_app.tui.checkpoint.entries import Entry, fingerprint_entry, overview_entries, read_inside
from modelscope_app.tui.checkpoint.fitted_tree import FittedTree, Line
from modelscope_app.tui.checkpoint.opening import Opened
from modelscope_app.tui.messages import CheckpointOpened, Selected
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.plain import plain
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.thread_work import failure_told

if TYPE_CHECKING:
    from modelscope_app.checkpoints import OpenCheckpoint

_LONGEST_LABEL = 80


class _InsideRead(Message):
    """What lies inside an entry was read."""

    def __init__(self, opened: Opened | None, node: TreeNode[Entry], entries: list[Entry], error: str | None) -> None:
        self.opened, self.node, self.entries, self.error = opened, node, entries, error
        super().__init__()


class _FingerprintKnown(Message):
    """The fingerprint was computed, or could not be."""

    def __init__(self, path: str, value: str) -> None:
        self.path, self.value = path, value
        super().__init__()


class EntryTree(FittedTree[Entry]):
    """Entries, opened on demand."""

    def __init__(self, id: str) -> None:
        super().__init__("", id=id)
        self.show_root = False
        self.show_guides = False

    def line(self, node: TreeNode[Entry]) -> Line:
        """What the entry says."""
        return node.data.line if node.data is not None else Line("")

    def fill(self, entries: list[Entry]) -> None:
        """Show these entries and nothing else."""
        self.clear()
        self.root.expand()
        self.put(self.root, entries)
        self.cursor_line = 0 if entries else -1

    def put(self, node: TreeNode[Entry], entries: list[Entry]) -> None:
        """Show these entries inside a node and nothing else there."""
        node.remove_children()
        for entry in entries:
            added = node.add("", entry, allow_expand=entry.inside is not None)
            if entry.is_open and entry.inside is not None:
                self.put(added, read_inside(entry)[0])
                added.expand()


class OverviewPage(Vertical):
    """Facts, sizes, config, tokenizer, files and series of what was opened."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("f", "fingerprint", "Fingerprint")]
    DEFAULT_CSS = """
    OverviewPage {
        & > #overview-state { padding: 0 1; height: 1fr; }
        & > EntryTree { height: 1fr; padding: 0 0 0 1; }
    }
    """

    def __init__(self, opened: Opened | None = None, *, id: str | None = None, classes: str | None = None) -> None:
        """Without `opened` it says that headers are being read, until `show` or `fail` is called."""
        super().__init__(id=id, classes=classes)
        self._opened = opened
        self._error: str | None = None

    def compose(self) -> ComposeResult:
        """The lines, or what stands in their place."""
        yield Static(id="overview-state")
        yield EntryTree("overview-entries")

    def on_mount(self) -> None:
        """Show what is known."""
        self._show_state()

    def show(self, opened: Opened) -> None:
        """Show what was opened."""
        self._opened, self._error = opened, None
        if self.is_mounted:
            self._show_state()

    def fail(self, sentence: str) -> None:
        """Say why there is nothing to show."""
        self._opened, self._error = None, sentence
        if self.is_mounted:
            self._show_state()

    def action_fingerprint(self) -> None:
        """Compute the fingerprint, in a thread: it reads up to 2 GiB."""
        if self._opened is None or self._opened.checkpoint is None:
            return
        self._put_fingerprint("computing: the values are being read ...")
        self._compute_fingerprint(self._opened.checkpoint, self._opened.path)

    def copied(self) -> Copied | None:
        """What the line stands for, whole; of one that stands for nothing but what lies inside it, where the checkpoint is."""
        entry = self._entry
        if entry is None or self._opened is None:
            return None
        if not entry.whole:
            return Copied(self._opened.path, "the checkpoint's path")
        return Copied(entry.whole, neutralised(entry.line.name.strip(), 40))

    def selection(self) -> Selection | None:
        """The checkpoint, or the member of the series the cursor is on."""
        if self._opened is None:
            return None
        path = self._entry.checkpoint if self._entry is not None and self._entry.checkpoint else self._opened.path
        return Selection("checkpoint", path, neutralised(path.rpartition("/")[2] or path, _LONGEST_LABEL), path)

    def headless_command(self) -> str | None:
        """What prints the overview."""
        return f"mscope inspect {shlex.quote(self._opened.path)}" if self._opened is not None else None

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Overview",
            "What headers and config say about the checkpoint; no value was read. Parameters are counted as stored, a tied tensor once. "
            "Enter opens a line with a triangle, reads a text that has no room, and opens a member of a series. "
            "f computes the fingerprint, which covers the values: equal fingerprints mean equal content.",
        )

    @property
    def _tree(self) -> EntryTree:
        return self.query_one(EntryTree)

    @property
    def _entry(self) -> Entry | None:
        node = self._tree.cursor_node if self.is_mounted else None
        return node.data if node is not None else None

    def _show_state(self) -> None:
        state, there = self.query_one("#overview-state", Static), self._opened is not None
        state.update(plain(self._error) if self._error is not None else "Reading headers ...")
        state.display, self._tree.display = not there, there
        if self._opened is not None:
            self._tree.fill(overview_entries(self._opened))

    def _put_fingerprint(self, value: str) -> None:
        for node in self._tree.root.children:
            if node.data is not None and node.data.is_fingerprint:
                node.data = fingerprint_entry(value)
                node.refresh()

    @work(thread=True, exclusive=True, exit_on_error=False, group="fingerprint")
    def _compute_fingerprint(self, checkpoint: OpenCheckpoint, path: str) -> None:
        with failure_told(lambda sentence: self.post_message(_FingerprintKnown(path, sentence)), "cannot be computed"):
            self.post_message(_FingerprintKnown(path, checkpoint.fingerprint))

    @on(_FingerprintKnown)
    def _fingerprint_known(self, event: _FingerprintKnown) -> None:
        event.stop()
        if self._opened is not None and self._opened.path == event.path:
            self._put_fingerprint(event.value)

    @work(thread=True, exit_on_error=False, group="overview")
    def _read_inside(self, opened: Opened | None, node: TreeNode[Entry], entry: Entry) -> None:
        with failure_told(lambda sentence: self.post_message(_InsideRead(opened, node, [], sentence)), "cannot be read"):
            self.post_message(_InsideRead(opened, node, *read_inside(entry)))

    @on(_InsideRead)
    def _inside_read(self, event: _InsideRead) -> None:
        event.stop()
        if event.opened is not self._opened:
            return  # its lines are gone
        said = event.error or "nothing in it"
        self._tree.put(event.node, event.entries or [Entry(Line(said), said)])

    @on(Tree.NodeExpanded)
    def _opened_entry(self, event: Tree.NodeExpanded[Entry]) -> None:
        event.stop()
        entry = event.node.data
        if entry is None or entry.inside is None or event.node.children:
            return
        if entry.reads_files:
            self._tree.put(event.node, [Entry(Line("reading ...", faint=True))])
            self._read_inside(self._opened, event.node, entry)
        else:
            self._tree.put(event.node, read_inside(entry)[0])

    @on(Tree.NodeHighlighted)
    def _highlighted(self, event: Tree.NodeHighlighted[Entry]) -> None:
        event.stop()
        self.post_message(Selected(self.selection()))

    @on(Tree.NodeSelected)
    def _selected(self, event: Tree.NodeSelected[Entry]) -> None:
        event.stop()
        entry = event.node.data
        if entry is None or entry.inside is not None:
            return
        if entry.checkpoint is not None:
            self.post_message(CheckpointOpened(entry.checkpoint))
        elif entry.whole and not (entry.whole in (entry.line.about, entry.line.name.strip()) and self._tree.shows_all(event.node)):
            from modelscope_app.tui.checkpoint.reader import Reader

            self.app.push_screen(Reader(entry.line.name.strip(), entry.whole))
