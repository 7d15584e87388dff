"""What is left out when there is more to draw than a picture can hold, chosen so that the picture stays true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelscope_app.api.views import Scale
from modelscope_app.rendering.drawings import Line

if TYPE_CHECKING:
    import numpy


def thinned(line: Line, buckets: int) -> Line:
    """At most four points in each of `buckets` equal stretches of rows: the first, lowest, highest and last.

    Drawn over about that many pixels this looks as the whole line does, spikes and gaps included.
    """
    import numpy

    count = len(line.x)
    if count <= 4 * buckets:
        return line
    kept: set[int] = set()
    for rows in numpy.array_split(numpy.arange(count), buckets):
        kept.update((int(rows[0]), int(rows[-1])))
        known = rows[~numpy.isnan(line.y[rows])]
        if known.size:
            kept.update((int(known[line.y[known].argmin()]), int(known[line.y[known].argmax()])))
        if known.size < rows.size:
            kept.add(int(rows[numpy.isnan(line.y[rows])][0]))
    at = numpy.array(sorted(kept))
    return Line(line.name, line.x[at], line.y[at], *(None if bound is None else bound[at] for bound in (line.low, line.high)))


def most_changing(lines: Sequence[Line], count: int, y_scale: Scale) -> list[int]:
    """Positions of the `count` lines whose y spans the widest range on their axis, in the order they stand."""
    import numpy

    def span(line: Line) -> float:
        known = line.y[~numpy.isnan(line.y)]
        if not known.size:
            return -1.0
        return float(numpy.log(known.max() / known.min()) if y_scale == "log" else known.max() - known.min())

    spans = [span(line) for line in lines]
    return sorted(sorted(range(len(lines)), key=lambda at: -spans[at])[:count])


def pooled(values: numpy.ndarray, rows: int, columns: int, center: float | None) -> numpy.ndarray:
    """A matrix of at most (rows, columns): each block of cells becomes its value farthest from `center`, or its largest.

    Unknown cells do not count; a block of them is NaN.
    """
    import numpy

    tall, wide = (-(-size // most) for size, most in zip(values.shape, (rows, columns), strict=True))
    if tall <= 1 and wide <= 1:
        return values
    blocks = numpy.full((-(-values.shape[0] // tall) * tall, -(-values.shape[1] // wide) * wide), numpy.nan)
    blocks[: values.shape[0], : values.shape[1]] = values
    blocks = blocks.reshape(blocks.shape[0] // tall, tall, blocks.shape[1] // wide, wide).swapaxes(1, 2)
    blocks = blocks.reshape(*blocks.shape[:2], tall * wide)  # (block row, block column, cell)
    weight = numpy.nan_to_num(blocks if center is None else numpy.abs(blocks - center), nan=-numpy.inf)
    return numpy.take_along_axis(blocks, weight.argmax(axis=2)[..., None], axis=2)[..., 0]


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the positions 0 to count - 1, evenly apart, the first among them.

    >>> evenly(5, 9), evenly(10, 4)
    ([0, 1, 2, 3, 4], [0, 3, 6, 9])
    """
    return list(range(0, count, max(1, -(-count // max(1, most)))))
