"""Rich pads the cells of a table, and wrapped lines, with spaces at their end. In a file or a pipe these are only noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment


@dataclass(frozen=True, slots=True)
class Unpadded:
    """A renderable without the spaces that its lines end in, except where these show a colour."""

    inner: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        coloured = console.color_system is not None and not console.no_color
        for line in console.render_lines(self.inner, options, pad=False):
            yield from _stripped(line, coloured)
            yield Segment.line()


def _stripped(line: list[Segment], coloured: bool) -> Iterator[Segment]:
    while line and not line[-1].text.rstrip(" ") and not (coloured and line[-1].style and line[-1].style.bgcolor):
        line = line[:-1]
    yield from line[:-1]
    if line:
        last = line[-1]
        yield last if coloured and last.style and last.style.bgcolor else Segment(last.text.rstrip(" "), last.style, last.control)
