"""Panel `probes.evidence`: the evidence card on one screen, the verdict on top.

Reading happens in a thread. A run that has not ended is looked at once a second until it has its card; what cannot be read is a
sentence in the card's place.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from modelscope_app.api import FinishedRun, MscopeError, neutralised
from modelscope_probes.panels.evidence_card import CardRow, card_rows, verdict_lines
from modelscope_probes.panels.one_line_charts import ChartLine, charts

LOOK_SECONDS = 1.0
ENDED = frozenset({"done", "failed", "cancelled", "lost"})
_NAME_WIDTH, _VALUE_WIDTH, _CHART_NAME_WIDTH = 17, 24, 22

ABOUT = (
    "The verdict is the first line of a written table that holds (docs/analyses/probes_defection.md). + beside a number says that a "
    "condition of that table holds, - that it does not, ? that it is unknown. No number stands alone: an AUROC of 1 without a twin and "
    "against easy negatives is worth nothing. Below the card are charts of one line each; the other tabs draw them large."
)


class Card(NamedTuple):
    """What was read of the run."""

    is_final: bool
    verdict: tuple[str, str] | None
    """With its reason; None where there is no card."""
    rows: Sequence[CardRow]
    charts: Sequence[ChartLine]
    sentence: str = ""
    """What stands there instead of a card."""


def read_card(run: FinishedRun) -> Card:
    """The card as it is now. Raises MscopeError where the run's files are damaged."""
    state = run.status
    facts = run.facts
    if "verdict" in facts:
        return Card(True, verdict_lines(facts), card_rows(facts, run.params), charts(run))
    if state not in ENDED:
        return Card(False, None, (), (), f"The run is {state}; the card is there when it is done.")
    why = f": {neutralised(run.error, 1000)}" if run.error else ""
    return Card(True, None, (), (), f"There is no card: the run is {state}{why}")


class EvidencePanel(Vertical):
    """The evidence card of a run of `probes.defection`."""

    DEFAULT_CSS = """
    EvidencePanel { height: 1fr; }
    EvidencePanel > #verdict { height: auto; max-height: 4; padding: 0 1; }
    EvidencePanel > OptionList { height: 1fr; border: none; padding: 0; max-height: 100%; background: $background; }
    EvidencePanel > OptionList:focus { border: none; }
    """

    class CardRead(Message):
        """The run was looked at."""

        def __init__(self, card: Card) -> None:
            self.card = card
            super().__init__()

    def __init__(self, run: FinishedRun) -> None:
        super().__init__()
        self.run = run
        self.card: Card | None = None
        """None until it is read."""

    def compose(self) -> ComposeResult:
        """The verdict, then a line for each number."""
        yield Static("Reading ...", id="verdict", markup=False)
        yield OptionList(id="numbers", markup=False)

    def on_mount(self) -> None:
        """Read now, and again while the run goes on."""
        self._read()
        self.set_interval(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        if self.card is not None and not self.card.is_final:
            self._read()

    @work(thread=True, exclusive=True, group="card")
    def _read(self) -> None:
        try:
            card = read_card(self.run)
        except (MscopeError, OSError) as error:
            card = Card(True, None, (), (), f"The card cannot be read: {neutralised(str(error), 1000)}")
        self.post_message(self.CardRead(card))

    @on(CardRead)
    def _show(self, event: CardRead) -> None:
        event.stop()
        card = event.card
        if card == self.card:
            return
        self.card = card
        verdict, numbers = self.query_one("#verdict", Static), self.query_one("#numbers", OptionList)
        numbers.display = card.verdict is not None
        if card.verdict is None:
            verdict.update(Content(card.sentence))
            return
        said, reason = card.verdict
        verdict.update(Content.assemble((said, "bold"), f": {reason}" if reason else ""))
        numbers.clear_options()
        numbers.add_options([Option(_card_line(row)) for row in card.rows])
        if card.charts:
            numbers.add_option(None)
            numbers.add_options([Option(_chart_line(line)) for line in card.charts])
        numbers.highlighted = 0

    @property
    def chosen(self) -> CardRow | ChartLine | None:
        """The line under the cursor."""
        at = self.query_one("#numbers", OptionList).highlighted
        if self.card is None or at is None:
            return None
        lines: list[CardRow | ChartLine] = [*self.card.rows, *self.card.charts]
        return lines[at] if at < len(lines) else None

    def explanation(self) -> str:
        """For `?`: the number under the cursor, then the card."""
        line = self.chosen
        return ABOUT if line is None else f"{line.name}: {line.meaning}\n\n{ABOUT}"

    def copied(self) -> str | None:
        """For `y`: the number under the cursor with every digit, as JSON."""
        line = self.chosen
        return None if line is None else line.exact

    def headless_command(self) -> str:
        """For `c`."""
        return f"mscope runs show {shlex.quote(str(self.run.folder))}"


def _grid() -> Table:
    grid: Table = Table.grid(padding=(0, 1), expand=True)
    return grid


def _card_line(row: CardRow) -> Any:
    grid = _grid()
    for width in (1, _NAME_WIDTH, _VALUE_WIDTH):
        grid.add_column(width=width, overflow="fold")
    grid.add_column(ratio=1, overflow="fold")
    grid.add_row(Text(row.sign, "bold"), Text(row.name, "bold"), Text(row.value), Text(row.beside))
    return grid


def _chart_line(line: ChartLine) -> Any:
    grid = _grid()
    grid.add_column(width=1)
    grid.add_column(width=_CHART_NAME_WIDTH, overflow="ellipsis", no_wrap=True)
    grid.add_column(width=max(len(line.marks), 1), no_wrap=True)
    grid.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    grid.add_row("", Text(line.name), Text(line.marks), Text(line.beside))
    return grid
