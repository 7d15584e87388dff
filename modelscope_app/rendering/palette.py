"""Colours, the same in terminal, HTML and pictures, and where a value stands on a colour scale.

Blue against orange stays apart for every common colour blindness. Colour is never the only carrier: front ends add numbers,
shades, dashes or hatching.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import numpy

SEQUENTIAL: Final = ("#f3f8fd", "#c2dbef", "#6eafd8", "#2a77b5", "#0a3467")
"""From low to high."""
DIVERGING: Final = ("#0b4a85", "#67aad6", "#f4f4f2", "#f3a263", "#a33c05")
"""From below the centre, through it, to above."""
UNKNOWN_FILL: Final = "#c9cdd2"


class Ink(NamedTuple):
    """A colour on a light page and the one that takes its place on a dark page."""

    name: str
    light: str
    dark: str


INK: Final = Ink("ink", "#1d2329", "#e4e7ea")
MUTED: Final = Ink("muted", "#5a6470", "#a2abb5")
GRID: Final = Ink("grid", "#e1e5e9", "#353b43")
REST: Final = Ink("rest", "#bcc3ca", "#59626c")
"""Series that are there for comparison only."""
SERIES: Final = (
    Ink("series-1", "#0068ad", "#62b1ea"),
    Ink("series-2", "#cf5600", "#f2945a"),
    Ink("series-3", "#00845c", "#48c9a0"),
    Ink("series-4", "#a23f92", "#dc98d0"),
    Ink("series-5", "#8f6f00", "#d8b64c"),
    Ink("series-6", "#4b5561", "#b9c2cc"),
)
PAGE: Final = Ink("page", "#fefefe", "#14171b")
INKS: Final = (PAGE, INK, MUTED, GRID, REST, *SERIES)


def levels(values: numpy.ndarray, center: float | None) -> tuple[numpy.ndarray, float, float]:
    """Where each value stands: 0 (lowest) to 1 (highest), or -1 to 1 around `center`; NaN stays NaN.

    Returns the levels (same shape) and the values at both ends of the scale; (0, 0) where nothing is known.
    """
    import numpy

    known = values[~numpy.isnan(values)]
    if not known.size:
        return numpy.full_like(values, numpy.nan), 0.0, 0.0
    if center is None:
        low, high = float(known.min()), float(known.max())
        halves = (values / 2 - low / 2) / (high / 2 - low / 2) if high > low else numpy.where(numpy.isnan(values), numpy.nan, 1.0)
        return halves, low, high  # halves, because the widest range of numbers is itself no number
    reach = float(numpy.abs(known - center).max())
    return ((values - center) / reach if reach else values - center), center - reach, center + reach


def level_colour(level: float, diverging: bool) -> str:
    """The colour at a level, as `#rrggbb`.

    >>> level_colour(0.0, diverging=True), level_colour(1.0, diverging=False)
    ('#f4f4f2', '#0a3467')
    """
    stops = DIVERGING if diverging else SEQUENTIAL
    at = min(max((level + 1) / 2 if diverging else level, 0.0), 1.0) * (len(stops) - 1)
    below = min(int(at), len(stops) - 2)
    mixed = (round(a + (b - a) * (at - below)) for a, b in zip(_rgb(stops[below]), _rgb(stops[below + 1]), strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on `colour` (WCAG relative luminance).

    >>> ink_on("#f4f4f2"), ink_on("#0a3467")
    ('#000000', '#ffffff')
    """
    red, green, blue = ((part / 255 / 12.92) if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in _rgb(colour))
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
