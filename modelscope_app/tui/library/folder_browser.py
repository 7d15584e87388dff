"""Folders, with what is a checkpoint or a series marked as such.

A folder is listed when it is opened, and a line is looked into when it is first on the screen: both in threads, each once.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, Static, Tree
from textual.widgets.tree import TreeNode
from textual.worker import get_current_worker

from modelscope_app.api import BadInput, neutralised
from modelscope_app.tui.checkpoint.fitted_tree import FittedTree, Line
from modelscope_app.tui.library.places import Place, cached_places, glanced, places_around, places_in
from modelscope_app.tui.messages import CheckpointOpened, RunOpened, Selected
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.plain import plain
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.thread_work import failure_told

if TYPE_CHECKING:
    from modelscope_app.checkpoints.glance import Glance

_LOOKED_AT_TOGETHER = 60


class _PlacesRead(Message):
    """A folder was listed."""

    def __init__(self, visit: int, node: TreeNode[Place], places: Sequence[Place]) -> None:
        self.visit, self.node, self.places = visit, node, places
        super().__init__()


class _Glanced(Message):
    """What some lines are."""

    def __init__(self, glances: Mapping[str, Glance | None]) -> None:
        self.glances = glances
        super().__init__()


class _PathLookedAt(Message):
    """What a typed path is: a checkpoint, a run or a folder."""

    def __init__(self, visit: int, typed: str, path: Path, is_run: bool, glance: Glance | None) -> None:
        self.visit, self.typed, self.path, self.is_run, self.glance = visit, typed, path, is_run, glance
        super().__init__()


class _PathRefused(Message):
    """Why a typed path cannot be opened."""

    def __init__(self, visit: int, sentence: str) -> None:
        self.visit, self.sentence = visit, sentence
        super().__init__()


class PlaceTree(FittedTree[Place]):
    """Places; those on the screen are looked into."""

    auto_expand = False

    def __init__(self, id: str) -> None:
        super().__init__("", id=id)
        self.show_root = False
        self.glances: dict[str, Glance | None] = {}
        self._unseen: dict[str, None] = {}

    def line(self, node: TreeNode[Place]) -> Line:
        """The name; of a checkpoint what it is. Being drawn is what makes a line looked into."""
        place = node.data
        if place is None:
            return Line("")
        if place.kind == "note":
            return Line(place.name, faint=True)
        if place.kind in ("up", "cache"):
            return Line(place.name, "the folder above" if place.kind == "up" else "models downloaded with hf")
        if place.path not in self.glances:
            self._look_soon(place.path)
            return Line(place.name)
        glance = self.glances[place.path]
        if glance is None:
            return Line(place.name)
        mark = "! " if glance.kind in ("damaged", "gone") else "+ " if glance.kind == "series" else "* "
        return Line(mark + place.name, glance.words, strong=True, is_sentence=mark == "! ")

    def _look_soon(self, path: str) -> None:
        if not self._unseen:
            self.call_after_refresh(self._look)
        self._unseen[path] = None

    def _look(self) -> None:
        paths, self._unseen = [path for path in self._unseen if path not in self.glances], {}
        if paths:
            self._glance(paths)

    @work(thread=True, exit_on_error=False, group="glances")
    def _glance(self, paths: Sequence[str]) -> None:
        for at in range(0, len(paths), _LOOKED_AT_TOGETHER):
            self.post_message(_Glanced({path: glanced(path) for path in paths[at : at + _LOOKED_AT_TOGETHER]}))

    @on(_Glanced)
    def _were_glanced(self, event: _Glanced) -> None:
        event.stop()
        self.glances.update(event.glances)
        self._updates += 1
        self.refresh()


class FolderBrowser(Vertical):
    """A line to type a path, and the tree of folders below one folder."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "type_path", "Type a path", key_display="/"),
        Binding("backspace", "up", "Folder above", show=False),
        Binding("escape", "leave_path", "Back to the folders", show=False),
        Binding("down", "leave_path", "To the folders", show=False),
    ]
    DEFAULT_CSS = """
    FolderBrowser {
        & > #browser-path { border: none; height: 1; padding: 0 1; background: $boost; }
        & > #browser-said { height: auto; max-height: 4; padding: 0 1; color: $text-muted; }
        & > PlaceTree { height: 1fr; padding: 0 0 0 1; }
    }
    """

    def __init__(self, folder: str | Path | None = None, *, id: str | None = None) -> None:
        """Begins in `folder`, else in the working folder."""
        super().__init__(id=id)
        self._folder = str(folder) if folder is not None else _working_folder()
        self._came_from: str | None = None
        """The folder to put the cursor on, once the one above it is listed."""
        self._visit = 0
        """Counts the folders shown, so that what was asked in an earlier one is known when it is answered."""

    def compose(self) -> ComposeResult:
        """The path, what is said of it, the folders."""
        from modelscope_app.tui.forms.completion import PathSuggester

        yield Input(
            placeholder="/ to type a path or hf:org/name; the right arrow completes it",
            suggester=PathSuggester("checkpoint"),
            id="browser-path",
            compact=True,
            select_on_focus=False,
        )
        yield Static(id="browser-said")
        yield PlaceTree("browser-places")

    def on_mount(self) -> None:
        """List the first folder."""
        self._show_folder(self._folder)

    def action_type_path(self) -> None:
        """To the line for a path, which begins with the folder shown."""
        entry = self.query_one(Input)
        if not entry.value:
            entry.value = self._folder.rstrip("/") + "/"
            entry.cursor_position = len(entry.value)
        entry.focus()

    def action_leave_path(self) -> None:
        """Back to the folders."""
        self._tree.focus()

    def action_up(self) -> None:
        """Show the folder above."""
        folder = Path(self._folder)
        self._show_folder(str(folder.parent), came_from=str(folder))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Some keys mean something else while a path is typed."""
        is_typing = isinstance(self.app.focused, Input)
        if action == "leave_path":
            return is_typing
        return not is_typing

    def focus_list(self) -> None:
        """Put the focus on the folders."""
        self._tree.focus()

    def copied(self) -> Copied | None:
        """The path of the line."""
        place = self._place
        return Copied(place.path, "the path") if place is not None and place.kind in ("folder", "file", "cached") else None

    def selection(self) -> Selection | None:
        """The checkpoint the cursor is on."""
        place = self._place
        if place is None or not self._can_open(place):
            return None
        return Selection("checkpoint", place.path, neutralised(place.name.rstrip("/"), 80), place.path)

    def headless_command(self) -> str | None:
        """What prints its overview."""
        selection = self.selection()
        return f"mscope inspect {shlex.quote(selection.value)}" if selection is not None else None

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Folders",
            "A * marks a checkpoint and a + a series of checkpoints, with architecture, dtype and size from config and headers; ! marks "
            "one that cannot be opened, and says why. Enter opens what is marked and unfolds any other folder; the right arrow unfolds "
            "every folder. Backspace goes to the folder above. / types a path, hf:org/name or a run folder.",
        )

    @property
    def _tree(self) -> PlaceTree:
        return self.query_one(PlaceTree)

    @property
    def _place(self) -> Place | None:
        node = self._tree.cursor_node if self.is_mounted else None
        return node.data if node is not None else None

    def _can_open(self, place: Place) -> bool:
        glance = self._tree.glances.get(place.path)
        return place.kind == "cached" or (glance is not None and glance.kind in ("checkpoint", "series"))

    def _say(self, text: str) -> None:
        self.query_one("#browser-said", Static).update(plain(text, 600))

    def _show_folder(self, folder: str, came_from: str | None = None) -> None:
        self._folder, self._came_from = folder, came_from
        self._visit += 1
        self._say(folder)
        self._tree.clear()
        self._tree.root.data = Place("folder", folder)
        self._tree.root.expand()
        self._tree.root.add("", Place("note", "reading ..."), allow_expand=False)
        self._list(self._visit, self._tree.root, self._tree.root.data)

    @work(thread=True, exit_on_error=False, group="places")
    def _list(self, visit: int, node: TreeNode[Place], place: Place) -> None:
        def tell(places: Sequence[Place]) -> None:
            self.post_message(_PlacesRead(visit, node, places))

        with failure_told(lambda sentence: tell([Place("note", sentence)]), "cannot be listed"):
            if place.kind == "cache":
                tell(cached_places())
            else:
                tell(places_around(place.path) if node.is_root else places_in(place.path))

    @on(_PlacesRead)
    def _places_read(self, event: _PlacesRead) -> None:
        event.stop()
        if event.visit != self._visit:
            return  # its lines are gone
        event.node.remove_children()
        places = list(event.places)
        if event.node.is_root and self._came_from is not None and all(place.path != self._came_from for place in places):
            places.append(Place("folder", self._came_from))  # of a long folder only a part is listed
        for place in places:
            event.node.add("", place, allow_expand=place.kind in ("folder", "cache"))
        if event.node.is_root:
            first = 1 if len(places) > 1 and places[0].kind == "up" else 0
            lines = (at for at, place in enumerate(places) if place.kind == "folder" and place.path == self._came_from)
            self._tree.cursor_line = next(lines, first)
            self._tree.scroll_to_line(self._tree.cursor_line, animate=False)

    @on(Tree.NodeExpanded)
    def _unfolded(self, event: Tree.NodeExpanded[Place]) -> None:
        event.stop()
        if event.node.data is not None and not event.node.is_root and not event.node.children:
            event.node.add("", Place("note", "reading ..."), allow_expand=False)
            self._list(self._visit, event.node, event.node.data)

    @on(Tree.NodeSelected)
    def _chosen(self, event: Tree.NodeSelected[Place]) -> None:
        event.stop()
        place = event.node.data
        if place is None or place.kind == "note":
            return
        glance = self._tree.glances.get(place.path)
        if place.kind == "up":
            self.action_up()
        elif self._can_open(place):
            self.post_message(CheckpointOpened(place.path))
        elif glance is not None and glance.kind in ("damaged", "gone"):
            self._say(glance.error)
        elif event.node.allow_expand:
            event.node.toggle()
        elif place.kind == "file":
            self.post_message(CheckpointOpened(place.path))

    @on(Tree.NodeHighlighted)
    def _highlighted(self, event: Tree.NodeHighlighted[Place]) -> None:
        event.stop()
        self.post_message(Selected(self.selection()))

    @on(Input.Changed)
    def _typing(self, event: Input.Changed) -> None:
        event.stop()

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        event.stop()
        typed = _restarted(event.value.strip(), self._folder)
        if typed:
            self._say("looking ...")
            self._look_at(self._visit, self._folder, typed)

    @work(thread=True, exclusive=True, exit_on_error=False, group="typed")
    def _look_at(self, visit: int, folder: str, typed: str) -> None:
        from modelscope_app.checkpoints.finding import absolute

        worker = get_current_worker()

        def tell(message: Message) -> None:
            if not worker.is_cancelled:  # else another path was typed since
                self.post_message(message)

        with failure_told(lambda sentence: tell(_PathRefused(visit, sentence)), "it cannot be opened"):
            path = absolute(typed if typed.startswith(("hf:", "~")) else os.path.join(folder, typed))  # noqa: PTH118
            is_run, found, is_folder = os.path.isfile(path / "job.json"), glanced(path), os.path.isdir(path)  # noqa: PTH112, PTH113
            if not is_run and not is_folder and found is not None and found.kind in ("damaged", "gone"):
                raise BadInput(found.error)
            if not is_run and not is_folder and found is None:
                raise BadInput(f"{path} is no folder and no safetensors file")
            tell(_PathLookedAt(visit, typed, path, is_run, found))

    @on(_PathRefused)
    def _path_refused(self, event: _PathRefused) -> None:
        event.stop()
        if event.visit == self._visit:
            self._say(event.sentence)

    @on(_PathLookedAt)
    def _path_looked_at(self, event: _PathLookedAt) -> None:
        event.stop()
        if event.visit != self._visit:
            return  # somebody went to another folder meanwhile
        if not (self.is_on_screen and self.screen.is_current):
            self._say(self._folder)  # or to another page
        elif event.is_run:
            self.post_message(RunOpened(event.path))
        elif event.glance is not None and event.glance.kind in ("checkpoint", "series"):
            self.post_message(CheckpointOpened(event.typed if event.typed.startswith("hf:") else str(event.path)))
        else:
            self._show_folder(str(event.path))
            if event.glance is not None:
                self._say(event.glance.error)
            self._tree.focus()


def _restarted(typed: str, folder: str) -> str:
    """What was typed or pasted behind the folder that stood there, where that is a path from the root, from home, or in the cache.

    >>> _restarted("/models//data/x", "/models"), _restarted("/models/~/x", "/models"), _restarted("/models/hf:org/name", "/models")
    ('/data/x', '~/x', 'hf:org/name')
    >>> _restarted("/models/a//b", "/models"), _restarted("/other//x", "/models")
    ('/models/a//b', '/other//x')
    """
    before, found, behind = typed.partition(folder.rstrip("/") + "/")
    return behind if found and not before and behind.startswith(("/", "~", "hf:")) else typed


def _working_folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - Path.cwd is the same
    except OSError:  # it was deleted
        return str(Path.home())
