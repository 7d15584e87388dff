"""Views of a run as widgets: one board per view, the same frame around each.

A board is asked for by the view it shows; the module that draws a kind is imported when the first view of that kind is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscope_app.api import FinishedRun, View
    from modelscope_app.tui.views.board import ViewBoard

_BOARDS: Mapping[str, tuple[str, str]] = {
    "facts": ("facts", "FactsBoard"),
    "table": ("table", "TableBoard"),
    "lines": ("lines", "LinesBoard"),
    "bars": ("bars", "BarsBoard"),
    "histogram": ("histogram", "HistogramBoard"),
    "heat_map": ("heat_map", "HeatMapBoard"),
    "token_strip": ("token_strip", "TokenStripBoard"),
    "graph": ("graph", "GraphBoard"),
}
"""Module in this package and class in it, by kind of view."""


def board_for(run: FinishedRun, view: View) -> ViewBoard:
    """The widget that shows `view` of `run`; a sentence in its place where this version does not know the kind."""
    if view.kind not in _BOARDS:
        from modelscope_app.tui.views.board import UnknownBoard

        return UnknownBoard(run, view)
    module, name = _BOARDS[view.kind]
    board: ViewBoard = getattr(import_module(f"{__name__}.{module}"), name)(run, view)
    return board
