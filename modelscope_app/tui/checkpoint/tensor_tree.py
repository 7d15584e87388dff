"""The tensors of a checkpoint: repeated layers folded, opened on demand, searched while typing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, Static, Tree

from modelscope_app.api import neutralised
from modelscope_app.api.tensor_header import TensorHeader
from modelscope_app.rendering.wording import count_text
from modelscope_app.tui.checkpoint.group_tree import GroupTree
from modelscope_app.tui.checkpoint.opening import Opened
from modelscope_app.tui.checkpoint.tensor_groups import Group, Part, likeness
from modelscope_app.tui.messages import Selected
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.plain import plain
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.thread_work import failure_told

MOST_MATCHES = 500
"""Lines that a search shows; the count says how many more there are."""
_LONGEST_LABEL = 80
_GROUPED_AT_ONCE = 2000
"""Of more tensors the first level is made in a thread, after the first paint."""
_GROUPED_AFTER_SECONDS = 0.1
_LONGEST_SEARCHED = 400
_NARROWEST_NAME = 12
_BESIDE_NAME = 4
"""Columns of a line that are neither name nor what is said of it."""


class TensorChosen(Message):
    """Show the detail of this tensor."""

    def __init__(self, header: TensorHeader, checkpoint: str) -> None:
        """`checkpoint` is the absolute path of the checkpoint it is in; of a series, the member whose tensors the tree shows."""
        self.header = header
        self.checkpoint = checkpoint
        super().__init__()


class _Grouped(Message):
    """The first level of a large tree is made."""

    def __init__(self, opened: Opened, error: str | None = None) -> None:
        self.opened, self.error = opened, error
        super().__init__()


class TensorTree(Vertical):
    """The tree, and above it the search. Posts `Selected` where the cursor goes and `TensorChosen` on enter."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search tensors", key_display="/"),
        Binding("escape", "leave_search", "Back to the tree", show=False),
        Binding("down", "to_matches", "To the matches", show=False),
    ]
    DEFAULT_CSS = """
    TensorTree {
        & > Input { border: none; height: 1; padding: 0 1; background: $boost; }
        & > #tensor-count, & > #tensor-pattern { height: 1; padding: 0 1; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
        & > #tensor-state { padding: 0 1; height: 1fr; }
        & > GroupTree { height: 1fr; padding: 0 0 0 1; }
    }
    """

    def __init__(self, opened: Opened | None = None, *, id: str | None = None, classes: str | None = None) -> None:
        """Without `opened` it says that headers are being read, until `show` or `fail` is called."""
        super().__init__(id=id, classes=classes)
        self._opened = opened
        self._error: str | None = None
        self._names: tuple[list[str], list[TensorHeader]] | None = None
        self._searching = False

    def compose(self) -> ComposeResult:
        """A line that counts, and the tree or what stands in its place."""
        yield Static(id="tensor-count")
        yield Static(id="tensor-pattern")
        yield Static(id="tensor-state")
        yield GroupTree("tensor-groups")
        yield GroupTree("tensor-matches")

    def on_mount(self) -> None:
        """Show what is known."""
        self.query_one("#tensor-matches").display = False
        self._show_state()

    def show(self, opened: Opened) -> None:
        """Show the tensors of a checkpoint, or of the first member of a series."""
        self._opened, self._error, self._names = opened, None, None
        if self.is_mounted:
            self._show_state()

    def fail(self, sentence: str) -> None:
        """Say why there is nothing to show."""
        self._opened, self._error = None, sentence
        if self.is_mounted:
            self._show_state()

    def reveal(self, name: str) -> bool:
        """Leave the search, open the tree down to the tensor of this name and put the cursor on it; False where there is none."""
        if self._searching:
            self.action_leave_search()
        if self._opened is not None and not self._tree.root.children:
            self._tree.fill(self._opened.groups)
        return self._tree.open_to(name)

    @property
    def tensor(self) -> TensorHeader | None:
        """The tensor that the cursor is on."""
        node = (self._matches if self._searching else self._tree).cursor_node
        return node.data.tensor if node is not None and node.data is not None else None

    def action_search(self) -> None:
        """Ask for text to look for."""
        if self._opened is None or not self._opened.headers:
            return
        inputs = self.query(Input)
        if inputs:
            inputs.first().focus()
            return
        self._searching = True
        search = Input(placeholder="part of a name; several words all have to occur", id="tensor-search", compact=True)
        self.mount(search, before=0)
        search.focus()
        self._look_for("")

    def action_leave_search(self) -> None:
        """Back to the tree as it was."""
        self._searching = False
        self.query(Input).remove()
        self._matches.display, self._tree.display = False, True
        self._say_count()
        self._tree.focus()

    def action_to_matches(self) -> None:
        """From the search to its matches."""
        self._matches.focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Escape and down belong to the search only while there is one."""
        if action == "leave_search":
            return self._searching
        if action == "to_matches":
            return self._searching and isinstance(self.app.focused, Input)
        return True

    def focus_tree(self) -> None:
        """Put the focus where the cursor is."""
        (self._matches if self._searching else self._tree).focus()

    def copied(self) -> Copied | None:
        """The name of the tensor, whole."""
        return Copied(self.tensor.name, "the tensor's name") if self.tensor is not None else None

    def selection(self) -> Selection | None:
        """The tensor the cursor is on, else the checkpoint."""
        if self._opened is None:
            return None
        path = self._opened.path
        if self.tensor is None:
            return Selection("checkpoint", path, neutralised(self._opened.name, _LONGEST_LABEL), path)
        return Selection("tensor", self.tensor.name, neutralised(self.tensor.name, _LONGEST_LABEL), self._opened.tensors_in)

    def headless_command(self) -> str | None:
        """What prints the tensors."""
        return f"mscope inspect {shlex.quote(self._opened.path)} --tensors" if self._opened is not None else None

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Tensors",
            "Every tensor of the checkpoint, from its headers. Layers that repeat are folded into one line, as 30 x model.layers.*; "
            "open it to see what is inside one layer, and open a tensor in there to see it in every layer. The right end says dtype and "
            "shape, or how many parameters. x30 means that 30 tensors share this name but for the layer's number. "
            "Enter shows a tensor, / searches by parts of the name, escape goes back to the tree.",
        )

    @property
    def _tree(self) -> GroupTree:
        return self.query_one("#tensor-groups", GroupTree)

    @property
    def _count(self) -> Static:
        return self.query_one("#tensor-count", Static)

    @property
    def _pattern(self) -> Static:
        return self.query_one("#tensor-pattern", Static)

    @property
    def _matches(self) -> GroupTree:
        return self.query_one("#tensor-matches", GroupTree)

    def _show_state(self) -> None:
        state = self.query_one("#tensor-state", Static)
        if self._error is not None:
            state.update(plain(self._error))
        elif self._opened is None:
            state.update("Reading headers ...")
        elif not self._opened.headers:
            state.update("There is no tensor in it.")
        there = self._opened is not None and bool(self._opened.headers)
        state.display, self._tree.display = not there, there
        self._say_count()
        if self._opened is None:
            return
        if len(self._opened.headers) <= _GROUPED_AT_ONCE:
            self._tree.fill(self._opened.groups)
        else:
            self._tree.fill(())
            self.set_timer(_GROUPED_AFTER_SECONDS, partial(self._group, self._opened))

    @work(thread=True, exclusive=True, exit_on_error=False, group="groups")
    def _group(self, opened: Opened) -> None:
        with failure_told(lambda sentence: self.post_message(_Grouped(opened, sentence)), "the tensors cannot be grouped"):
            _ = opened.groups
            self.post_message(_Grouped(opened))

    @on(_Grouped)
    def _was_grouped(self, event: _Grouped) -> None:
        event.stop()
        if event.opened is not self._opened:
            return
        if event.error is not None:
            self.fail(event.error)
        elif not self._tree.root.children:
            self._tree.fill(event.opened.groups)

    def _say_count(self) -> None:
        self._pattern.display = False
        self._count.display = self._opened is not None
        if self._opened is not None:
            self._count.update(count_text(len(self._opened.headers), "tensor"))

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if self._searching:
            self._look_for(event.value)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._matches.focus()
        if len(self._matches.root.children) == 1:
            self._matches.action_select_cursor()

    def _look_for(self, text: str) -> None:
        names, headers = self._searchable()
        words = text.lower().split()
        found = [at for at, name in enumerate(names) if all(word in name for word in words)] if words else []
        shown = [headers[at] for at in found[:MOST_MATCHES]]
        labels, pattern = self._labels(shown)
        self._matches.fill([Group(label, (Part((header.name,), header),), 1, ()) for label, header in zip(labels, shown, strict=True)])
        self._matches.display, self._tree.display = bool(words), not words
        if not words:
            self._say_count()
            return
        cut = f", {MOST_MATCHES} shown" if len(found) > MOST_MATCHES else ""
        self._count.update(f"{len(found):,} of {len(names):,} tensors{cut}")
        self._pattern.update(plain(f"* in {pattern}", _LONGEST_LABEL))
        self._pattern.display = bool(pattern)

    def _labels(self, headers: Sequence[TensorHeader]) -> tuple[list[str], str]:
        """Names of tensors in the room there is, without what they all begin and end with where they are too long."""
        from modelscope_app.rendering.marks import BLOCKS
        from modelscope_app.rendering.naming import told_apart

        names = [neutralised(header.name, _LONGEST_SEARCHED) for header in headers]
        widest = max((len(likeness(header)) for header in headers), default=0)
        room = max(_NARROWEST_NAME, self.size.width - widest - _BESIDE_NAME)
        return told_apart(names, room, BLOCKS.cut) if names else ([], "")

    def _searchable(self) -> tuple[list[str], list[TensorHeader]]:
        """Names in lower case and their headers, in natural order; made at the first search."""
        if self._names is None:
            from modelscope_app.checkpoints.natural_order import natural_key

            headers = sorted(self._opened.headers if self._opened is not None else (), key=lambda header: natural_key(header.name))
            self._names = ([header.name.lower() for header in headers], headers)
        return self._names

    @on(Tree.NodeHighlighted)
    def _highlighted(self, event: Tree.NodeHighlighted[Group]) -> None:
        event.stop()
        if event.node.tree.display:
            self.post_message(Selected(self.selection()))

    @on(Tree.NodeSelected)
    def _selected(self, event: Tree.NodeSelected[Group]) -> None:
        event.stop()
        if self._opened is not None and event.node.data is not None and event.node.data.tensor is not None:
            self.post_message(TensorChosen(event.node.data.tensor, self._opened.tensors_in))
