"""Lines and histograms out of characters, with labelled ends on every axis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from modelscope_app.api.views import Scale
from modelscope_app.rendering.drawings import Bins, HistogramDrawing, Line, LinesDrawing
from modelscope_app.rendering.marks import LADDER, Marks
from modelscope_app.rendering.naming import told_apart
from modelscope_app.rendering.thinning import most_changing, thinned
from modelscope_app.rendering.wording import count_text, interval_text, number_text

if TYPE_CHECKING:
    import numpy

HEIGHT = 10
"""Rows of a plot."""
LONGEST_NAME = 24
_BRAILLE_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of each dot of a braille character: left column from the top, then right column."""


def line_plot(drawing: LinesDrawing, width: int, marks: Marks, most: int) -> Iterator[Text]:
    """One line as a plot with axes; several as one small plot each, every one on its own scale."""
    known = [line for line in drawing.lines if not _all_unknown(line.y)]
    if len(known) == 1 and len(drawing.lines) == 1:
        yield from _single_line(drawing, known[0], width, marks)
    elif known:
        yield from _small_multiples(drawing, known, width, marks, most)


def histogram_plot(drawing: HistogramDrawing, width: int, marks: Marks, most: int) -> Iterator[Text]:
    """Columns of counts, one plot per group."""
    groups = [bins for bins in drawing.groups if len(bins.counts)]
    for bins in groups[:most]:
        yield from _columns(bins, drawing, width, marks)
    if len(groups) > most:
        yield Text(f"{len(groups) - most:,} more groups not drawn.", style="dim")


def sparkline(values: numpy.ndarray, width: int, marks: Marks, scale: Scale = "linear", places: numpy.ndarray | None = None) -> str:
    """Values as a row of at most `width` characters, from their lowest to their highest; where none is known it is blank.

    `places` says which character each value stands at, ascending; without it they follow in order. A character that stands for
    several values shows their mean.
    """
    import numpy

    placed = _on_axis(values, scale)
    if places is None:
        steps = numpy.array_split(placed, min(width, len(values)))
    else:
        steps = numpy.split(placed, numpy.searchsorted(places, numpy.arange(1, width)))
    means = [float(numpy.nanmean(step)) if not _all_unknown(step) else math.nan for step in steps]
    known = [mean for mean in means if not math.isnan(mean)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    ladder = LADDER if marks.ascii_only else marks.up
    return "".join(" " if math.isnan(mean) else ladder[1 + round((mean - low) / (high - low) * 7) if high > low else 4] for mean in means)


def _single_line(drawing: LinesDrawing, line: Line, width: int, marks: Marks) -> Iterator[Text]:
    import numpy

    low, high = float(numpy.nanmin(line.y)), float(numpy.nanmax(line.y))
    middle = math.sqrt(low * high) if drawing.y_scale == "log" else (low + high) / 2
    tick_labels = {0: number_text(high), HEIGHT - 1: number_text(low)}
    if high > low:
        tick_labels[HEIGHT // 2] = number_text(middle)
    margin = max(map(len, tick_labels.values()))
    plot_width = max(10, width - margin - 2)
    yield Text(marks.text(drawing.y_label) + (" (log scale)" if drawing.y_scale == "log" else ""), style="dim")
    for row, characters in enumerate(_canvas(drawing, thinned(line, plot_width * 2), plot_width, marks)):
        yield Text.assemble((tick_labels.get(row, "").rjust(margin), "dim"), f" {marks.vertical}", (characters, "cyan"))
    yield Text(" " * (margin + 1) + marks.corner + marks.horizontal * plot_width, style="dim")
    name = marks.text(drawing.x_label) + (" (log scale)" if drawing.x_scale == "log" else "")
    yield axis_labels(number_text(line.x.min()), name, number_text(line.x.max()), margin + 2, plot_width, marks)
    at = int(numpy.flatnonzero(~numpy.isnan(line.y))[-1])
    low_at, high_at = (None if bound is None else float(bound[at]) for bound in (line.low, line.high))
    yield Text(
        f"last: {interval_text(float(line.y[at]), low_at, high_at)} at {marks.text(drawing.x_label)} {number_text(line.x[at])}", style="dim"
    )


def _canvas(drawing: LinesDrawing, line: Line, width: int, marks: Marks) -> list[str]:
    """Rows of characters with the line through them."""
    import numpy

    across, down = (1, 1) if marks.ascii_only else (2, 4)
    x, y = (
        _dots(values, scale, size - 1)
        for values, scale, size in ((line.x, drawing.x_scale, width * across), (line.y, drawing.y_scale, HEIGHT * down))
    )
    cells = numpy.zeros((HEIGHT, width), dtype=int)
    for at in range(len(x)):
        if math.isnan(y[at]):
            continue
        before = at - 1 if at and not math.isnan(y[at - 1]) else at
        steps = int(max(abs(x[at] - x[before]), abs(y[at] - y[before]))) + 1
        for step in range(steps + 1):
            dot_x, dot_y = (round(axis[before] + (axis[at] - axis[before]) * step / steps) for axis in (x, y))
            dot_y = HEIGHT * down - 1 - dot_y
            cells[dot_y // down, dot_x // across] |= 1 if marks.ascii_only else _BRAILLE_DOTS[dot_x % 2][dot_y % 4]
    return ["".join(" " if not cell else "*" if marks.ascii_only else chr(0x2800 + cell) for cell in row).rstrip() for row in cells]


def _small_multiples(drawing: LinesDrawing, lines: list[Line], width: int, marks: Marks, most: int) -> Iterator[Text]:
    import numpy

    shown = [lines[at] for at in most_changing(lines, most, drawing.y_scale)]
    ends = [tuple(number_text(float(end)) for end in (numpy.nanmin(line.y), numpy.nanmax(line.y), line.y[-1])) for line in shown]
    names, pattern = told_apart([line.name for line in shown], LONGEST_NAME, marks.cut, max(LONGEST_NAME, width // 2))
    heads = ("lowest", "highest", "last")
    sizes = [max(len(head), *(len(end[at]) for end in ends)) for at, head in enumerate(heads)]
    above = marks.text(pattern)
    name_width = max(map(cell_len, [*names, above] if cell_len(above) <= LONGEST_NAME else names))
    room = max(8, width - name_width - sum(sizes) - 2 * 4)
    x_known = numpy.unique(numpy.concatenate([line.x for line in shown]))
    places, cells, to_scale = _places(x_known, drawing.x_scale, room)
    log = " (log scale)" if drawing.x_scale == "log" and to_scale else ""
    axis = f"{marks.text(drawing.x_label)} {number_text(x_known[0])} to {number_text(x_known[-1])}{log}"
    if cell_len(above) > name_width:
        yield Text(marks.cut(above, width), style="dim")
        above = ""
    head = above + " " * (name_width - cell_len(above) + 2) + set_cell_size(marks.cut(axis, room), room)
    yield Text(head + "".join("  " + name.rjust(size) for name, size in zip(heads, sizes, strict=True)), style="dim")
    for line, name, end in zip(shown, names, ends, strict=True):
        drawn = sparkline(line.y, cells, marks, drawing.y_scale, places[numpy.searchsorted(x_known, line.x)])
        numbers = "".join("  " + text.rjust(size) for text, size in zip(end, sizes, strict=True))
        yield Text.assemble(name, " " * (name_width - cell_len(name) + 2), (drawn.ljust(room), "cyan"), numbers)
    log = " (log scale)" if drawing.y_scale == "log" else ""
    yield Text(f"{marks.text(drawing.y_label)}{log}, each line between its own lowest and highest value.", style="dim")
    if not to_scale:
        yield Text(f"{marks.text(drawing.x_label)} in order, not to scale: its values are unevenly spaced.", style="dim")
    if len(lines) > most:
        yield Text(f"The {most} of {count_text(len(lines), 'line')} that change most.", style="dim")


def _places(x: numpy.ndarray, scale: Scale, room: int) -> tuple[numpy.ndarray, int, bool]:
    """Which of at most `room` characters each of the distinct, ascending x stands at, of how many, and whether that is to scale.

    To scale, one character is the smallest distance, where that fits. Elsewhere characters stand for several x, and if to scale one
    of them would stand for more than twice its share (steps 0, 1, 2, 3, 4, 1000), the x are spread in order instead.
    """
    import numpy

    if len(x) == 1:
        return numpy.zeros(1, dtype=int), 1, True
    axis = _on_axis(x, scale) / 2  # half of it, because the widest range of numbers is itself no number
    along = (axis - axis[0]) / (axis[-1] - axis[0])
    smallest = numpy.diff(along).min()
    if smallest * (room - 1) >= 1 - 1e-9:
        cells = int(numpy.floor(1 / smallest + 0.5)) + 1
        return numpy.floor(along * (cells - 1) + 0.5).astype(int), cells, True
    places = numpy.minimum(numpy.floor(along * room), room - 1).astype(int)
    if numpy.bincount(places).max() <= 2 * -(-len(x) // room):
        return places, room, True
    cells = min(room, len(x))
    return numpy.arange(len(x)) * cells // len(x), cells, False


def _columns(bins: Bins, drawing: HistogramDrawing, width: int, marks: Marks) -> Iterator[Text]:
    import numpy

    peak = int(bins.counts.argmax())
    per_column = -(-len(bins.counts) // max(1, width - 12))
    counts = numpy.add.reduceat(bins.counts, numpy.arange(0, len(bins.counts), per_column))
    repeat = max(1, min(4, (width - 12) // len(counts)))
    top = float(max(counts.max(), 0))
    margin = max(len(number_text(top)), 1)
    if bins.name:
        yield Text(marks.cut(bins.name, width), style="bold")
    rows = HEIGHT - 2
    for row in range(rows):
        label = number_text(top) if row == 0 else "0" if row == rows - 1 else ""
        cells = "".join(column_cell(count, top, rows - 1 - row, rows, marks) * repeat for count in counts)
        yield Text.assemble((label.rjust(margin), "dim"), f" {marks.vertical}", (cells.rstrip(), "cyan"))
    drawn = len(counts) * repeat
    yield Text(" " * (margin + 1) + marks.corner + marks.horizontal * drawn, style="dim")
    yield axis_labels(number_text(bins.left.min()), marks.text(drawing.x_label), number_text(bins.right.max()), margin + 2, drawn, marks)
    fullest = f"{number_text(bins.left[peak])} to {number_text(bins.right[peak])}, {number_text(bins.counts[peak])}"
    merged = f" Each column adds up {per_column} bins." if per_column > 1 else ""
    yield Text(f"{marks.text(drawing.count_label)} in {count_text(len(bins.counts), 'bin')}, fullest from {fullest}.{merged}", style="dim")


def column_cell(count: float, top: float, row: int, rows: int, marks: Marks) -> str:
    """What a column shows in a row (0 at the bottom); a count above zero is never invisible."""
    if count <= 0 or top <= 0:
        return " "
    filled = max(1, round(count / top * rows * 8)) - row * 8
    return marks.up[min(8, max(0, filled))]


def axis_labels(left: str, name: str, right: str, margin: int, width: int, marks: Marks) -> Text:
    """The two ends of an axis below it, its name between them where there is room."""
    room = width - len(left) - len(right) - 2
    if room < 0:
        return Text(" " * margin + f"{left} to {right} {name}".rstrip(), style="dim")
    name = marks.cut(name, room) if room > 3 else ""
    before = (room - cell_len(name)) // 2
    return Text(" " * margin + left + " " * (before + 1) + name + " " * (room - before - cell_len(name) + 1) + right, style="dim")


def _dots(values: numpy.ndarray, scale: Scale, last: int) -> list[float]:
    """Where values stand between dot 0 and dot `last`; NaN stays NaN."""
    import numpy

    placed = _on_axis(values, scale)
    low, high = numpy.nanmin(placed), numpy.nanmax(placed)
    dots = (placed - low) / (high - low) * last if high > low else numpy.where(numpy.isnan(placed), numpy.nan, last / 2)
    rounded: list[float] = numpy.round(dots).tolist()
    return rounded


def _on_axis(values: numpy.ndarray, scale: Scale) -> numpy.ndarray:
    import numpy

    return numpy.log(values) if scale == "log" else values


def _all_unknown(values: numpy.ndarray) -> bool:
    return bool((values != values).all())
