"""What one cell of a heat map looks like: a mark, a sign and a shade, or its number. Colour only repeats them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual.cache import FIFOCache
from textual.content import Content
from textual.strip import Strip

from modelscope_app.rendering.character_charts import number_style, shade_style, short_number, sign_and_shade
from modelscope_app.rendering.drawings import HeatMapDrawing
from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.rendering.palette import levels
from modelscope_app.rendering.thinning import pooled
from modelscope_app.rendering.wording import number_text
from modelscope_app.tui.views.lines_of_cells import fitted, parsed

if TYPE_CHECKING:
    import numpy

STEPS = 8
"""Colours on either side of the middle: sixteen in all."""
BELOW = "·-=≡"
"""One cell below the centre, from near it to far from it."""
ABOVE = BLOCKS.shades[1:]
_UNKNOWN = STEPS + 1


def sampled(values: numpy.ndarray, most: int = 4000) -> list[float]:
    """Values to measure numbers by: all of a small matrix, of a large one some and its ends."""
    import numpy

    flat = values.ravel()
    if flat.size <= most:
        return list(map(float, flat))
    known = flat[~numpy.isnan(flat)]
    ends = [float(known.min()), float(known.max())] if known.size else []
    return [*map(float, flat[:: flat.size // most]), *ends]


def blocks(shape: tuple[int, ...], rows: int, columns: int) -> tuple[int, int]:
    """How many rows and columns a mark has to stand for, so that a matrix fits."""
    return max(1, -(-shape[0] // rows)), max(1, -(-shape[1] // columns))


class Cells:
    """Cells of one kind. Subclasses say what stands in a cell at a value and a level."""

    alike = True
    """Whether cells of one level on one side of the centre look the same."""

    def __init__(self, drawing: HeatMapDrawing, number_width: int, few_colours: bool, pooled_by: tuple[int, int]) -> None:
        """Marks stand for `pooled_by` rows and columns."""
        import numpy

        self.center = drawing.center
        self.few_colours = few_colours
        self.width = self.cell_width(number_width)
        level, low, high = levels(drawing.values / 2, None if drawing.center is None else drawing.center / 2)
        self.low, self.high = low * 2, high * 2  # halved before, because the widest range of numbers is no number
        self.values = drawing.values
        if pooled_by != (1, 1):
            rows, columns = (-(-size // by) for size, by in zip(drawing.values.shape, pooled_by, strict=True))
            self.values = pooled(drawing.values, rows, columns, drawing.center)
            level = pooled(level, rows, columns, None if drawing.center is None else 0.0)
        self.steps = numpy.where(numpy.isnan(level), _UNKNOWN, numpy.round(numpy.nan_to_num(level) * STEPS)).astype(numpy.int8)
        self._segments: dict[tuple[int, int], Segment] = {}
        self._strips: FIFOCache[tuple[int, int, int], Strip] = FIFOCache(512)
        self.any_unknown = bool(numpy.isnan(drawing.values).any())
        self.all_unknown = bool(numpy.isnan(drawing.values).all())

    @staticmethod
    def cell_width(number_width: int) -> int:
        """Characters a cell takes."""
        raise NotImplementedError

    def text(self, value: float, level: float) -> str:
        """What stands in a cell; a level of NaN is unknown."""
        raise NotImplementedError

    def style(self, level: float) -> Style:
        """Its colours."""
        if self.few_colours:
            return Style.null()
        return parsed(shade_style(level, self.center is not None))

    def strip(self, row: int, first: int, last: int, cursor: int, cursor_style: Style, base: Style) -> Strip:
        """The cells of a row from column `first` to before `last`, on the style `base`."""
        if cursor < 0:
            known = self._strips.get((row, first, last))
            if known is not None:
                return known
        values, steps = self.values[row, first:last].tolist(), self.steps[row, first:last].tolist()
        drawn = [self._segment(value, step, base) for value, step in zip(values, steps, strict=True)]
        if first <= cursor < last:
            drawn[cursor - first] = Segment(drawn[cursor - first].text, base + cursor_style)
        strip = Strip(drawn, self.width * (last - first))
        if cursor < 0:
            self._strips[row, first, last] = strip
        return strip

    def _segment(self, value: float, step: int, base: Style) -> Segment:
        """One cell; alike cells are made once."""
        level = math.nan if step == _UNKNOWN else step / STEPS
        if not self.alike:
            return Segment(self.text(value, level), base + self.style(level))
        side = 0 if self.center is None else (value > self.center) - (value < self.center)
        segment = self._segments.get((step, side))
        if segment is None:
            segment = self._segments[step, side] = Segment(self.text(value, level), base + self.style(level))
        return segment

    def legend(self) -> Content:
        """The ends of the scale, its middle, and unknown."""
        if self.all_unknown:
            return Content("nothing is known")
        middle = 0.0 if self.center is None else self.center
        if self.center is None:
            parts = [Content(number_text(self.low)), self._ramp((0.0, 0.25, 0.5, 0.75, 1.0), middle), Content(number_text(self.high))]
        else:
            falling = self._ramp((-1.0, -0.75, -0.5, -0.25), middle)
            rising = self._ramp((0.25, 0.5, 0.75, 1.0), middle)
            parts = [Content(number_text(self.low)), falling, Content(number_text(middle)), rising, Content(number_text(self.high))]
        if self.low == self.high:
            parts = [self._ramp((1.0 if self.center is None else 0.0,), middle), Content(number_text(self.high))]
        if self.any_unknown:
            parts.append(Content("  ? unknown"))
        return Content(" ").join(parts)

    def sample(self, value: float, level: float) -> str:
        """The mark that stands in the legend."""
        return self.text(value, level)

    def _ramp(self, at: tuple[float, ...], middle: float) -> Content:
        return Content.assemble(*((self.sample(middle + level, level), self._content_style(level)) for level in at))

    def _content_style(self, level: float) -> str:
        return "" if self.few_colours else shade_style(level, self.center is not None)


class ShadeCells(Cells):
    """One character a cell: strokes below the centre, blocks above it."""

    @staticmethod
    def cell_width(number_width: int) -> int:
        """One."""
        return 1

    def text(self, value: float, level: float) -> str:
        """Strokes or blocks in four strengths."""
        if math.isnan(level):
            return "?"
        strength = min(4, round(abs(level) * 4))
        if not strength:
            return " "
        return (BELOW if level < 0 and self.center is not None else ABOVE)[strength - 1]


class SignCells(Cells):
    """Two characters a cell: a sign and a shade; without a centre the shade twice."""

    @staticmethod
    def cell_width(number_width: int) -> int:
        """Two."""
        return 2

    def text(self, value: float, level: float) -> str:
        """Sign and shade."""
        return sign_and_shade(value, level, self.center, BLOCKS)


class NumberCells(Cells):
    """Numbers in full."""

    alike = False

    @staticmethod
    def cell_width(number_width: int) -> int:
        """As wide as the widest number and a space."""
        return min(14, max(3, number_width))

    def text(self, value: float, level: float) -> str:
        """Two significant digits."""
        return fitted(short_number(value).rjust(self.width), self.width)

    def style(self, level: float) -> Style:
        """Ink on the colour of its level."""
        return Style.null() if self.few_colours else parsed(number_style(level, self.center is not None))

    def sample(self, value: float, level: float) -> str:
        """A patch of colour; nothing where there are none: the numbers speak for themselves."""
        return "" if self.few_colours else "  "

    def _content_style(self, level: float) -> str:
        return "" if self.few_colours else number_style(level, self.center is not None)
