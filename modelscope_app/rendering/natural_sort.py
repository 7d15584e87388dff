"""Natural order of a column of text: that of `natural_key`, for a million names in a second.

A name is rewritten so that plain order of what is written is natural order of names. Leading zeros go; before each number come
a mark that sorts before any text, because the text before a number ends there, and a letter for how many digits it has,
because of two numbers the longer one comes later.

    h.2.w      h.\\x00A2.w
    h.10.w     h.\\x00B10.w

Imported where polars is anyway.
"""

from __future__ import annotations

import itertools

import numpy
import polars

from modelscope_app.checkpoints.natural_order import natural_key

_MARK, _ESCAPE, _BETWEEN = "\x00", "\x01", "\n"
_LONGEST = 60
"""Digits that are counted in one character from `A` on."""
_ODD = (f"[{_MARK}{_ESCAPE}{_BETWEEN}]", f"[0-9]{{{_LONGEST + 1}}}")
"""What makes a name one to be written by itself; two patterns, because each alone is found ten times as fast."""
_BYTES_AT_ONCE = 4 << 20
"""So that what is in memory besides the column is small, however long its texts are."""


def natural_columns(text: polars.Series) -> tuple[polars.Series, ...]:
    """One or two columns whose plain order, the second where the first ties, is the natural order of `text`; null where it is null."""
    if not text.str.contains("[0-9]").any():
        return (text,)
    has_zeros = text.str.contains("(?:^|[^0-9])0[0-9]").any()
    bare = text.str.replace_all("(^|[^0-9])0+([0-9])", "$1$2") if has_zeros else text
    odd = (bare.str.contains(_ODD[0]) | bare.str.contains(_ODD[1])).fill_null(value=False)
    plain = bare.set(odd | bare.is_null(), "")
    part = plain.str.len_bytes().cast(polars.UInt64).cum_sum() // _BYTES_AT_ONCE
    ends = [*(part.diff() != 0).arg_true().to_list(), len(plain)]
    keys = polars.concat([_counted(plain[begin:end]) for begin, end in itertools.pairwise([0, *ends])]).set(bare.is_null(), None)
    if odd.any():
        keys = keys.scatter(odd.arg_true(), [_written(name) for name in bare.filter(odd)])
    return (keys, text) if has_zeros else (keys,)


def _counted(names: polars.Series) -> polars.Series:
    """The names, each number with its mark and its letter."""
    text = numpy.frombuffer(f"{_BETWEEN}{names.str.join(_BETWEEN).item()}{_BETWEEN}".encode(), numpy.uint8)
    is_digit = text - numpy.uint8(ord("0")) < 10  # what is less than 0 comes out large
    edges = numpy.flatnonzero(is_digit[1:] != is_digit[:-1]) + 1
    begins, counts = edges[::2], edges[1::2] - edges[::2]
    marks = numpy.stack([numpy.full_like(counts, ord(_MARK)), ord("A") - 1 + counts], axis=1).astype(numpy.uint8)  # (number, 2)
    written = numpy.insert(text, begins.repeat(2), marks.ravel())
    return polars.Series([written[1:-1].tobytes().decode()]).str.split(_BETWEEN).explode()


def _written(name: str) -> str:
    """The same for one name, whatever it holds."""
    return "".join(_escaped(part) if isinstance(part, str) else _number(*part) for part in natural_key(name)[0])


def _escaped(text: str) -> str:
    return text.replace(_ESCAPE, _ESCAPE * 2).replace(_MARK, _ESCAPE + _MARK)


def _number(count: int, digits: str) -> str:
    letter = chr(ord("A") - 1 + max(count, 1)) if count <= _LONGEST else f"~{count:020}"
    return f"{_MARK}{letter}{digits or 0}"
