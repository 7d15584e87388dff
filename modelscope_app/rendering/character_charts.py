"""Bars, heat maps and token strips out of characters. Signs, digits and shades carry the values; colour only repeats them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from modelscope_app.api import neutralised
from modelscope_app.rendering.drawings import BarsDrawing, HeatMapDrawing, TokenStripDrawing, TokenText
from modelscope_app.rendering.marks import Marks
from modelscope_app.rendering.naming import pattern_note, told_apart
from modelscope_app.rendering.palette import ink_on, level_colour, levels
from modelscope_app.rendering.thinning import pooled
from modelscope_app.rendering.wording import UNKNOWN, count_text, interval_text, number_text

if TYPE_CHECKING:
    import numpy

LONGEST_NAME = 28
MOST_NAMED = 12
"""Columns of a heat map that are named one by one."""
MOST_HEAT_MAP_ROWS = 40
MOST_TOKENS = 400
"""Tokens of one text that are printed."""


def bar_chart(drawing: BarsDrawing, width: int, marks: Marks, most: int) -> Iterator[Text]:
    """One bar a line, its value and interval as text. Bars below zero reach to the left of the zero line."""
    import numpy

    shown = min(most, len(drawing.names))
    values = drawing.values[:shown]
    names, pattern = told_apart(drawing.names[:shown], max(12, int(width * 0.45)), marks.cut)
    texts = [
        interval_text(float(value), float(low), float(high), drawing.value_label)
        for value, low, high in zip(values, drawing.low, drawing.high, strict=False)
    ]
    if not shown:
        return
    name_width, text_width = max(map(cell_len, names)), max(map(len, texts))
    room = max(8, width - name_width - text_width - 4)
    known = values[~numpy.isnan(values)]
    lowest, highest = min(0.0, float(known.min(initial=0))), max(0.0, float(known.max(initial=0)))
    per_cell = (highest - lowest) / room or 1.0
    left = math.ceil(-lowest / per_cell) if lowest else 0
    for name, value, text in zip(names, values, texts, strict=True):
        bar = bar_text(float(value), per_cell, left, room, marks)
        yield Text.assemble(name, " " * (name_width - cell_len(name) + 2), (bar, "cyan"), "  ", text.rjust(text_width))
    if len(drawing.names) > shown:
        yield Text(f"The first {shown} of {count_text(len(drawing.names), 'bar')}.", style="dim")
    for note in pattern_note(pattern):
        yield Text(marks.text(note), style="dim")


def heat_map(drawing: HeatMapDrawing, width: int, marks: Marks) -> Iterator[Text]:
    """Cells with their numbers where these fit, else with a sign and a shade; `?` is unknown."""
    if not drawing.values.size:
        return
    name_width = min(max(cell_len(marks.text(name)) for name in drawing.rows), LONGEST_NAME)
    room = width - name_width - 2
    number_width = max(len(short_number(value)) for value in drawing.values.flat) + 1 if drawing.values.size <= 4000 else width
    cell_width = number_width if number_width * len(drawing.columns) <= room else 2
    values = pooled(drawing.values, MOST_HEAT_MAP_ROWS, max(1, room // cell_width), drawing.center)
    tall, wide = (-(-whole // part) for whole, part in zip(drawing.values.shape, values.shape, strict=True))
    levelled, low, high = levels(values, drawing.center)
    diverging = drawing.center is not None
    yield Text(marks.text(f"{drawing.row_label} downwards, {drawing.column_label} across ({_across(drawing.columns)})"), style="dim")
    names, pattern = told_apart(drawing.rows[::tall], name_width, marks.cut)
    for name, row_values, row_levels in zip(names, values, levelled, strict=True):
        line = Text.assemble((name + " " * (name_width - cell_len(name) + 2), "dim"))
        for value, level in zip(row_values, row_levels, strict=True):
            cell = short_number(value).rjust(cell_width) if cell_width > 2 else sign_and_shade(value, float(level), drawing.center, marks)
            line.append(cell, style=(number_style if cell_width > 2 else shade_style)(float(level), diverging))
        yield line
    yield _heat_map_legend(drawing, low, high, cell_width, marks)
    if (tall, wide) != (1, 1):
        chosen = f"farthest from {number_text(drawing.center)}" if drawing.center is not None else "largest"
        yield Text(f"A mark stands for {tall} x {wide} cells and shows the {chosen} of them.", style="dim")
    for note in pattern_note(pattern):
        yield Text(marks.text(note), style="dim")


def token_strip(drawing: TokenStripDrawing, width: int, marks: Marks, numbers: bool, most: int) -> Iterator[Text]:
    """Tokens as running text, below each its score: a digit (tenths of the largest), or with `numbers` the number itself."""
    import numpy

    for at, label in enumerate(drawing.score_labels if any(text.tokens for text in drawing.texts) else ()):
        scores = [text.scores[at] for text in drawing.texts]
        known = numpy.concatenate([*scores, numpy.empty(0)])
        known = known[~numpy.isnan(known)]
        reach, signed = float(numpy.abs(known).max(initial=0)), bool((known < 0).any())
        scale = "" if numbers else f": tenths of {number_text(reach)}, its largest size; ? is unknown"
        yield Text(marks.text(label) + scale, style="bold")
        for text, text_scores in list(zip(drawing.texts, scores, strict=True))[:most]:
            yield from _token_lines(text, text_scores, reach, signed, width, marks, numbers)
        if len(drawing.texts) > most:
            yield Text(f"{len(drawing.texts) - most:,} more texts not shown.", style="dim")


def _across(names: tuple[str, ...]) -> str:
    """Column names, which have no room above their columns: a few words all, many or numbers the first and the last."""
    short = [neutralised(name, LONGEST_NAME) for name in names]
    if len(names) == 1 or (len(names) <= MOST_NAMED and not all(name.isdecimal() for name in names)):
        return ", ".join(short)
    return f"{short[0]} to {short[-1]}"


def _token_lines(
    text: TokenText, scores: numpy.ndarray, reach: float, signed: bool, width: int, marks: Marks, numbers: bool
) -> Iterator[Text]:
    if text.name:
        yield Text(marks.cut(text.name, width), style="italic")
    above, below = Text(), Text(style="dim")
    for token, score in zip(text.tokens[:MOST_TOKENS], scores.tolist(), strict=False):
        shown = marks.cut(token.replace(" ", marks.dot) if not token.strip() else token, width)
        digit = number_text(score, 2).replace(UNKNOWN, "?") + " " if numbers else score_digit(score, reach, signed)
        size = max(cell_len(shown), cell_len(digit))
        if cell_len(above.plain) + size > width:
            yield from (above, below)
            above, below = Text(), Text(style="dim")
        level = math.nan if math.isnan(score) else score / reach if reach else 0.0
        above.append(shown + " " * (size - cell_len(shown)), style=number_style(level, signed))
        below.append(digit.ljust(size))
    if above.plain:
        yield from (above, below)
    if len(text.tokens) > MOST_TOKENS:
        yield Text(f"{len(text.tokens) - MOST_TOKENS:,} more tokens not shown.", style="dim")


def score_digit(score: float, reach: float, signed: bool) -> str:
    """Tenths of the largest score, 0 to 9, with a sign where some scores have one."""
    if math.isnan(score):
        return "? " if signed else "?"
    digit = min(9, int(abs(score) / reach * 10)) if reach else 0
    return f"{'-' if score < 0 else '+'}{digit}" if signed else str(digit)


def bar_text(value: float, per_cell: float, left: int, room: int, marks: Marks) -> str:
    """A bar in `room` cells with its zero after `left` of them."""
    if math.isnan(value):
        return " " * left + ("?" if room > left else "").ljust(room - left)
    if value < 0:
        length = min(left, max(1, round(-value / per_cell)))
        return (marks.right[8] * length).rjust(left) + " " * (room - left)
    eighths = round(value / per_cell * 8)
    eighths = max(1, eighths) if value else 0
    bar = marks.right[8] * (eighths // 8) + (marks.right[eighths % 8] if eighths % 8 else "")
    return " " * left + bar[: room - left].ljust(room - left)


def short_number(value: float) -> str:
    """A number in two significant digits; `?` is unknown."""
    return "?" if math.isnan(value) else number_text(value, 2)


def sign_and_shade(value: float, level: float, center: float | None, marks: Marks) -> str:
    """Two characters: which side of the centre, and how far from it; without a centre, how high."""
    if math.isnan(level):
        return "??"
    shade = marks.shades[min(4, round(abs(level) * 4))]
    return shade * 2 if center is None else ("-" if value < center else "+" if value > center else " ") + shade


def number_style(level: float, diverging: bool) -> str:
    """The style of a number on the colour of its level; dim where it is unknown."""
    if math.isnan(level):
        return "dim"
    colour = level_colour(round(level * 8) / 8, diverging)
    return f"{ink_on(colour)} on {colour}"


def shade_style(level: float, diverging: bool) -> str:
    """The end of the scale printed on a paler step of it, so that a denser shade is also a stronger colour."""
    if math.isnan(level):
        return "dim"
    return f"{level_colour(-1.0 if level < 0 else 1.0, diverging)} on {level_colour(round(level * 8) / 8 * 0.6, diverging)}"


def _heat_map_legend(drawing: HeatMapDrawing, low: float, high: float, cell_width: int, marks: Marks) -> Text:
    """What colours and shades mean, each with its sign and shade beside the number."""
    label = marks.text(drawing.value_label)
    if low == high == 0 and (drawing.values != drawing.values).all():
        return Text(f"{label}: nothing known", style="dim")
    center = drawing.center
    legend = Text(f"{label}:", style="dim")
    for value, level in ((low, 0.0), (high, 1.0)) if center is None else ((low, -1.0), (center, 0.0), (high, 1.0)):
        shade = sign_and_shade(value, level, center, marks) if cell_width == 2 else "  "
        legend.append("   " if value != low or level == 1.0 else " ")
        legend.append(shade, style=(number_style if cell_width > 2 else shade_style)(level, center is not None))
        legend.append(f" {number_text(value)}")
    return legend.append("   ? unknown") if (drawing.values != drawing.values).any() else legend
