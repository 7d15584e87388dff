"""Views as matplotlib figures, and figures as SVG or PNG bytes. Drawn through objects alone: no pyplot, no window, no backend.

Names are untrusted, so nothing is ever read as mathematics or TeX: `$x_$` is drawn as these four characters.
matplotlib keeps its style in one process-wide table; it is replaced while a figure is made or written and put back after,
under a lock, so two threads may draw.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

from modelscope_app.api import FinishedRun, View, neutralised
from modelscope_app.rendering.drawings import (
    BarsDrawing,
    Drawing,
    FactsDrawing,
    GraphDrawing,
    HeatMapDrawing,
    HistogramDrawing,
    LinesDrawing,
    TableDrawing,
    TokenStripDrawing,
    drawing,
)
from modelscope_app.rendering.palette import GRID, INK, MUTED, PAGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 144
_LOCK = threading.RLock()
_STYLE: Final[dict[str, Any]] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.monospace": ["DejaVu Sans Mono", "Menlo", "Consolas", "monospace"],
    "font.size": 9,
    "text.color": INK.light,
    "text.parse_math": False,
    "text.usetex": False,
    "figure.facecolor": PAGE.light,
    "savefig.facecolor": "auto",
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED.light,
    "axes.labelcolor": INK.light,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID.light,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "modelscope-app",
}


def view_figure(run: FinishedRun, view: View) -> Figure:
    """A view as a figure with its title and notes. Raises BadInput where the view does not fit its table."""
    return drawing_figure(drawing(run, view), view.title)


def drawing_figure(drawn: Drawing, title: str | None) -> Figure:
    """A drawing as a figure. With a title it stands alone, so its notes are printed below; without, the page around has them."""
    with _style():
        figure, left_out = _figure(drawn)
        if title is not None:
            figure.suptitle(neutralised(title, 90), x=0.01, ha="left", fontsize=11, fontweight="bold")
        notes = [*left_out, *(drawn.notes if title is not None else ())]
        figure.set_figheight(figure.get_figheight() + 0.3 * (title is not None) + 0.17 * len(notes))
        if notes:
            figure.supxlabel("\n".join(neutralised(note, 110) for note in notes), x=0.01, ha="left", fontsize=8, color=MUTED.light)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what is placed stays placed, whatever the figure is written as
    return figure


def picture_bytes(figure: Figure, kind: Literal["svg", "png"] = "svg", transparent: bool = False) -> bytes:
    """A figure as a file's content. The same figure gives the same bytes; text in SVG stays text."""
    written = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else {"Software": None}
    with _style():
        figure.savefig(written, format=kind, dpi=DOTS_PER_INCH, metadata=metadata, facecolor="none" if transparent else "auto")
    return written.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """Our style instead of the user's, for as long as the block runs; missing glyphs are no news to a user."""
    import logging
    import warnings

    from matplotlib import style

    font_log = logging.getLogger("matplotlib.font_manager")
    with _LOCK, style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        level = font_log.level
        font_log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            font_log.setLevel(level)


def _figure(drawn: Drawing) -> tuple[Figure, list[str]]:
    """The figure, and sentences on what it leaves out."""
    from modelscope_app.rendering import chart_figures, text_figures

    match drawn:
        case LinesDrawing() if any(len(line.x) for line in drawn.lines):
            return chart_figures.lines_figure(drawn)
        case BarsDrawing() if drawn.names:
            return chart_figures.bars_figure(drawn)
        case HistogramDrawing() if any(len(bins.counts) for bins in drawn.groups):
            return chart_figures.histogram_figure(drawn)
        case HeatMapDrawing() if drawn.values.size:
            return chart_figures.heat_map_figure(drawn)
        case TokenStripDrawing() if any(text.tokens for text in drawn.texts):
            return text_figures.token_strip_figure(drawn)
        case GraphDrawing() if drawn.edges:
            return text_figures.graph_figure(drawn)
        case TableDrawing() if drawn.frame.height and drawn.frame.width:
            return text_figures.table_figure(drawn)
        case FactsDrawing() if drawn.facts:
            return text_figures.facts_figure(drawn)
    return text_figures.sentence_figure("Nothing to draw.")
