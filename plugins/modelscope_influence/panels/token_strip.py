"""A training row as running text, each token on the colour of its sign, and below it the sign with tenths, or the number.

The stretch with the largest sum is underlined, of a row with a score below zero the one with the smallest.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Size
from textual.reactive import var
from textual.strip import Strip

from modelscope_influence.panels.insides import Inside, Span, Token
from modelscope_influence.panels.scored_cells import CLASSES, CSS, CellsView, fitted, heat, level_of, number_text, sign_and_digit


class TokenStrip(CellsView, inherit_bindings=False):
    """The tokens; the cursor is on one."""

    COMPONENT_CLASSES: ClassVar[set[str]] = set(CLASSES)
    DEFAULT_CSS = CSS.format(name="TokenStrip", across="hidden")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Previous token", show=False),
        Binding("right", "move(1)", "Next token", show=False),
        Binding("up", "line(-1)", "Up", show=False),
        Binding("down", "line(1)", "Down", show=False),
        Binding("pageup", "line(-5)", "Page up", show=False),
        Binding("pagedown", "line(5)", "Page down", show=False),
        Binding("home", "move(-1000000)", "First token", show=False),
        Binding("end", "move(1000000)", "Last token", show=False),
    ]

    inside: var[Inside | None] = var(None)
    with_numbers: var[bool] = var(False)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.at = 0
        self._sizes: Sequence[int] = ()
        self._breaks: Sequence[int] = ()
        """The first token of each line."""
        self._reach = 0.0

    def watch_inside(self, before: Inside | None, inside: Inside | None) -> None:
        """Those of another pair; the cursor goes to the token of the largest size."""
        self._reach = max((abs(token.score) for token in self.tokens if token.score is not None), default=0.0)
        if before != inside:
            sizes = [abs(token.score or 0.0) for token in self.tokens]
            self.at = sizes.index(max(sizes)) if sizes else 0
        self._arrange()

    def watch_with_numbers(self) -> None:
        """Wider cells."""
        self._arrange()

    def on_resize(self, event: Resize) -> None:
        """Wrap anew."""
        self._arrange()

    @property
    def tokens(self) -> Sequence[Token]:
        """Of the row."""
        return self.inside.tokens if self.inside is not None else ()

    @property
    def token(self) -> Token | None:
        """The one under the cursor."""
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def readout(self) -> str:
        """The token under the cursor, and the stretch."""
        token = self.token
        if token is None:
            return ""
        span = self._span
        words = "" if span is None else "".join(token.text for token in self.tokens if span.start <= token.position < span.stop).strip()
        stretch = f"   underlined, {number_text(span.score, 4)} in all: {words}" if span is not None else ""
        return f"{token.position} {seen(token.text)}  {number_text(token.score, 6)}{stretch}"

    @property
    def _span(self) -> Span | None:
        """The stretch that is underlined."""
        total = sum(token.score or 0.0 for token in self.tokens)
        spans = [span for span in (self.inside.spans if self.inside is not None else ()) if span.score * total > 0]
        return max(spans, key=lambda span: abs(span.score), default=None)

    def copied(self) -> str | None:
        """For `y`: that token and its score with every digit, as JSON."""
        token = self.token
        return None if token is None else json.dumps({"position": token.position, "token": token.text, "score": token.score})

    def legend(self) -> str:
        """Of the digits."""
        if not self.tokens:
            return ""
        return "by token" if self.with_numbers else f"by token, digits are tenths of {number_text(self._reach, 3)}"

    def action_move(self, by: int) -> None:
        """To another token."""
        at = min(max(self.at + by, 0), max(0, len(self.tokens) - 1))
        if at != self.at:
            self.at = at
            self._show_cursor()

    def action_line(self, by: int) -> None:
        """To about the same place of another line."""
        line = self._line_of(self.at)
        x = sum(self._sizes[self._breaks[line] : self.at]) if self._breaks else 0
        target = min(max(line + by, 0), max(0, len(self._breaks) - 1))
        if self._breaks and target != line:
            self.action_move(self._token_at(target, x) - self.at)

    def on_click(self, event: Click) -> None:
        """The token that was clicked."""
        line = (event.y + round(self.scroll_offset.y)) // 2
        if line < len(self._breaks):
            self.action_move(self._token_at(line, event.x) - self.at)

    def render_line(self, y: int) -> Strip:
        """A line of tokens, or the one below it."""
        base, width = self.rich_style, self.scrollable_content_region.width
        line, below = divmod(y + round(self.scroll_offset.y), 2)
        if line >= len(self._breaks):
            return Strip.blank(width, base)
        first, last = self._ends(line)
        plus, minus, span = self.style_of("plus"), self.style_of("minus"), self._span
        segments = []
        for at in range(first, last):
            token, size, is_here = self.tokens[at], self._sizes[at], at == self.at and self.has_focus
            level = level_of(token.score, self._reach)
            if below:
                style = self.style_of("muted") if not level else plus if level > 0 else minus
                segments.append(Segment(fitted(self._under(token), size), base + style))
            else:
                style = base + self.style_of("cursor") if is_here else heat(self, level, plus, minus, base)
                underline = Style(underline=span is not None and span.start <= token.position < span.stop)
                segments.append(Segment(fitted(seen(token.text), size), style + underline))
        return Strip(segments).crop_extend(0, width, base)

    def _under(self, token: Token) -> str:
        return number_text(token.score, 2) if self.with_numbers and token.score else sign_and_digit(level_of(token.score, self._reach))

    def _arrange(self) -> None:
        width = max(2, self.scrollable_content_region.width)
        tokens = self.tokens
        self._sizes = [min(width, max(cell_len(seen(token.text)), 2, cell_len(self._under(token)) + self.with_numbers)) for token in tokens]
        breaks, used = [], width
        for at, size in enumerate(self._sizes):
            if used + size > width:
                breaks.append(at)
                used = 0
            used += size
        self._breaks = breaks
        self.virtual_size = Size(width, 2 * len(breaks))
        self.at = min(self.at, max(0, len(tokens) - 1))
        self._show_cursor()

    def _show_cursor(self) -> None:
        self.scroll_into_view(2 * self._line_of(self.at), height=2)
        self.moved()

    def _line_of(self, at: int) -> int:
        return max(0, bisect_right(self._breaks, at) - 1)

    def _ends(self, line: int) -> tuple[int, int]:
        return self._breaks[line], self._breaks[line + 1] if line + 1 < len(self._breaks) else len(self._sizes)

    def _token_at(self, line: int, x: int) -> int:
        first, last = self._ends(line)
        for at in range(first, last):
            x -= self._sizes[at]
            if x < 0:
                return at
        return last - 1


def seen(token: str) -> str:
    """A token whose spaces can be seen, and which is never nothing.

    >>> seen(" the"), seen("")
    ('·the', '∅')
    """
    return token.replace(" ", "·") or "∅"
