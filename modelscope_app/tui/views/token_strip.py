"""Texts with scores on their tokens: running text on the colour of one score, its digit or number below each token.

Only the visible lines are drawn. One score is shown at a time, because two colours on one token cannot be read; the line below the
picture says every score of the token under the cursor.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, fields
from typing import ClassVar, cast

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Click, Resize
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget

from modelscope_app.api import TokenStripView, neutralised
from modelscope_app.rendering.character_charts import number_style as cell_style
from modelscope_app.rendering.character_charts import score_digit as digit
from modelscope_app.rendering.drawings import Drawing, TokenStripDrawing
from modelscope_app.rendering.drawings import parts_by_value as groups
from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.rendering.wording import count_text, number_text
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.views.board import ViewBoard
from modelscope_app.tui.views.lines_of_cells import Picture, WithReadout, copied_number, exact_text, fitted, has_few_colours, parsed
from modelscope_app.tui.views.token_strip_layout import Layout, seen


@dataclass(frozen=True, slots=True, eq=False)
class StoredTokens(TokenStripDrawing):
    """Texts with their tokens as they are stored, spaces and newlines as such."""

    stored: tuple[tuple[object, ...], ...]
    """(text, token)"""


class TokenLines(Picture):
    """Wrapped tokens, two lines each: the token, and its score as a digit or a number."""

    DEFAULT_CSS = """
    TokenLines { overflow-x: hidden; overflow-y: auto; scrollbar-gutter: stable; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "score(1)", "Next score"),
        Binding("n", "numbers", "Numbers"),
        Binding("t", "text(1)", "Next text"),
        Binding("S", "score(-1)", "Previous score", show=False),
        Binding("T", "text(-1)", "Previous text", show=False),
        Binding("left", "move(-1)", "Previous token", show=False),
        Binding("right", "move(1)", "Next token", show=False),
        Binding("up", "line(-1)", "Up", show=False),
        Binding("down", "line(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(-1000000000)", "First token", show=False),
        Binding("end", "move(1000000000)", "Last token", show=False),
    ]

    def __init__(self, drawing: TokenStripDrawing, run: str | None = None) -> None:
        """`run` is the folder the texts were seen in."""
        super().__init__()
        self.drawing = drawing
        self.run_folder = run
        self.score = 0
        self.in_numbers = False
        self.cursor = 0
        """Position among the tokens of all texts."""
        self.starts = [0]
        for text in drawing.texts:
            self.starts.append(self.starts[-1] + len(text.tokens))
        self.layout_of_lines: Layout | None = None
        self._scale: tuple[float, bool] = (0.0, False)

    def on_mount(self) -> None:
        """The first score's scale."""
        self._scale = self._measured()

    def on_resize(self, event: Resize) -> None:
        """Wrap anew."""
        self._wrap()

    def render_line(self, y: int) -> Strip:
        """A line of tokens, the line of their scores, or the name of a text."""
        laid = self.layout_of_lines
        at = y + round(self.scroll_offset.y)
        if laid is None or at >= laid.height:
            return Strip.blank(self.size.width, self.rich_style)
        text, first, last, part = laid.line(at)
        if part == "name":
            return self.strip([Segment(fitted(self.drawing.texts[text].name, self.width), self.title_style())])
        if part == "gap":
            return Strip.blank(self.size.width, self.rich_style)
        return self.strip(self._tokens(text, first, last) if part == "tokens" else self._scores(text, first, last))

    def readout(self) -> str:
        """The token and every score of it, exactly."""
        if not self.starts[-1]:
            return "There are no tokens."
        text, at = self._where()
        token = self.drawing.texts[text].tokens[at]
        name = self.drawing.texts[text].name
        place = f"token {at + 1:,} of {len(self.drawing.texts[text].tokens):,}" + (f" in {neutralised(name, 40)}" if name else "")
        scores = zip(self.drawing.score_labels, self.drawing.texts[text].scores[:, at].tolist(), strict=True)
        return f"{BLOCKS.cut(seen(token), 40)}  ({place})\n" + "   ".join(f"{label} {exact_text(score)}" for label, score in scores)

    def legend(self) -> Content:
        """Which score is shown, and what its digits and colours are of."""
        if not self.drawing.score_labels:
            return Content("There are no scores.")
        reach, signed = self._scale
        label = self.drawing.score_labels[self.score]
        several = f" ({self.score + 1} of {len(self.drawing.score_labels)})" if len(self.drawing.score_labels) > 1 else ""
        legend = Content(f"{neutralised(label, 40)}{several}: ")
        if not has_few_colours(self.app):
            levels = (-1.0, -0.5, 0.0, 0.5, 1.0) if signed else (0.0, 0.25, 0.5, 0.75, 1.0)
            patches = Content.assemble(*(("  ", cell_style(level, signed)) for level in levels))
            legend += Content(f"{number_text(-reach if signed else 0.0)} ") + patches + Content(f" {number_text(reach)}, ")
        return legend + Content(("" if self.in_numbers else f"digits are tenths of {number_text(reach)}, ") + "? unknown, · space")

    def copied(self) -> Copied | None:
        """The token and all its scores, separated by tabs."""
        if not self.starts[-1]:
            return None
        text, at = self._where()
        token = self.drawing.texts[text].tokens[at]
        scores = [copied_number(score) for score in self.drawing.texts[text].scores[:, at].tolist()]
        return Copied("\t".join([token, *scores]), f"token {at + 1:,} and its {count_text(len(scores), 'score')}")

    def selection(self) -> Selection | None:
        """The token, as it is stored."""
        if not self.starts[-1]:
            return None
        text, at = self._where()
        token = self.drawing.texts[text].tokens[at]
        value = self.drawing.stored[text][at] if isinstance(self.drawing, StoredTokens) else token
        return None if value is None else Selection("token", str(value), f"token {neutralised(seen(token), 40)}", run=self.run_folder)

    def explanation(self) -> Explanation:
        """For `?`."""
        text = (
            "Running text, each token on the colour of one score and its digit below: tenths of the largest size that score has in all "
            "texts, with + or - where it has both signs. n shows numbers, s the next score, t the next text. A dot is a space, ? an "
            "unknown score. The line below says every score of the chosen token."
        )
        return Explanation("Token strip", text)

    def action_score(self, by: int) -> None:
        """Show another score."""
        if len(self.drawing.score_labels) > 1:
            self.score = (self.score + by) % len(self.drawing.score_labels)
            self._scale = self._measured()
            self._wrap()

    def action_numbers(self) -> None:
        """Digits or numbers."""
        self.in_numbers = not self.in_numbers
        self._wrap()

    def action_text(self, by: int) -> None:
        """To the beginning of another text."""
        text = self._where()[0] + by
        while 0 < text < len(self.drawing.texts) - 1 and not self.drawing.texts[text].tokens:
            text += by
        if 0 <= text < len(self.drawing.texts):
            self._go_to(self.starts[text], to_top=True)

    def action_move(self, by: int) -> None:
        """Move the cursor by tokens."""
        self._go_to(self.cursor + by)

    def action_line(self, by: int) -> None:
        """Move the cursor by lines of tokens, staying in its column."""
        if self.layout_of_lines is not None and self.starts[-1]:
            self._go_to(self._number(*self.layout_of_lines.beside(*self._where(), by)))

    def action_page(self, by: int) -> None:
        """Move the cursor by what fits on the screen."""
        self.action_line(by * max(1, self.size.height // 2 - 1))

    def on_click(self, event: Click) -> None:
        """The token that was clicked."""
        if self.layout_of_lines is not None:
            found = self.layout_of_lines.token_at(event.x, event.y + round(self.scroll_offset.y))
            if found is not None:
                self._go_to(self._number(*found))

    def _where(self) -> tuple[int, int]:
        """Text and token of the cursor."""
        text = bisect_right(self.starts, self.cursor) - 1
        return text, self.cursor - self.starts[text]

    def _number(self, text: int, at: int) -> int:
        return self.starts[text] + at

    def _go_to(self, at: int, to_top: bool = False) -> None:
        at = max(0, min(self.starts[-1] - 1, at))
        if at != self.cursor:
            self.cursor = at
            self._show_cursor(to_top)
            self.moved()

    def _wrap(self) -> None:
        """Lay the tokens out for this width."""
        if not self.width:
            return
        signed = self._scale[1]
        under = (lambda score: len(_short(score)) + 1) if self.in_numbers else 2 if signed else 1
        self.layout_of_lines = Layout(self.drawing.texts, self.score, under, self.width)
        self.virtual_size = Size(self.size.width, self.layout_of_lines.height)
        self._show_cursor()
        self.moved()

    def _show_cursor(self, to_top: bool = False) -> None:
        laid = self.layout_of_lines
        if laid is None or not self.starts[-1]:
            return
        first, height = laid.first_line_of(*self._where()), max(2, self.size.height)
        top = round(self.scroll_offset.y)
        if to_top or first < top or first + 2 > top + height:
            begin = first - (1 if first and self.drawing.texts[self._where()[0]].name else 0)
            self.scroll_to(y=begin if to_top or first < top else first + 2 - height, animate=False, force=True)

    def _tokens(self, text: int, first: int, last: int) -> list[Segment]:
        assert self.layout_of_lines is not None
        reach, signed = self._scale
        few, chosen, drawn = has_few_colours(self.app), self._where(), []
        for at in range(first, last):
            score = self._score(text, at)
            level = math.nan if math.isnan(score) else score / reach if reach else 0.0
            if (text, at) == chosen:
                style = self.cursor_style()
            else:
                style = Style(underline=at % 2 == 0) if few else parsed(cell_style(level, signed))
            drawn.append(Segment(fitted(seen(self.drawing.texts[text].tokens[at]), self.layout_of_lines.size(text, at)), style))
        return drawn

    def _scores(self, text: int, first: int, last: int) -> list[Segment]:
        assert self.layout_of_lines is not None
        reach, signed = self._scale
        muted, drawn = self.muted_style(), []
        for at in range(first, last):
            score = self._score(text, at)
            said = _short(score) if self.in_numbers else digit(score, reach, signed)
            here = self._number(text, at) == self.cursor
            drawn.append(Segment(fitted(said, self.layout_of_lines.size(text, at)), self.title_style() if here else muted))
        return drawn

    def _score(self, text: int, at: int) -> float:
        scores = self.drawing.texts[text].scores
        return float(scores[self.score, at]) if len(scores) else math.nan

    def _measured(self) -> tuple[float, bool]:
        """The largest size of the score in all texts, and whether it has a sign."""
        import numpy

        if not self.drawing.score_labels:
            return 0.0, False
        known = numpy.concatenate([*(text.scores[self.score] for text in self.drawing.texts), numpy.empty(0)])
        known = known[~numpy.isnan(known)]
        return float(numpy.abs(known).max(initial=0)), bool((known < 0).any())


class TokenStripBoard(ViewBoard):
    """A token strip view."""

    about = "Arrows move along the tokens, s shows the next score, n its numbers, t goes to the next text."

    def computed(self) -> Drawing:
        """The texts, with their tokens as they are stored."""
        drawn = cast("TokenStripDrawing", super().computed())
        view = cast("TokenStripView", self.view)
        parts = groups(self.finished_run.table(view.table), view.text)
        shared = {field.name: getattr(drawn, field.name) for field in fields(drawn)}
        return StoredTokens(**shared, stored=tuple(tuple(part[view.token].to_list()) for _, part in parts))

    def body(self, drawing: Drawing) -> Widget:
        """Tokens with a legend and a readout."""
        return WithReadout(TokenLines(cast("TokenStripDrawing", drawing), str(self.finished_run.folder)))


def _short(score: float) -> str:
    return "?" if math.isnan(score) else number_text(score, 2)
