"""Where tokens stand when they are wrapped as running text, so that any one line can be drawn alone."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

from rich.cells import cell_len

from modelscope_app.rendering.drawings import TokenText
from modelscope_app.rendering.marks import BLOCKS

Part = Literal["name", "tokens", "scores", "gap"]


def seen(token: str) -> str:
    """A token whose spaces can be seen, and which is never nothing.

    >>> seen(" the"), seen("")
    ('·the', '∅')
    """
    return token.replace(" ", BLOCKS.dot) or "∅"


class Layout:
    """Texts below one another: a name where there is one, then pairs of lines, tokens above and scores below, then a gap."""

    def __init__(self, texts: Sequence[TokenText], score: int, under: int | Callable[[float], int], width: int) -> None:
        """`under` is how many cells a score takes below its token."""
        self._sizes: list[array[int]] = []
        self._breaks: list[list[int]] = []
        """The first token of every pair of lines, by text."""
        self._tops: list[int] = []
        self._named = [bool(text.name) for text in texts]
        self.height = 0
        for text in texts:
            sizes = _sizes(text, score, under, width)
            self._sizes.append(sizes)
            self._breaks.append(_breaks(sizes, width))
            self._tops.append(self.height)
            self.height += bool(text.name) + 2 * len(self._breaks[-1]) + (len(texts) > 1)

    def size(self, text: int, at: int) -> int:
        """Cells of a token."""
        return self._sizes[text][at]

    def line(self, line: int) -> tuple[int, int, int, Part]:
        """Text, first token, the one after the last, and what stands in this line."""
        text = bisect_right(self._tops, line) - 1
        within = line - self._tops[text] - self._named[text]
        if within < 0:
            return text, 0, 0, "name"
        pair, below = divmod(within, 2)
        if pair >= len(self._breaks[text]):
            return text, 0, 0, "gap"
        return (text, *self._span(text, pair), "scores" if below else "tokens")

    def first_line_of(self, text: int, at: int) -> int:
        """The line a token stands in."""
        return self._tops[text] + self._named[text] + 2 * self._pair(text, at)

    def token_at(self, x: int, line: int) -> tuple[int, int] | None:
        """The text and token at a place; None where there is none."""
        if not 0 <= line < self.height:
            return None
        text, first, last, _ = self.line(line)
        for at in range(first, last):
            x -= self._sizes[text][at]
            if x < 0:
                return text, at
        return None

    def beside(self, text: int, at: int, by: int) -> tuple[int, int]:
        """The token `by` pairs of lines farther down at about the same place; the first or last one at the ends."""
        pair = self._pair(text, at)
        x = sum(self._sizes[text][self._span(text, pair)[0] : at])
        pair += by
        while pair < 0 or pair >= len(self._breaks[text]):
            if (pair < 0 and text == 0) or (pair >= 0 and text == len(self._breaks) - 1):
                pair = max(0, min(len(self._breaks[text]) - 1, pair))
                break
            if pair < 0:
                text -= 1
                pair += len(self._breaks[text])
            else:
                pair -= len(self._breaks[text])
                text += 1
        if not self._breaks[text]:
            return text, 0
        first, last = self._span(text, pair)
        for found in range(first, last):
            x -= self._sizes[text][found]
            if x < 0:
                return text, found
        return text, last - 1

    def _pair(self, text: int, at: int) -> int:
        return bisect_right(self._breaks[text], at) - 1

    def _span(self, text: int, pair: int) -> tuple[int, int]:
        breaks = self._breaks[text]
        return breaks[pair], breaks[pair + 1] if pair + 1 < len(breaks) else len(self._sizes[text])


def _sizes(text: TokenText, score: int, under: int | Callable[[float], int], width: int) -> array[int]:
    known: dict[str, int] = {}
    sizes = array("l")
    scores = text.scores[score].tolist() if len(text.scores) else [float("nan")] * len(text.tokens)
    for token, value in zip(text.tokens, scores, strict=True):
        size = known.get(token)
        if size is None:
            size = known[token] = max(1, cell_len(seen(token)))
        sizes.append(min(width, max(size, under if isinstance(under, int) else under(value))))
    return sizes


def _breaks(sizes: array[int], width: int) -> list[int]:
    breaks, used = [], width
    for at, size in enumerate(sizes):
        if used + size > width:
            breaks.append(at)
            used = 0
        used += size
    return breaks
