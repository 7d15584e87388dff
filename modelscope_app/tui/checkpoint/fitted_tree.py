"""A tree whose lines fit its width: the name to the left, its middle left out where it is long, what is said of it to the right."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple, TypeVar

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from modelscope_app.api import neutralised
from modelscope_app.rendering.marks import BLOCKS

Data = TypeVar("Data")

_LONGEST_LINE = 400
"""Characters of one text that are looked at; no terminal is wider."""
_NARROWEST_NAME = 18


class Line(NamedTuple):
    """What one line says. Both texts may be untrusted; they are neutralised when drawn."""

    name: str
    about: str = ""
    """Stands at the right end; loses its first words, and in the end all, where there is no room beside the name."""
    label_cells: int = 0
    """With a number here, `about` begins in that column, as in a list of facts, and is cut instead of the name."""
    strong: bool = False
    faint: bool = False
    is_sentence: bool = False
    """Of `about`: it keeps its beginning, as far as there is room beside the name."""


class FittedTree(Tree[Data]):
    """Asks for a `Line` per node. `right` opens a node and `left` closes it or goes to the one above."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right", "open_node", "Open", show=False),
        Binding("left", "close_node", "Close", show=False),
    ]
    DEFAULT_CSS = """
    FittedTree {
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
        overflow-x: hidden;
        background: transparent;
    }
    """

    guide_depth = 2

    @abstractmethod
    def line(self, node: TreeNode[Data]) -> Line:
        """What the node's line says."""

    def render_label(self, node: TreeNode[Data], base_style: Style, style: Style) -> Text:
        """The line in the room there is."""
        line = self.line(node)
        icon = "" if not node.allow_expand else self.ICON_NODE_EXPANDED if node.is_expanded else self.ICON_NODE
        room = self._room(node)
        text = Text(icon, style=base_style)
        for part, part_style in self._fitted(line, room):
            text.append(part, style=part_style)
        text.stylize(style)
        if line.faint:
            text.stylize("dim")
        return text

    def get_label_width(self, node: TreeNode[Data]) -> int:
        """No line is wider than the tree."""
        return 0

    def action_open_node(self) -> None:
        """Open the node the cursor is on, or go to its first child."""
        node = self.cursor_node
        if node is None or not node.allow_expand:
            return
        if not node.is_expanded:
            node.expand()
        elif node.children:
            self.move_cursor(node.children[0])

    def action_close_node(self) -> None:
        """Close the node the cursor is on, or go to the one it lies in."""
        node = self.cursor_node
        if node is None:
            return
        if node.allow_expand and node.is_expanded:
            node.collapse()
        elif node.parent is not None and node.parent is not self.root:
            self.move_cursor(node.parent)

    def shows_all(self, node: TreeNode[Data]) -> bool:
        """Whether nothing of the node's line had to be left out."""
        line = self.line(node)
        shown = "".join(part for part, _ in self._fitted(line, self._room(node)))
        return neutralised(line.name) in shown and neutralised(line.about) in shown

    def _room(self, node: TreeNode[Data]) -> int:
        """Columns for the line's texts."""
        return self.scrollable_content_region.width - self._guide_cells(node) - (len(self.ICON_NODE) if node.allow_expand else 0)

    def _guide_cells(self, node: TreeNode[Data]) -> int:
        depth, above = 0, node.parent
        while above is not None:
            depth, above = depth + 1, above.parent
        return max(0, depth - (0 if self.show_root else 1)) * self.guide_depth

    def _fitted(self, line: Line, room: int) -> list[tuple[str, str]]:
        name_style = "bold" if line.strong else ""
        name = neutralised(line.name, _LONGEST_LINE)
        about = neutralised(line.about, _LONGEST_LINE)
        if line.label_cells:
            cells = max(1, min(line.label_cells, room // 2))
            label = BLOCKS.cut(name, cells - 1)
            head = label + " " * (cells - cell_len(label))
            return [(head, name_style), (_cut_end(about, room - cells).ljust(room - cells), "")]
        needed = 1 + (cell_len(name) if cell_len(name) <= room else min(_NARROWEST_NAME, cell_len(name)))
        if line.is_sentence:
            about = _cut_end(about, max(0, room - needed - 1))
        while about and room - cell_len(about) < needed:
            about = about.partition(" ")[2]
        beside = cell_len(about) + 1 if about else 0
        name = BLOCKS.cut(name, max(1, room - beside))
        space = " " * max(0, room - cell_len(name) - cell_len(about))
        return [(name, name_style), (space, ""), (about, "dim")]


def _cut_end(text: str, cells: int) -> str:
    if cell_len(text) <= cells:
        return text
    shown = Text(text)
    shown.truncate(cells, overflow="ellipsis")
    return shown.plain
