"""`ctrl+p`: everything by name. Analyses, runs and tensors are found as the user types; screens and themes are listed at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.fuzzy import Matcher
from textual.markup import escape

from modelscope_app.api import MscopeError, neutralised

if TYPE_CHECKING:
    from modelscope_app.tui.app import MscopeApp

_MOST = 20
"""Hits of one kind."""
_LONGEST = 100


class EverythingProvider(Provider):
    """What the app can do and show. Slow lists are read once, in a thread, when the palette opens."""

    @property
    def _app(self) -> MscopeApp:
        from modelscope_app.tui.app import MscopeApp

        app = self.app
        assert isinstance(app, MscopeApp)
        return app

    async def startup(self) -> None:
        """Read analyses and runs."""
        from modelscope_app.tui.plugins import shared_plugins

        try:
            analyses = await shared_plugins().ask(lambda host: [(bound.id, bound.analysis.title) for bound in host.analyses()])
        except MscopeError:
            analyses = []  # the list of analyses says what is wrong with the plugins
        self._found = (analyses, await asyncio.to_thread(_runs))

    async def discover(self) -> Hits:
        """What is there before anything is typed."""
        for name, help_text, call in self._fixed():
            yield DiscoveryHit(name, call, help=help_text)

    async def search(self, query: str) -> Hits:
        """Best matches of each kind."""
        matcher = self.matcher(query)
        for name, help_text, call in self._fixed():
            if (score := matcher.match(name)) > 0:
                yield Hit(score, _highlighted(matcher, name), call, text=name, help=help_text)
        for names in (self._named(), self._tensors(query)):
            scored = sorted(((matcher.match(name), name, help_text, call) for name, help_text, call in names), key=lambda one: -one[0])
            for score, name, help_text, call in scored[:_MOST]:
                if score > 0:
                    yield Hit(score, _highlighted(matcher, name), call, text=name, help=escape(help_text))

    def _fixed(self) -> Iterator[tuple[str, str, Callable[[], object]]]:
        app = self._app
        yield "Library: checkpoints and runs", "Recent checkpoints, folders, runs", app.action_library
        yield "Jobs: queue, logs, memory", "What the service does", app.action_jobs
        yield "Help for what has the focus", "What it is, and its keys", app.action_help
        yield "Settings: where the file is", "config.toml, and which pages have its keys", app.action_settings
        yield "Screenshot as SVG", "Saved in the folder the app was started from", app.action_screenshot_file
        yield "Quit", "Jobs go on", app.action_quit_app
        for theme in sorted(app.available_themes):
            yield f"Theme: {theme}", "Changes now; to keep it, set tui.theme in config.toml", partial(setattr, app, "theme", theme)

    def _named(self) -> Iterable[tuple[str, str, Callable[[], object]]]:
        app = self._app
        analyses, runs = self._found
        for id_, title in analyses:
            yield f"Run {neutralised(id_, _LONGEST)}", neutralised(title, _LONGEST), partial(app.choose_analysis, id_)
        for name, help_text, folder in runs:
            yield f"Open run {neutralised(name, _LONGEST)}", neutralised(help_text, _LONGEST), partial(app.open_run, folder)

    def _tensors(self, query: str) -> Iterable[tuple[str, str, Callable[[], object]]]:
        """Tensors whose name holds every word; a fuzzy match over 18,000 of them would take seconds."""
        words = query.lower().split()
        found = 0
        for name in self._app.tensor_names():
            lowered = name.lower()
            if all(word in lowered for word in words):
                yield f"Tensor {neutralised(name, _LONGEST)}", "Show it", partial(self._app.show_tensor, name)
                found += 1
                if found == _MOST:
                    return


def _highlighted(matcher: Matcher, name: str) -> Content:
    """A name as it is, what was typed standing out; textual would read it as markup."""
    content = Content(name)
    _, offsets = matcher.fuzzy_search.match(matcher.query, name)
    for offset in offsets:
        content = content.stylize(matcher.match_style, offset, offset + 1)
    return content


def _runs() -> list[tuple[str, str, Path]]:
    from modelscope_app.runs.index import all_runs

    return [(f"{run.id} {' '.join(Path(one.path).name for one in run.job.checkpoints)}", run.analysis, run.folder) for run in all_runs()]
