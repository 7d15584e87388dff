"""Panels: widgets that plugins contribute for runs no view can show. Each lies behind a fence.

What a panel may ask of the app is `api.PanelApp`, which `tui.app.MscopeApp` is. A plugin knows none of this package, so a panel answers
the keys that work everywhere in plain text, and the frame around it gives the app these answers in the form it expects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textual.screen import Screen
    from textual.widget import Widget

    from modelscope_app.plugin_host import PluginHost
    from modelscope_app.runs.folder import RunFolder

TAB = "panel-"
"""How the ids of their tabs begin."""


@dataclass(frozen=True, slots=True)
class FoundPanel:
    """One panel that can show a run."""

    id: str
    """`<plugin>.<name>`."""
    title: str
    make: Callable[[], Widget]
    """Makes the widget; raises what the plugin raises."""


def panels_of(run: RunFolder, host: PluginHost) -> tuple[FoundPanel, ...]:
    """The panels that can show a run. Imports the plugins; call it in a thread. A class is imported when its panel is made."""
    plugin_name, _, analysis = run.analysis.partition(".")
    found = []
    for contributed in host.panels():
        panel = contributed.value
        if contributed.plugin == plugin_name and (not panel.analyses or {analysis, run.analysis} & set(panel.analyses)):
            found.append(FoundPanel(f"{contributed.plugin}.{panel.name}", panel.title, _maker(panel.widget, panel.title, run)))
    return tuple(found)


def next_panel(screen: Screen[Any]) -> int | None:
    """The number, counted from 1, of the tab with the panel after the one in front, the first one after the last; None without panels."""
    tabs = [pane.id or "" for pane in screen.query("TabPane")]
    panels = [number for number, tab in enumerate(tabs, start=1) if tab.startswith(TAB)]
    in_front = next((tab.active for tab in screen.query("TabbedContent") if hasattr(tab, "active")), "")
    now = tabs.index(in_front) + 1 if in_front in tabs else 0
    return next((number for number in panels if number > now), panels[0] if panels else None)


def _maker(reference: str, title: str, run: RunFolder) -> Callable[[], Any]:
    def make() -> Any:
        from textual.widget import Widget

        from modelscope_app.plugin_host.functions import load_function
        from modelscope_app.tui.run.panel_frame import PanelFrame

        panel = load_function(reference)(run)
        return PanelFrame(title, panel, str(run.folder), run.checkpoints) if isinstance(panel, Widget) else panel

    return make
