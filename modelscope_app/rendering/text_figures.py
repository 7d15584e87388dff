"""Facts, tables, token strips and graphs with matplotlib. Each returns the figure and sentences on what it leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle
from rich.cells import cell_len

from modelscope_app.api import neutralised
from modelscope_app.rendering.drawings import FactsDrawing, GraphDrawing, TableDrawing, TokenStripDrawing
from modelscope_app.rendering.graph_layers import graph_layers
from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.rendering.palette import GRID, INK, MUTED, PAGE, REST, SERIES, UNKNOWN_FILL, ink_on, level_colour
from modelscope_app.rendering.wording import UNKNOWN, count_text, number_text, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 7.6
"""Inches."""
LINE = 0.23
"""Height of a line of text in inches."""
COLUMNS = 96
"""Monospace characters across a figure at the size below."""
_SIZE = 7.9
WIDEST_CELL = 40
MOST_ROWS = 25
MOST_TOKENS = 300
MOST_TEXTS = 5
MOST_EDGES = 40


def sentence_figure(sentence: str) -> tuple[Figure, list[str]]:
    """A figure that says one thing."""
    figure, axes = _page(1)
    axes.text(0, 0.5, sentence, color=MUTED.light, va="center")
    return figure, []


def facts_figure(drawing: FactsDrawing) -> tuple[Figure, list[str]]:
    """Names on the left, values beside them."""
    shown = drawing.facts[: 2 * MOST_ROWS]
    figure, axes = _page(len(shown))
    name_width = min(40, max(cell_len(name) for name, _ in shown))
    for line, (name, text) in enumerate(shown):
        _type(axes, 0, line, BLOCKS.cut(name, name_width), MUTED.light)
        _type(axes, name_width + 2, line, BLOCKS.cut(text, COLUMNS - name_width - 2), INK.light)
    left_out = len(drawing.facts) - len(shown)
    return figure, [f"{count_text(left_out, 'more fact')}."] if left_out else []


def table_figure(drawing: TableDrawing) -> tuple[Figure, list[str]]:
    """The first rows, and as many columns from the left as fit."""
    frame = drawing.frame.head(MOST_ROWS)
    heads = [BLOCKS.cut(neutralised(name), WIDEST_CELL) for name in frame.columns]
    columns = [[BLOCKS.cut(value_text(value, name), WIDEST_CELL) for value in frame[name].to_list()] for name in frame.columns]
    widths = [max(map(cell_len, [head, *cells])) for head, cells in zip(heads, columns, strict=True)]
    figure, axes = _page(frame.height + 1)
    start, fitted = 0, 0
    for name, head, cells, width in zip(frame.columns, heads, columns, widths, strict=True):
        if start + width > COLUMNS and fitted:
            break
        for line, text in enumerate([head, *cells]):
            left = start + (width - cell_len(text) if frame[name].dtype.is_numeric() else 0)
            colour = MUTED.light if text == UNKNOWN and line else INK.light
            _type(axes, left, line, text, colour, weight="bold" if not line else "normal")
        start, fitted = start + width + 2, fitted + 1
    axes.plot([0, COLUMNS], [1, 1], color=GRID.light, linewidth=0.8)
    left_out = []
    if drawing.frame.height > frame.height:
        left_out.append(f"The first {frame.height} of {count_text(drawing.frame.height, 'row')}.")
    if fitted < len(heads):
        left_out.append(f"The first {fitted} of {count_text(len(heads), 'column')}.")
    return figure, left_out


def token_strip_figure(drawing: TokenStripDrawing) -> tuple[Figure, list[str]]:
    """Tokens as running text, coloured, with the score in small digits below each."""
    placed: list[tuple[int, float, str, str, str, str]] = []  # line, left, text, number, ink, fill
    line = 0
    for at, label in enumerate(drawing.score_labels):
        known = numpy.concatenate([text.scores[at] for text in drawing.texts])
        known = known[~numpy.isnan(known)]
        reach, signed = float(numpy.abs(known).max(initial=0)), bool((known < 0).any())
        placed.append((line, 0, f"{label}, at most {number_text(reach)} in size", "", INK.light, ""))
        line += 1
        for text in drawing.texts[:MOST_TEXTS]:
            if text.name:
                placed.append((line, 0, BLOCKS.cut(text.name, COLUMNS), "", MUTED.light, ""))
                line += 1
            left = 0.0
            for token, score in zip(text.tokens[:MOST_TOKENS], text.scores[at].tolist(), strict=False):
                shown = BLOCKS.cut(token if token.strip() else token.replace(" ", BLOCKS.dot), COLUMNS)
                number = "?" if score != score else number_text(score, 2)
                width = max(cell_len(shown), len(number) * 0.72 + 0.4, 1)
                if left + width > COLUMNS and left:
                    left, line = 0.0, line + 2
                level = score / reach if reach else 0.0
                fill = UNKNOWN_FILL if score != score else level_colour(level, signed)
                placed.append((line, left, shown, number, ink_on(fill), fill))
                left += width
            line += 2
    figure, axes = _page(line)
    for at_line, left, text_shown, number, ink, fill in placed:
        if not fill:
            _type(axes, left, at_line, text_shown, ink)
            continue
        width = max(cell_len(text_shown), len(number) * 0.72 + 0.4, 1)
        axes.add_patch(Rectangle((left, at_line + 0.08), width - 0.12, 0.88, facecolor=fill, linewidth=0))
        _type(axes, left, at_line, text_shown, ink)
        _type(axes, left, at_line + 0.8, number, MUTED.light, size=5.6)
    return figure, _token_notes(drawing)


def graph_figure(drawing: GraphDrawing) -> tuple[Figure, list[str]]:
    """The strongest edges between nodes in layers, left to right. Width is |weight|; edges below zero are dashed."""
    edges = drawing.edges[:MOST_EDGES]
    layers = graph_layers([(edge.source, edge.target) for edge in edges])
    tallest = max(map(len, layers))
    across, down = min(11.0, max(WIDTH, 1.35 * len(layers))), max(2.0, min(12.0, 0.5 * tallest + 0.9))
    figure = Figure(figsize=(across, down), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    where = {
        node: (layer, (at + 0.5) / len(nodes) * tallest + 0.12 * (layer % 2))
        for layer, nodes in enumerate(layers)
        for at, node in enumerate(nodes)
    }
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(tallest + 0.15, -0.15)
    longest = max(8, int(11 * across / len(layers)))
    boxes = {
        node: axes.text(
            *place,
            BLOCKS.cut(node, longest),
            ha="center",
            va="center",
            fontsize=8,
            zorder=4,
            bbox={"boxstyle": "round,pad=0.35", "facecolor": PAGE.light, "edgecolor": MUTED.light, "linewidth": 0.8},
        )
        for node, place in where.items()
    }
    figure.draw_without_rendering()
    reach = max((abs(edge.weight) for edge in edges if edge.weight == edge.weight), default=0.0) or 1.0
    kinds: dict[str, Line2D] = {}
    for edge in edges:
        kind, colour, dash = _edge_kind(edge.weight, drawing.weight_label is not None)
        width = 0.7 + 2.4 * abs(edge.weight) / reach if edge.weight == edge.weight else 0.9
        axes.add_patch(
            FancyArrowPatch(
                where[edge.source],
                where[edge.target],
                patchA=boxes[edge.source].get_bbox_patch(),
                patchB=boxes[edge.target].get_bbox_patch(),
                shrinkA=1,
                shrinkB=2,
                connectionstyle=f"arc3,rad={0.0 if where[edge.target][0] - where[edge.source][0] == 1 else 0.18}",
                arrowstyle="-|>,head_length=4,head_width=2",
                linewidth=width,
                linestyle=dash,
                color=colour,
                zorder=2,
            )
        )
        kinds.setdefault(kind, Line2D([], [], color=colour, linestyle=dash, label=kind))
    if drawing.weight_label is not None:
        figure.legend(handles=list(kinds.values()), loc="outside lower right", ncols=3, handlelength=3)
    more = len(drawing.edges) - len(edges)
    first = "strongest" if drawing.weight_label is not None else "first"
    return figure, [f"The {first} {len(edges)} of {count_text(len(drawing.edges), 'edge')}."] if more else []


def _edge_kind(weight: float, weighted: bool) -> tuple[str, str, str]:
    if not weighted:
        return "edge", SERIES[0].light, "-"
    if weight != weight:
        return "unknown weight", REST.light, ":"
    return ("above zero", SERIES[0].light, "-") if weight >= 0 else ("below zero", SERIES[1].light, "--")


def _token_notes(drawing: TokenStripDrawing) -> list[str]:
    notes = []
    if len(drawing.texts) > MOST_TEXTS:
        notes.append(f"The first {MOST_TEXTS} of {count_text(len(drawing.texts), 'text')}.")
    if any(len(text.tokens) > MOST_TOKENS for text in drawing.texts[:MOST_TEXTS]):
        notes.append(f"The first {MOST_TOKENS} tokens of each text.")
    return notes


def _page(lines: int) -> tuple[Figure, Axes]:
    """A figure to type on: x counts monospace characters, y counts lines from the top."""
    figure = Figure(figsize=(WIDTH, LINE * lines + 0.15), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(max(lines, 1), 0)
    return figure, axes


def _type(axes: Axes, column: float, line: float, text: str, colour: str, weight: str = "normal", size: float = _SIZE) -> None:
    axes.text(
        column, line + 0.5, text, family=["monospace", "sans-serif"], fontsize=size, color=colour, weight=weight, va="center", zorder=3
    )
