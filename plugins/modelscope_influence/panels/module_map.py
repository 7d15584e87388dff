"""What each module contributes to a pair, layers downwards and kinds across: a sign and a shade, and numbers where they are asked for."""

from __future__ import annotations

import json
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Size
from textual.reactive import var
from textual.strip import Strip

from modelscope_influence.panels.insides import ModuleScores
from modelscope_influence.panels.scored_cells import CLASSES, CSS, CellsView, fitted, level_of, number_text, sign_and_shade

HEADER = 2
"""Lines of names: what a kind lies in, and its own."""
_LAYER_WIDTH, _NARROWEST, _NUMBER_WIDTH = 7, 5, 12


class ModuleMap(CellsView, inherit_bindings=False):
    """The map; the cursor is on a module."""

    COMPONENT_CLASSES: ClassVar[set[str]] = set(CLASSES)
    DEFAULT_CSS = CSS.format(name="ModuleMap", across="auto")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1, 0)", "Up", show=False),
        Binding("down", "move(1, 0)", "Down", show=False),
        Binding("left", "move(0, -1)", "Left", show=False),
        Binding("right", "move(0, 1)", "Right", show=False),
        Binding("pageup", "move(-10, 0)", "Page up", show=False),
        Binding("pagedown", "move(10, 0)", "Page down", show=False),
        Binding("home", "move(-1000000, 0)", "First layer", show=False),
        Binding("end", "move(1000000, 0)", "Last layer", show=False),
    ]

    scores: var[ModuleScores | None] = var(None)
    with_numbers: var[bool] = var(False)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.row, self.column = 0, 0

    def watch_scores(self) -> None:
        """Those of another pair."""
        self._arrange()

    def watch_with_numbers(self) -> None:
        """Wider cells."""
        self._arrange()

    def on_resize(self, event: Resize) -> None:
        """Wider or narrower cells."""
        self._arrange()

    @property
    def here(self) -> tuple[str, float | None] | None:
        """Name and score of the module under the cursor; None where there is none."""
        scores = self.scores
        if scores is None or self.row >= len(scores.layers) or self.column >= len(scores.kinds):
            return None
        return scores.cells.get((scores.layers[self.row], scores.kinds[self.column]))

    def readout(self) -> str:
        """The module under the cursor."""
        here = self.here
        return "no module here" if here is None else f"{here[0]}  {number_text(here[1], 6)}"

    def copied(self) -> str | None:
        """For `y`: that module and its score with every digit, as JSON."""
        here = self.here
        return None if here is None else json.dumps({"module": here[0], "score": here[1]})

    def legend(self) -> str:
        """Of the shades."""
        return "" if self.scores is None else f"by module, █ = {number_text(self.scores.reach, 3)}"

    def action_move(self, rows: int, columns: int) -> None:
        """To another module."""
        if self.scores is None:
            return
        row = min(max(self.row + rows, 0), len(self.scores.layers) - 1)
        column = min(max(self.column + columns, 0), len(self.scores.kinds) - 1)
        if (row, column) != (self.row, self.column):
            self.row, self.column = row, column
            self._show_cursor()

    def on_click(self, event: Click) -> None:
        """The module that was clicked."""
        if event.y >= HEADER and event.x >= _LAYER_WIDTH:
            column = (event.x - _LAYER_WIDTH) // self._cell + self._first
            self.action_move(event.y - HEADER + round(self.scroll_offset.y) - self.row, column - self.column)

    def render_line(self, y: int) -> Strip:
        """A line of names, or a layer."""
        base, width, scores = self.rich_style, self.scrollable_content_region.width, self.scores
        if scores is None:
            return Strip.blank(width, base)
        if y < HEADER:
            return Strip([Segment(fitted(self._header(scores, y), width), base + self.style_of("muted"))])
        row = y - HEADER + round(self.scroll_offset.y)
        if row >= len(scores.layers):
            return Strip.blank(width, base)
        layer, reach = scores.layers[row], scores.reach
        segments = [Segment(fitted(layer.rjust(_LAYER_WIDTH - 2), _LAYER_WIDTH), base + self.style_of("muted"))]
        for column, kind in enumerate(scores.kinds[self._first :], start=self._first):
            is_here = self.has_focus and (row, column) == (self.row, self.column)
            segments.append(self._segment(scores.cells.get((layer, kind)), reach, is_here, base))
        return Strip(segments).crop_extend(0, width, base)

    def _segment(self, cell: tuple[str, float | None] | None, reach: float, is_here: bool, base: Style) -> Segment:
        cursor = self.style_of("cursor") if is_here else Style.null()
        if cell is None:
            return Segment(fitted("·", self._cell), base + self.style_of("muted") + cursor)
        level = level_of(cell[1], reach)
        said = sign_and_shade(level) + (f" {number_text(cell[1], 3)}" if self.with_numbers else "")
        ink = Style.null() if not level else self.style_of("plus" if level > 0 else "minus")
        return Segment(fitted(said, self._cell), base + ink + cursor)

    def _header(self, scores: ModuleScores, y: int) -> str:
        if y == HEADER - 1:
            names = (_own(kind, self._cell - 1) for kind in scores.kinds[self._first :])
            return fitted("layer", _LAYER_WIDTH) + "".join(fitted(name, self._cell - 1) + " " for name in names)
        line, before = " " * _LAYER_WIDTH, None
        for kind in scores.kinds[self._first :]:
            within = kind.rpartition(".")[0]
            line += " " * self._cell if within == before else fitted(within, self._cell - 1) + " "
            before = within
        return line

    @property
    def _cell(self) -> int:
        """Characters of a cell: as its name needs, where all have room."""
        kinds = self.scores.kinds if self.scores is not None else ()
        least = _NUMBER_WIDTH if self.with_numbers else _NARROWEST
        room = (self.scrollable_content_region.width - _LAYER_WIDTH) // max(1, len(kinds))
        return max(least, min(room, max((cell_len(_own(kind)) + 1 for kind in kinds), default=least)))

    @property
    def _first(self) -> int:
        return round(self.scroll_offset.x) // self._cell

    def _arrange(self) -> None:
        layers, kinds = (len(self.scores.layers), len(self.scores.kinds)) if self.scores is not None else (0, 0)
        self.virtual_size = Size(_LAYER_WIDTH + kinds * self._cell, HEADER + layers)
        self.row, self.column = min(self.row, max(0, layers - 1)), min(self.column, max(0, kinds - 1))
        self._show_cursor()

    def _show_cursor(self) -> None:
        self.scroll_into_view(self.row, HEADER)
        room = max(1, (self.scrollable_content_region.width - _LAYER_WIDTH) // self._cell)
        if not self._first <= self.column < self._first + room:
            column = self.column if self.column < self._first else self.column - room + 1
            self.scroll_to(x=column * self._cell, animate=False, force=True)
        self.moved()


def _own(kind: str, room: int = 100) -> str:
    """Of a kind its last part, without what most say where that has no room.

    >>> _own("mlp.down_proj"), _own("mlp.down_proj", 4)
    ('down_proj', 'down')
    """
    name = kind.rpartition(".")[2]
    return name if cell_len(name) <= room else name.removesuffix("_proj")
