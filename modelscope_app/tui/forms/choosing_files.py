"""Choosing a file, a folder or a checkpoint from the disk: a tree of what fits, and a line to type in that completes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import DirectoryTree, Static

from modelscope_app.tui.forms.choosing import Box
from modelscope_app.tui.forms.completion import PathSuggester, is_typable, suffixes
from modelscope_app.tui.forms.fields import TextField
from modelscope_app.tui.on_screen import Explanation
from modelscope_app.tui.plain import plain

_MOST_NAMES = 5000
"""More in one folder than that are not listed; they can be typed."""
_KEYS = "enter opens a folder and chooses a file, F2 chooses what the cursor is on, ctrl+u goes up, tab to type"


class FittingFiles(DirectoryTree):
    """Folders, and files that fit. Hidden ones, and those with names that cannot be typed, are left out."""

    ICON_NODE = "▸ "
    ICON_NODE_EXPANDED = "▾ "
    ICON_FILE = "  "

    def __init__(self, folder: Path, pick: str) -> None:
        super().__init__(folder)
        self._suffixes = suffixes(pick)

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        """Called in a thread."""
        kept = 0
        for path in paths:
            if path.name.startswith(".") or not is_typable(path.name):
                continue
            if self._suffixes is None or path.name.endswith(self._suffixes) or self._safe_is_dir(path):
                yield path
                kept += 1
                if kept >= _MOST_NAMES:
                    return


class FileChooser(Box):
    """Gives back the path that was chosen or typed; None where nothing was."""

    DEFAULT_CSS = """
    FileChooser > Vertical { height: 90%; }
    FileChooser FittingFiles { height: 1fr; background: transparent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back"),
        Binding("f2", "choose_here", "Choose this", priority=True),
        Binding("ctrl+u", "up", "Folder above", priority=True),
    ]

    def __init__(self, pick: str, value: str = "") -> None:
        """Begins in the folder of `value`, or in the working folder."""
        super().__init__()
        self._pick = pick
        self._value = value

    def compose(self) -> ComposeResult:
        what = {"checkpoint": "a checkpoint", "series": "a series", "data-file": "a data file"}.get(self._pick, "a file")
        with Vertical():
            yield Static(plain(f"Choose {what}"), classes="title")
            yield TextField("", "or type a path", PathSuggester(self._pick))
            yield FittingFiles(_folder_of(self._value), self._pick)
            yield Static(
                plain("enter opens a folder and chooses a file, F2 chooses what the cursor is on, ctrl+u goes up, tab to type"),
                classes="state",
            )

    def on_mount(self) -> None:
        """The tree has the cursor."""
        self.query_one(FittingFiles).focus()

    @on(DirectoryTree.FileSelected)
    def _file(self, event: DirectoryTree.FileSelected) -> None:
        event.stop()
        if self._pick != "series":
            self.dismiss(str(event.path))

    @on(DirectoryTree.DirectorySelected)
    async def _directory(self, event: DirectoryTree.DirectorySelected) -> None:
        event.stop()
        is_root = event.node is self.query_one(FittingFiles).root
        if self._pick == "checkpoint" and not is_root and await asyncio.to_thread(_holds_safetensors, event.path):
            self.dismiss(str(event.path))

    @on(TextField.Submitted)
    async def _typed(self, event: TextField.Submitted) -> None:
        event.stop()
        text = event.value.strip()
        if text and not text.startswith("hf:") and self._pick != "series" and await asyncio.to_thread(_is_plain_folder, text):
            self.query_one(FittingFiles).path = Path(text).expanduser()
            self.query_one(FittingFiles).focus()
        elif text:
            self.dismiss(text)

    def action_choose_here(self) -> None:
        """Choose what the cursor is on, also a folder."""
        node = self.query_one(FittingFiles).cursor_node
        if node is not None and node.data is not None:
            self.dismiss(str(node.data.path))

    def action_up(self) -> None:
        """Show the folder above."""
        tree = self.query_one(FittingFiles)
        tree.path = Path(tree.path).absolute().parent

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Choosing a file",
            "Folders and files that fit. Enter opens a folder, and chooses a file or a folder that is a checkpoint. In the line above "
            "the tree a path can be typed; the right arrow takes what is offered.",
        )


def _folder_of(value: str) -> Path:
    """Where to begin: the folder above what is there already."""
    try:
        path = Path(value).expanduser().absolute() if value and not value.startswith("hf:") else Path.cwd()
        while not path.is_dir() or (value and path == Path(value).expanduser().absolute() and path.parent != path):
            path = path.parent
            value = ""
    except (OSError, RuntimeError, ValueError):
        return Path.home()
    return path


def _holds_safetensors(folder: Path) -> bool:
    try:
        return any(path.name.endswith(".safetensors") for path in folder.iterdir())
    except OSError:
        return False


def _is_plain_folder(text: str) -> bool:
    """A folder that is no checkpoint, so one to look into."""
    try:
        path = Path(text).expanduser()
        return path.is_dir() and not _holds_safetensors(path)
    except (OSError, RuntimeError, ValueError):
        return False
