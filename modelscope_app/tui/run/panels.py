"""Panels: widgets that plugins contribute for runs no view can show. Each lies behind a fence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textual.widget import Widget

    from modelscope_app.plugin_host import PluginHost
    from modelscope_app.runs.folder import RunFolder


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
            found.append(FoundPanel(f"{contributed.plugin}.{panel.name}", panel.title, _maker(panel.widget, run)))
    return tuple(found)


def _maker(reference: str, run: RunFolder) -> Callable[[], Any]:
    def make() -> Any:
        from modelscope_app.plugin_host.functions import load_function

        return load_function(reference)(run)

    return make
