"""A tree of groups of tensors; the children of a group are made when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from modelscope_app.tui.checkpoint.fitted_tree import FittedTree, Line
from modelscope_app.tui.checkpoint.tensor_groups import Group, short_count


class GroupTree(FittedTree[Group]):
    """Groups of tensors; the children of one are made when it is opened."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Open", show=False)]

    def __init__(self, id: str) -> None:
        super().__init__("", id=id)
        self.show_root = False

    def fill(self, groups: Sequence[Group]) -> None:
        """Show these groups and nothing else."""
        self.clear()
        self._add(self.root, groups)
        self.root.expand()
        self.cursor_line = 0 if groups else -1

    def line(self, node: TreeNode[Group]) -> Line:
        """Label and what is said of it: dtype and shape of tensors that are alike, else the number of parameters."""
        group = node.data
        if group is None:
            return Line("")
        if group.tensor is not None:
            return Line(group.label, group.likeness)
        if group.is_pattern and not group.opened_stars:
            times = "" if group.label.startswith(f"{len(group.members):,} x ") else f" x{len(group.members):,}"
            return Line(group.label, group.likeness + times)
        return Line(group.label, short_count(group.parameters))

    def open_to(self, name: str) -> bool:
        """Open whatever the tensor of this name lies in and put the cursor on it; False where there is none."""
        node = self.root
        while True:
            self._make_children(node)
            inside = next((child for child in node.children if child.data is not None and _holds(child.data, name)), None)
            if inside is None or inside.data is None:
                return False
            if inside.data.tensor is not None:
                self.call_after_refresh(self.move_cursor, inside)
                return True
            inside.expand()
            node = inside

    @on(Tree.NodeExpanded)
    def _was_opened(self, event: Tree.NodeExpanded[Group]) -> None:
        self._make_children(event.node)

    def _make_children(self, node: TreeNode[Group]) -> None:
        if node.data is not None and not node.children:
            self._add(node, node.data.children())

    def _add(self, node: TreeNode[Group], groups: Sequence[Group]) -> None:
        for group in groups:
            node.add("", group, allow_expand=group.tensor is None)


def _holds(group: Group, name: str) -> bool:
    return any(member.header.name == name for member in group.members)
