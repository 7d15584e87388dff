"""Lines, bars, histograms and heat maps with matplotlib. Each returns the figure and sentences on what it leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import matplotlib.ticker
import numpy
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from modelscope_app.rendering.drawings import BarsDrawing, Bins, HeatMapDrawing, HistogramDrawing, Line, LinesDrawing
from modelscope_app.rendering.naming import pattern_note, told_apart
from modelscope_app.rendering.palette import DIVERGING, INK, MUTED, REST, SEQUENTIAL, SERIES, UNKNOWN_FILL, ink_on, level_colour, levels
from modelscope_app.rendering.thinning import evenly, most_changing, pooled, thinned
from modelscope_app.rendering.wording import count_text, interval_text, number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

WIDTH = 7.6
"""Inches."""
MOST_COLOURED = 12
"""Lines that six colours and four kinds of dash tell apart."""
HIGHLIGHTED = 6
MOST_BARS = 50
MOST_OVERLAID = 4
MOST_PANELS = 12
MOST_CELLS = (500, 800)
_BUCKETS = 800
_STEPS = (1, 2, 2.5, 5, 10)
_DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
"""Beside six colours these give twelve lines that differ, neighbours in both."""


def lines_figure(drawing: LinesDrawing) -> tuple[Figure, list[str]]:
    """Lines with bands. Of more than twelve, those that change most are coloured and the rest grey."""
    lines = [thinned(line, _BUCKETS) for line in drawing.lines if len(line.x)]
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    axes = figure.subplots()
    crowded = len(lines) > MOST_COLOURED
    strong = most_changing(lines, HIGHLIGHTED, drawing.y_scale) if crowded else list(range(len(lines)))
    handles: list[Line2D] = []
    for at in sorted(set(range(len(lines))) - set(strong)):
        axes.plot(lines[at].x, lines[at].y, color=REST.light, linewidth=0.8, zorder=1.5)
    names, pattern = told_apart([lines[at].name for at in strong], 28, _short, 40)
    bottom = _bottom(lines) if drawing.y_scale == "log" else -numpy.inf
    for place, at in enumerate(strong):
        line, colour = lines[at], SERIES[place % len(SERIES)].light
        marker = "o" if len(line.x) <= 24 or _has_lone_points(line) else ""
        drawn = axes.plot(line.x, line.y, color=colour, linestyle=_DASHES[place % len(_DASHES)], marker=marker, markersize=3, zorder=3)
        drawn[0].set_label(names[place])
        handles += drawn
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, numpy.maximum(line.low, bottom), line.high, color=colour, alpha=0.16, linewidth=0, zorder=2)
    _scale(axes, "x", drawing.x_scale, whole=all((line.x == numpy.round(line.x)).all() for line in lines))
    _scale(axes, "y", drawing.y_scale)
    if any(line.low is not None and (line.low < bottom).any() for line in lines):
        axes.set_ylim(bottom=bottom)
    axes.set(xlabel=_short(drawing.x_label, 60), ylabel=_short(drawing.y_label, 60))
    if crowded:
        rest = count_text(len(lines) - len(strong), "other")
        handles.append(Line2D([], [], color=REST.light, linewidth=0.8, label=f"{rest} (grey)"))
    if len(handles) > 1 or any(line.name for line in lines):
        _legend(axes, handles)
    note = f"Coloured: the {len(strong)} of {len(lines)} lines that change most; all others are grey."
    return figure, ([note] if crowded else []) + pattern_note(pattern)


def bars_figure(drawing: BarsDrawing) -> tuple[Figure, list[str]]:
    """Horizontal bars in table order, intervals as whiskers, numbers at the right."""
    shown = min(MOST_BARS, len(drawing.names))
    values, low, high = (array[:shown] for array in (drawing.values, drawing.low, drawing.high))
    places = numpy.arange(shown)
    figure = Figure(figsize=(WIDTH, 0.25 * shown + 0.8), layout="constrained")
    axes = figure.subplots()
    axes.barh(places, numpy.nan_to_num(values), height=0.62, color=SERIES[0].light, zorder=2)
    axes.hlines(places, low, high, color=INK.light, linewidth=1.1, zorder=3)
    for ends in (low, high):
        axes.plot(ends, places, linestyle="", marker="|", markersize=6, color=INK.light, zorder=3)
    axes.axvline(0, color=MUTED.light, linewidth=0.8, zorder=2.5)
    for place, (value, start, stop) in enumerate(zip(values, low, high, strict=True)):
        text = interval_text(float(value), float(start), float(stop), drawing.value_label)
        colour = MUTED.light if numpy.isnan(value) else INK.light
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=colour)
    names, pattern = told_apart(drawing.names[:shown], 40, _short, 60)
    axes.set_yticks(places, names, color=INK.light)
    axes.set_ylim(shown - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(_short(drawing.value_label, 60))
    _scale(axes, "x", "linear")
    more = len(drawing.names) > shown
    return figure, ([f"The first {shown} of {count_text(len(drawing.names), 'bar')}."] if more else []) + pattern_note(pattern)


def histogram_figure(drawing: HistogramDrawing) -> tuple[Figure, list[str]]:
    """One group filled. A few with the same bins as outlines over each other; other groups a panel each, with its own axes."""
    groups = [bins for bins in drawing.groups if len(bins.counts)]
    if len(groups) > MOST_OVERLAID or not _share_bins(groups):
        return _panels(drawing, groups)
    names, pattern = told_apart([bins.name for bins in groups], 28, _short, 40)
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    for place, bins in enumerate(groups):
        _outline(axes, bins._replace(name=names[place]), place, filled=0.75 if len(groups) == 1 else 0.14)
    _count_axes(axes)
    axes.set(xlabel=_short(drawing.x_label, 60), ylabel=_short(drawing.count_label, 40))
    if len(groups) > 1:
        _legend(axes, axes.lines)
    return figure, pattern_note(pattern)


def heat_map_figure(drawing: HeatMapDrawing) -> tuple[Figure, list[str]]:
    """A matrix with its colour bar. Unknown cells are hatched; numbers stand in the cells of a small one."""
    values = pooled(drawing.values, *MOST_CELLS, drawing.center)
    levelled, low, high = levels(values, drawing.center)
    diverging = drawing.center is not None
    slanted = max(map(len, drawing.columns)) > 4
    height = min(7.0, max(2.2, 0.24 * values.shape[0] + 1.1) + 0.8 * slanted)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("scale", DIVERGING if diverging else SEQUENTIAL).with_extremes(bad=(0, 0, 0, 0))
    image = axes.imshow(
        numpy.ma.masked_invalid(values),
        cmap=colours,
        norm=Normalize(low, high if high > low else low + 1),
        aspect="auto",
        interpolation="none",
        zorder=2,
    )
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if numpy.isnan(values).any():
        axes.patch.set(facecolor=UNKNOWN_FILL, hatch="////", edgecolor="#7d8792", linewidth=0)
        key = Patch(facecolor=UNKNOWN_FILL, hatch="////", edgecolor="#7d8792", linewidth=0, label="unknown")
        figure.legend(handles=[key], loc="outside lower right")
    patterns = _name_rows(axes, drawing.rows, values.shape[0]), _name_columns(axes, drawing.columns, values.shape[1])
    axes.set(xlabel=_short(drawing.column_label, 60), ylabel=_short(drawing.row_label, 60))
    if values.size <= 200 and values.shape[1] <= 16:
        for (row, column), level in numpy.ndenumerate(levelled):
            if not numpy.isnan(level):
                text, ink = number_text(float(values[row, column]), 2), ink_on(level_colour(float(level), diverging))
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=ink, zorder=3)
    if not numpy.isnan(values).all():
        bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.05, aspect=28)
        bar.outline.set_visible(False)
        bar.ax.grid(visible=False)
        bar.ax.yaxis.set_major_formatter(_numbers())
        bar.set_label(_short(drawing.value_label, min(40, int(14 * (height - 0.6 - 0.8 * slanted)))))
        if high <= low:
            bar.set_ticks([low])
    tall, wide = (-(-whole // part) for whole, part in zip(drawing.values.shape, values.shape, strict=True))
    chosen = f"farthest from {number_text(drawing.center)}" if drawing.center is not None else "largest"
    pooling = [] if (tall, wide) == (1, 1) else [f"A cell here stands for {tall} x {wide} cells and shows the {chosen} of them."]
    sides = zip((drawing.row_label, drawing.column_label), patterns, strict=True)
    return figure, pooling + [note for side, pattern in sides for note in pattern_note(pattern, side)]


def _panels(drawing: HistogramDrawing, groups: list[Bins]) -> tuple[Figure, list[str]]:
    shown = groups[:MOST_PANELS]
    across = 2 if len(shown) <= 4 else 3
    rows = -(-len(shown) // across)
    figure = Figure(figsize=(WIDTH, (1.9 if across == 2 else 1.5) * rows + 0.6), layout="constrained")
    panels = list(figure.subplots(rows, across, squeeze=False).flat)
    names, pattern = told_apart([bins.name for bins in shown], 90 // across, _short)
    for axes, bins, name in zip(panels, shown, names, strict=False):
        _outline(axes, bins, 0, filled=0.75)
        _count_axes(axes, ticks=12 // across)
        axes.set_title(name, fontsize=8, loc="left")
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel(_short(drawing.x_label, 60), fontsize="medium")
    figure.supylabel(_short(drawing.count_label, 40), fontsize="medium")
    left_out = [f"The first {MOST_PANELS} of {count_text(len(groups), 'group')}."] if len(groups) > len(shown) else []
    return figure, ["Every panel has its own axes.", *left_out, *pattern_note(pattern)]


def _share_bins(groups: Sequence[Bins]) -> bool:
    """Whether all groups have the same edges, so that their counts can be held against each other."""
    edges = [numpy.stack([bins.left, bins.right]) for bins in groups]
    return all(other.shape == edges[0].shape and numpy.allclose(other, edges[0], rtol=1e-6, atol=0) for other in edges[1:])


def _bottom(lines: Sequence[Line]) -> float:
    """Where a logarithmic axis for these lines ends below: a little under everything above zero."""
    drawn = [values for line in lines for values in (line.y, line.low, line.high) if values is not None]
    above = [float(values[values > 0].min()) for values in drawn if (values > 0).any()]
    return min(above, default=1.0) / 1.2


def _outline(axes: Axes, bins: Bins, place: int, filled: float) -> None:
    """A histogram's outline through its own edges; where two bins do not touch it falls to zero between them."""
    span = float(bins.right[-1] - bins.left[0])
    points: list[tuple[float, float]] = [(float(bins.left[0]), 0.0)]
    for at, count in enumerate(bins.counts):
        if at and not numpy.isclose(bins.left[at], bins.right[at - 1], rtol=1e-6, atol=1e-6 * span):
            points += [(float(bins.right[at - 1]), 0.0), (float(bins.left[at]), 0.0)]
        points += [(float(bins.left[at]), float(count)), (float(bins.right[at]), float(count))]
    x, y = zip(*points, (float(bins.right[-1]), 0.0), strict=True)
    colour = SERIES[place % len(SERIES)].light
    axes.fill_between(x, y, color=colour, alpha=filled, linewidth=0, zorder=2)
    dash = _DASHES[place % len(_DASHES)]
    axes.plot(x, y, color=colour, linewidth=1.3, linestyle=dash, zorder=3, label=_short(bins.name, 28) or "_")


def _legend(axes: Axes, handles: Sequence[Line2D]) -> None:
    """To the right of the axes, where it covers nothing."""
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0, handlelength=2.4)


def _count_axes(axes: Axes, ticks: int = 6) -> None:
    _scale(axes, "x", "linear", ticks)
    _scale(axes, "y", "linear", ticks)
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")


def _scale(axes: Axes, side: str, scale: str, ticks: int = 7, whole: bool = False) -> None:
    """A linear or logarithmic axis with readable numbers; a logarithm over less than a decade still gets ticks.

    On a linear axis of `whole` numbers, such as layers, no tick stands between two of them.
    """
    axis: Axis = axes.xaxis if side == "x" else axes.yaxis
    if scale == "log":
        axes.set(**{f"{side}scale": "log"})
        low, high = sorted(axis.get_view_interval())
        decades = numpy.log10(high / low) if low > 0 else 0
        if decades < 1:
            axis.set_major_locator(matplotlib.ticker.MaxNLocator(ticks - 1, steps=_STEPS))
        else:
            axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0), numticks=ticks + 3))
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    else:
        axis.set_major_locator(matplotlib.ticker.MaxNLocator(ticks, steps=_STEPS, integer=whole))
    axis.set_major_formatter(_numbers())


def _numbers() -> matplotlib.ticker.Formatter:
    class Numbers(matplotlib.ticker.Formatter):
        """Tick labels with as many digits as it takes to tell them apart."""

        def __call__(self, value: float, position: int | None = None) -> str:
            return tick_text(value, 4)

        def format_ticks(self, values: Iterable[float]) -> list[str]:
            ticks = list(values)
            for digits in range(4, 13):
                texts = [tick_text(value, digits) for value in ticks]
                if len(set(texts)) == len(set(ticks)):
                    break
            return texts if ticks else []

    return Numbers()


def tick_text(value: float, digits: int) -> str:
    """A number on an axis: short for large ones and for the dust of rounding.

    >>> tick_text(2e7, 4), tick_text(150000.0, 4), tick_text(0.30000000000000004, 4)
    ('2e7', '150,000', '0.3')
    """
    if abs(value) >= 1e6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return number_text(value, digits)


def _name_rows(axes: Axes, names: tuple[str, ...], cells: int) -> str:
    """As many of the names as stay readable down a heat map's side. Returns the pattern they stand in, where they are cut."""
    per_cell = -(-len(names) // cells)
    at = evenly(cells, 34)
    shortened, pattern = told_apart([names[place * per_cell] for place in at], 26, _short, 40)
    axes.set_yticks(at, shortened)
    return pattern


def _name_columns(axes: Axes, names: tuple[str, ...], cells: int) -> str:
    """As many of the names as stay readable below a heat map, slanted where they are long. Returns the pattern as for rows."""
    per_cell = -(-len(names) // cells)
    shortened, pattern = told_apart(names[::per_cell], 24, _short, 30)
    widest = max(map(len, shortened))
    at = evenly(cells, 30 if widest > 4 else 84 // (widest + 2))
    axes.set_xticks(at, [shortened[place] for place in at])
    if widest > 4:
        axes.tick_params(axis="x", labelrotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    return pattern


def _has_lone_points(line: Line) -> bool:
    """Whether a known point has unknown neighbours, so that no line would show it."""
    known = numpy.concatenate([[False], ~numpy.isnan(line.y), [False]])
    return bool((known[1:-1] & ~known[:-2] & ~known[2:]).any())


def _short(text: str, longest: int) -> str:
    """A name in at most `longest` characters, its middle left out: names differ at both ends."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"
