"""Tokens by layer as characters: a sign and a shade for how a token stands out in its text, and numbers where they are asked for.

Only lines that are visible are drawn.
"""

from __future__ import annotations

import json
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Size
from textual.message import Message
from textual.reactive import var
from textual.scroll_view import ScrollView
from textual.strip import Strip

from modelscope_probes.panels.token_scores import TokenRow, TokenScores

HEADER = 2
"""Lines above the tokens: layers, and a mark over the one the probe is judged by."""
SHADES = " ░▒▓█"
STROKES = " ·-=≡"
"""For below the median where a cell is one character wide."""
_WIDEST_NAME = 24
_NUMBER_WIDTH = 10
LEGEND = "+ above, - below the median of the text in that layer; denser is farther; ? unknown"


def mark(level: float | None, wide: bool) -> str:
    """A level from -1 to 1 in two characters, or one.

    >>> mark(1.0, True), mark(-0.5, True), mark(0.0, True), mark(None, True), mark(-1.0, False), mark(0.5, False)
    ('+█', '-▒', '  ', '??', '≡', '▒')
    """
    if level is None:
        return "??" if wide else "?"
    strength = min(4, round(abs(level) * 4))
    if wide:
        return (" " if not strength else "+" if level > 0 else "-") + SHADES[strength]
    return (SHADES if level > 0 else STROKES)[strength]


class TokenMap(ScrollView, can_focus=True):
    """The heat map of one prompt; the cursor is on a token."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"token-map--muted", "token-map--above", "token-map--below", "token-map--cursor"}
    DEFAULT_CSS = """
    TokenMap {
        height: 1fr;
        overflow: auto;
        & > .token-map--muted { color: $text-muted; }
        & > .token-map--above { color: $accent; }
        & > .token-map--below { color: $primary; }
        & > .token-map--cursor { text-style: bold reverse; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "numbers", "Numbers"),
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(-1000000)", "First token", show=False),
        Binding("end", "move(1000000)", "Last token", show=False),
    ]

    scores: var[TokenScores | None] = var(None)
    with_numbers: var[bool] = var(False)
    """Whether the score at the probe's layer stands beside each token."""

    class Moved(Message):
        """The cursor is on another token, or the tokens are others."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.row = 0

    def watch_scores(self) -> None:
        """Other tokens, or more of them."""
        self._arrange()

    def watch_with_numbers(self) -> None:
        """A column more."""
        self._arrange()

    def on_resize(self, event: Resize) -> None:
        """Cells may get narrower."""
        self._arrange()

    @property
    def token(self) -> TokenRow | None:
        """The one under the cursor."""
        return self.scores.tokens[self.row] if self.scores is not None and self.row < len(self.scores.tokens) else None

    def readout(self) -> str:
        """The token under the cursor, its score at every layer, the probe's own first."""
        token = self.token
        if token is None or self.scores is None:
            return ""
        numbers = [(layer, token.scores[at]) for at, layer in enumerate(self.scores.layers)]
        if self.scores.best is not None:
            numbers.insert(0, numbers.pop(self.scores.best))
        said = "  ".join(f"layer {layer}: {number_text(value)}" for layer, value in numbers)
        return f"{token.position} {token.text}{' (answer)' if token.is_answer else ''}  {said}"

    def copied(self) -> str | None:
        """For `y`: the token under the cursor and its scores, as JSON."""
        token = self.token
        if token is None or self.scores is None:
            return None
        scores = dict(zip(self.scores.layers, token.scores, strict=True))
        return json.dumps({"position": token.position, "token": token.text, "scores": scores})

    def action_numbers(self) -> None:
        """Show or hide the numbers."""
        self.with_numbers = not self.with_numbers

    def action_move(self, by: int) -> None:
        """To another token."""
        last = len(self.scores.tokens) - 1 if self.scores is not None else 0
        row = min(max(self.row + by, 0), max(0, last))
        if row != self.row:
            self.row = row
            self._show_cursor()

    def action_page(self, by: int) -> None:
        """By as many as are visible."""
        self.action_move(by * max(1, self._visible - 1))

    def on_click(self, event: Click) -> None:
        """The token that was clicked."""
        if event.y >= HEADER:
            self.action_move(event.y - HEADER + round(self.scroll_offset.y) - self.row)

    def render_line(self, y: int) -> Strip:
        """A header line or a token."""
        base, width = self.rich_style, self.scrollable_content_region.width
        scores = self.scores
        if scores is None or not scores.tokens:
            return Strip.blank(width, base)
        if y < HEADER:
            return Strip([Segment(self._header(scores, y), base + self.get_component_rich_style("token-map--muted"))]).crop_extend(
                0, width, base
            )
        row = y - HEADER + round(self.scroll_offset.y)
        if row >= len(scores.tokens):
            return Strip.blank(width, base)
        token, here = scores.tokens[row], row == self.row
        style = base + (self.get_component_rich_style("token-map--cursor", partial=True) if here else Style.null())
        segments = [Segment(("›" if here else " ") + _fitted(_name(token), self._name_width), style), Segment("  ", base)]
        if self.with_numbers:
            segments.append(Segment(number_text(scores.best_score(row)).rjust(_NUMBER_WIDTH) + "  ", base))
        above, below = (base + self.get_component_rich_style(f"token-map--{side}", partial=True) for side in ("above", "below"))
        first = round(self.scroll_offset.x) // self._cell
        for level in token.relative[first:]:
            segments.append(Segment(mark(level, self._cell == 2), base if not level else above if level > 0 else below))
        return Strip(segments).crop_extend(0, width, base)

    def _header(self, scores: TokenScores, y: int) -> str:
        """Layers by their numbers, or the mark over the probe's own."""
        first = round(self.scroll_offset.x) // self._cell
        before = " " * (1 + self._name_width + 2)
        numbers = f"{'score':>{_NUMBER_WIDTH}}  " if self.with_numbers else ""
        if y == 1:
            if scores.best is None or scores.best < first:
                return ""
            return before + " " * len(numbers) + " " * ((scores.best - first) * self._cell + self._cell - 1) + "▼ the probe's layer"
        names = scores.layers[first:]
        every = max(1, -(-(max(map(len, names), default=1) + (self._cell == 1 or len(scores.layers) > 10)) // self._cell))
        line = "".join(names[at].rjust(self._cell).ljust(every * self._cell) for at in range(0, len(names), every))
        return _fitted(" token", 1 + self._name_width) + "  " + numbers + line + "  layer"

    @property
    def _visible(self) -> int:
        return max(1, self.scrollable_content_region.height - HEADER)

    @property
    def _name_width(self) -> int:
        tokens = self.scores.tokens if self.scores is not None else ()
        return min(_WIDEST_NAME, max((cell_len(_name(token)) for token in tokens), default=5))

    @property
    def _cell(self) -> int:
        """Characters of a cell: two where all layers fit."""
        layers = len(self.scores.layers) if self.scores is not None else 0
        room = self.size.width - self._name_width - 3 - (_NUMBER_WIDTH + 2 if self.with_numbers else 0)
        return 2 if 2 * layers <= room else 1

    def _arrange(self) -> None:
        tokens = len(self.scores.tokens) if self.scores is not None else 0
        layers = len(self.scores.layers) if self.scores is not None else 0
        left = self._name_width + 3 + (_NUMBER_WIDTH + 2 if self.with_numbers else 0)
        self.virtual_size = Size(left + layers * self._cell, HEADER + tokens if tokens else 1)
        self.row = min(self.row, max(0, tokens - 1))
        self._show_cursor()

    def _show_cursor(self) -> None:
        top = round(self.scroll_offset.y)
        if not top <= self.row < top + self._visible:
            self.scroll_to(y=self.row if self.row < top else self.row - self._visible + 1, animate=False, force=True)
        self.refresh()
        self.post_message(self.Moved())


def number_text(value: float | None) -> str:
    """Four digits.

    >>> number_text(2 / 3), number_text(None)
    ('0.6667', 'unknown')
    """
    return "unknown" if value is None else f"{value:.4g}"


def _name(token: TokenRow) -> str:
    return f"{token.position} {'> ' if token.is_answer else ''}{token.text}"


def _fitted(text: str, cells: int) -> str:
    return set_cell_size(text[: cells - 1] + "…" if cell_len(text) > cells else text, cells)
