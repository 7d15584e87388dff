"""Two runs side by side: their facts with the difference, and each view that both have, in the same tab."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import DataTable, Footer, Static, TabbedContent, TabPane

from modelscope_app.api import FactsView, View, neutralised
from modelscope_app.rendering.wording import age_text, fact_text, label_text, number_text
from modelscope_app.runs.folder import RunFolder
from modelscope_app.tui.fence import Fence, FencingScreen
from modelscope_app.tui.jobs.words import checkpoint_name, state_text
from modelscope_app.tui.on_screen import Explanation
from modelscope_app.tui.thread_work import failure_told

_STACKED_BELOW = 100
"""Columns of the terminal from which on the two stand beside each other."""


class CompareScreen(FencingScreen[None]):
    """Runs `left` and `right`."""

    DEFAULT_CSS = """
    CompareScreen #head { height: auto; max-height: 4; padding: 0 1; background: $panel; }
    CompareScreen TabbedContent { height: 1fr; }
    CompareScreen TabPane { padding: 0; }
    CompareScreen Horizontal { height: 1fr; }
    CompareScreen Horizontal.stacked { layout: vertical; }
    CompareScreen .side { width: 1fr; height: 1fr; border-top: solid $primary; }
    CompareScreen #said { padding: 1 2; height: auto; }
    """
    BINDINGS = [
        ("escape", "app.back", "Back"),
        *[Binding(str(number), f"tab({number})", "Show the tab of that number", show=False) for number in range(1, 10)],
    ]

    class _Read(Message):
        """Both were read, or a sentence on why not."""

        def __init__(self, runs: tuple[RunFolder, ...], views: tuple[tuple[View, View], ...], facts: tuple[Any, ...], error: str) -> None:
            self.runs, self.views, self.facts, self.error = runs, views, facts, error
            super().__init__()

    def __init__(self, left: Path, right: Path) -> None:
        super().__init__()
        self._folders = (left, right)
        self._views: dict[str, tuple[View, View]] = {}
        """By the id of their tab."""
        self._runs: tuple[RunFolder, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static("Reading ...", id="head", markup=False)
        yield TabbedContent()
        yield Footer()

    def on_mount(self) -> None:
        """Read both."""
        self._read()

    @work(thread=True, exclusive=True, exit_on_error=False)
    def _read(self) -> None:
        with failure_told(lambda sentence: self.post_message(self._Read((), (), (), sentence)), "they cannot be read"):
            runs = tuple(RunFolder.open(folder) for folder in self._folders)
            for run in runs:
                run.read_status()
            left, right = ({view.name: view for view in run.views if not isinstance(view, FactsView)} for run in runs)
            views = tuple((view, right[name]) for name, view in left.items() if name in right and right[name].kind == view.kind)
            self.post_message(self._Read(runs, views, tuple(dict(run.facts) for run in runs), ""))

    @on(_Read)
    async def _show(self, event: _Read) -> None:
        head = self.query_one("#head", Static)
        if event.error:
            head.update(Content(neutralised(event.error, 2000)))
            return
        self._runs = event.runs
        head.update(Content("\n").join(Content(f"{side}  {_line(run)}") for side, run in zip(("A", "B"), event.runs, strict=True)))
        tabs = self.query_one(TabbedContent)
        rows = difference_rows(*event.facts)
        if rows:
            table: DataTable[Text] = DataTable(cursor_type="row")
            for name in ("fact", "A", "B", "B minus A"):
                table.add_column(name)
            for row in rows:
                table.add_row(*map(Text, row))  # of textual's Content the table does not know the width
            await tabs.add_pane(TabPane("Facts", table, id="facts"))
        for at, pair in enumerate(event.views):
            self._views[f"view-{at}"] = pair
            await tabs.add_pane(TabPane(Content(neutralised(pair[0].title, 24)), id=f"view-{at}"))
        if not rows and not event.views:
            await tabs.add_pane(TabPane("Nothing", Static("The two runs have no fact and no view in common.", id="said"), id="nothing"))

    async def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        """Make what is looked at for the first time."""
        from modelscope_app.tui.views import board_for

        pair = self._views.get(event.pane.id or "")
        if pair is None or len(event.pane.children):
            return
        boards = []
        for run, view in zip(self._runs, pair, strict=True):
            boards.append(Fence(f"The view {neutralised(view.name, 80)}", partial(board_for, run, view)))
        sides = []
        for word, board in zip(("A", "B"), boards, strict=True):
            side = VerticalScroll(board, classes="side", can_focus=False)
            side.border_title = word
            sides.append(side)
        await event.pane.mount(Horizontal(*sides, classes="stacked" if self.app.size.width < _STACKED_BELOW else ""))

    def on_resize(self) -> None:
        """Beside or below each other, as there is room."""
        for row in self.query("TabPane > Horizontal"):
            row.set_class(self.app.size.width < _STACKED_BELOW, "stacked")

    def action_tab(self, number: int) -> None:
        """The tab of that number."""
        tabs = self.query_one(TabbedContent)
        panes = [pane.id for pane in tabs.query(TabPane) if pane.id]
        if number <= len(panes):
            tabs.active = panes[number - 1]

    def explanation(self) -> Explanation:
        """For `?`."""
        text = "A is the run marked first, B the second. Facts stand beside each other; views that only one run has are left out."
        return Explanation("Two runs", text)


def difference_rows(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Facts of both: name, A, B, and B minus A where both are numbers.

    >>> difference_rows({"auroc": 0.5, "layer": "a"}, {"auroc": 0.75})
    [('auroc', '0.5', '0.75', '+0.25'), ('layer', 'a', 'not there', '')]
    """
    rows = []
    for name in dict.fromkeys((*left, *right)):
        texts = [fact_text(facts[name], name) if name in facts else "not there" for facts in (left, right)]
        values = [_number(facts.get(name)) for facts in (left, right)]
        change = values[1] - values[0] if values[0] is not None and values[1] is not None else None
        rows.append((label_text(name), *texts, "" if change is None else f"{'+' if change > 0 else ''}{number_text(change)}"))
    return rows  # type: ignore[return-value]


def _number(value: Any) -> float | None:
    if isinstance(value, Mapping):
        value = value.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _line(run: RunFolder) -> str:
    import time

    names = ", ".join(checkpoint_name(checkpoint.path) for checkpoint in run.job.checkpoints[:3])
    age = age_text(time.time() - run.job.created_at.timestamp())
    return f"{state_text(run.status)}  {neutralised(run.analysis, 60)} on {names}, {age} ago  {neutralised(run.id, 80)}"
