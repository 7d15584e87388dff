"""The ranked rows of one run of `influence.scores`, and what of the model made the score of the row under the cursor.

Reading happens in threads, one at a time: what was asked for while another thing was being read is read next, and what nobody asks for
any more is not shown. What cannot be read is a sentence in its place.
"""

from __future__ import annotations

import asyncio
import json
from typing import ClassVar, NamedTuple

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import DescendantFocus, Resize
from textual.message import Message
from textual.widgets import Static

from modelscope_app.api import FinishedRun, MscopeError, neutralised
from modelscope_influence.panels.insides import Inside, read_inside
from modelscope_influence.panels.module_map import ModuleMap
from modelscope_influence.panels.ranked_list import RankedList
from modelscope_influence.panels.rankings import RANKINGS, Ranking, Texts, Wanted, read_ranking, texts_of
from modelscope_influence.panels.row_texts import RowText
from modelscope_influence.panels.scored_cells import Moved
from modelscope_influence.panels.token_strip import TokenStrip

_WIDE, _SHORT, _TINY = 100, 14, 9
"""Columns from which modules stand beside tokens; lines below which everything else takes one, and none."""

ABOUT = (
    "Training rows by how much they made the model do what the query did, or worked against it. s changes between supporters and "
    "opponents, r the ranking: the score, RelatIF (which does not favour rows of large gradients), the cosine of plain gradients and BM25, "
    "words in common; influence that does not beat the last two found words, not causes. # is a row's place by another ranking, on the "
    "same side, among the rows the run has kept; rows that are nearly the same are listed as one, alike says how many more there are; ~ is "
    "before a score that only a scan of low rank gave. Left and right change the query. A row without a score is said to be set aside.\n\n"
    "Below: what each token and each module of the highlighted row contributes to its score, + and - as the score's. The stretch of tokens "
    "that contributes most is underlined. n shows numbers, m changes between tokens and modules where not both have room. u gives the row, "
    "or the token under the cursor, to another analysis."
)


class _Pair(NamedTuple):
    """What is looked into."""

    run: FinishedRun
    query: int
    example: int


class InfluencePane(Vertical):
    """A list of rows above, modules and tokens below."""

    DEFAULT_CSS = """
    InfluencePane {
        height: 1fr;
        & > #query { height: auto; max-height: 2; padding: 0 1; }
        & > #heading { height: 1; padding: 0 1; text-style: bold; }
        & > #sentence { height: 1fr; padding: 0 1; color: $text-muted; }
        & > #list { height: 3fr; min-height: 3; }
        & > #legend { height: 1; padding: 0 1; color: $text-muted; border-top: none; background: $panel; }
        & > #inside { height: 2fr; min-height: 3; }
        & #missing { height: 1fr; padding: 0 1; color: $text-muted; }
        & #modules { padding: 0 1; }
        & #tokens { padding: 0 1; }
        &.-wide #modules { width: 2fr; }
        &.-wide #tokens { width: 3fr; }
        & > #readout { height: auto; max-height: 2; padding: 0 1; background: $panel; }
        &.-short > #query { max-height: 1; }
        &.-short > #readout { height: 1; }
        &.-tiny > #inside { min-height: 2; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "side", "Supporters/opponents"),
        Binding("r", "ranking", "Rank by"),
        Binding("left", "query(-1)", "Query before", show=False),
        Binding("right", "query(1)", "Next query"),
        Binding("m", "modules", "Modules/tokens"),
        Binding("n", "numbers", "Numbers"),
    ]

    class Changed(Message):
        """What is shown is something else."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.run: FinishedRun | None = None
        """Whose ranking is shown."""
        self.inside_run: FinishedRun | None = None
        """Whose modules and tokens are shown, where they are not the run's own."""
        self.wanted = Wanted()
        self.note = ""
        """Why there is nothing to look into; harmless to print."""
        self.full_text: RowText | None = None
        """What the row under the cursor says, as its file has it."""
        self._texts: Texts | None = None
        self._ranked: tuple[FinishedRun, Wanted] | None = None
        """What the ranking on the screen answers."""
        self._pair: _Pair | None = None
        """What the modules and tokens on the screen answer."""
        self._is_reading = False
        self._with_modules = False
        self._remark = ""
        """What is to be known of the run."""

    def compose(self) -> ComposeResult:
        """The query, its rows, and the inside of one."""
        yield Static("", id="query", markup=False)
        yield Static("", id="heading", markup=False)
        yield Static("Reading ...", id="sentence", markup=False)
        yield RankedList(id="list")
        yield Static("", id="legend", markup=False)
        with Horizontal(id="inside"):
            yield TokenStrip(id="tokens")
            yield ModuleMap(id="modules")
            yield Static("", id="missing", markup=False)
        yield Static("", id="readout", markup=False)

    def on_mount(self) -> None:
        """Nothing is there yet."""
        self._lay_out()

    def on_resize(self, event: Resize) -> None:
        """Side by side, or one of two."""
        self.set_class(event.size.width >= _WIDE, "-wide")
        self.set_class(event.size.height < _SHORT, "-short")
        self.set_class(event.size.height < _TINY, "-tiny")
        self._lay_out()

    def show(self, run: FinishedRun, remark: str = "") -> None:
        """Rank the rows of a run, and look into them as far as it goes. A remark is harmless to print."""
        self.run, self.inside_run, self._remark = run, None, remark
        self._texts, self.wanted = texts_of(run), Wanted()
        self._ranked = self._pair = None
        self._catch_up()

    def say(self, sentence: str) -> None:
        """Instead of a ranking."""
        self.run = self.inside_run = self._ranked = self._pair = None
        self.query_one(RankedList).ranking = None
        self.query_one("#sentence", Static).update(Content(sentence))
        self._lay_out()

    def look_into(self, inside_run: FinishedRun) -> None:
        """Modules and tokens of that run."""
        self.inside_run, self._pair = inside_run, None
        self._catch_up()

    def explain(self, note: str) -> None:
        """Why there is nothing to look into."""
        if note != self.note:
            self.note = note
            self._lay_out()

    @property
    def ranking(self) -> Ranking | None:
        """What is shown."""
        return self.query_one(RankedList).ranking

    def _catch_up(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._read()

    @work(group="read")
    async def _read(self) -> None:
        """Until nothing is asked for that is not shown."""
        try:
            while self.is_attached:
                if self.run is not None and self._texts is not None and self._ranked != (self.run, self.wanted):
                    await self._read_ranking(self.run, self.wanted, self._texts)
                elif (pair := self._pair_wanted()) is not None and self._pair != pair:
                    await self._read_pair(pair)
                else:
                    return
        finally:
            self._is_reading = False

    async def _read_ranking(self, run: FinishedRun, wanted: Wanted, texts: Texts) -> None:
        try:
            ranking = await asyncio.to_thread(read_ranking, run, wanted, texts)
        except (MscopeError, OSError) as error:
            if run is self.run:
                self.say(f"The ranking cannot be read: {neutralised(str(error), 1000)}")
            return
        if run is not self.run or wanted != self.wanted:
            return
        self.wanted = ranking.wanted
        self._ranked = (run, self.wanted)
        self.query_one(RankedList).ranking = ranking
        self.query_one("#query", Static).update(_query_line(ranking))
        self.query_one("#heading", Static).update(Content(_heading(ranking) + self._remark))
        self.query_one("#sentence", Static).update(Content("" if ranking.rows else "There is no such row."))
        self._lay_out()

    def _pair_wanted(self) -> _Pair | None:
        ranking, row = self.ranking, self.query_one(RankedList).row
        if ranking is None or row is None or self.run is None:
            return None
        return _Pair(self.inside_run or self.run, ranking.queries[ranking.wanted.query], row.example)

    async def _read_pair(self, pair: _Pair) -> None:
        note = None
        try:
            inside = await asyncio.to_thread(read_inside, *pair)
            text = await asyncio.to_thread(self._texts.train.texts, [pair.example]) if self._texts is not None else {}
        except (MscopeError, OSError) as error:
            inside, text, note = Inside(), {}, f"This cannot be looked into: {neutralised(str(error), 1000)}"
        if pair != self._pair_wanted():
            return
        self._pair, self.full_text = pair, text.get(pair.example)
        self.query_one(TokenStrip).inside, self.query_one(ModuleMap).scores = inside, inside.modules
        if note is not None:
            self.note = note
        self._lay_out()

    def _lay_out(self) -> None:
        """Show what is there, and say what is not."""
        ranking, strip, modules = self.ranking, self.query_one(TokenStrip), self.query_one(ModuleMap)
        has_rows = ranking is not None and bool(ranking.rows)
        tokens_there, modules_there = bool(strip.tokens), modules.scores is not None
        both, is_tiny = self.has_class("-wide"), self.has_class("-tiny")
        strip.display = tokens_there and (both or not self._with_modules or not modules_there)
        modules.display = modules_there and (both or not strip.display)
        missing = self.query_one("#missing", Static)
        missing.display = not (tokens_there or modules_there)
        missing.update(Content(self.note))
        self.query_one("#heading").display, self.query_one("#sentence").display = ranking is not None, not has_rows
        self.query_one("#query").display = ranking is not None and not is_tiny
        self.query_one("#list").display = self.query_one("#inside").display = has_rows
        self.query_one("#readout").display = self.query_one("#legend").display = has_rows and not is_tiny
        self._say_legend()
        self._say_readout()
        self.refresh_bindings()
        self.post_message(self.Changed())

    def _say_legend(self) -> None:
        ranking, strip, modules = self.ranking, self.query_one(TokenStrip), self.query_one(ModuleMap)
        parts = [widget.legend() for widget in (strip, modules) if widget.display]
        if parts and ranking is not None:
            parts.insert(0, "+ supports, - opposes" if ranking.plus_supports else "+ opposes, - supports")
        self.query_one("#legend", Static).update(Content("; ".join(parts) if parts else "Inside"))

    def _say_readout(self) -> None:
        focused = next((widget for widget in (self.query_one(TokenStrip), self.query_one(ModuleMap)) if widget.has_focus), None)
        said = (focused or self.query_one(RankedList)).readout()
        self.query_one("#readout", Static).update(Content(said))

    @on(Moved)
    def _moved(self, event: Moved) -> None:
        event.stop()
        self._say_readout()
        self._catch_up()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """The line below says what the cursor of the focused part is on."""
        self._say_readout()

    def action_side(self) -> None:
        """Supporters or opponents."""
        self._want(self.wanted._replace(supporters=not self.wanted.supporters))

    def action_ranking(self) -> None:
        """The next ranking the run has."""
        if self.ranking is not None:
            there = list(self.ranking.rankings)
            self._want(self.wanted._replace(by=there[(there.index(self.wanted.by) + 1) % len(there)]))

    def action_query(self, by: int) -> None:
        """Another query, round and round."""
        if self.ranking is not None and self.ranking.queries:
            self._want(self.wanted._replace(query=(self.wanted.query + by) % len(self.ranking.queries)))

    def _want(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._catch_up()

    def action_modules(self) -> None:
        """Modules or tokens, where not both have room."""
        self._with_modules = not self._with_modules
        had_focus = self.query_one(TokenStrip).has_focus or self.query_one(ModuleMap).has_focus
        self._lay_out()
        if had_focus:
            (self.query_one(ModuleMap) if self.query_one(ModuleMap).display else self.query_one(TokenStrip)).focus()

    def action_numbers(self) -> None:
        """Numbers beside the marks, or none."""
        strip, modules = self.query_one(TokenStrip), self.query_one(ModuleMap)
        strip.with_numbers = modules.with_numbers = not strip.with_numbers
        self._say_legend()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what there is something for."""
        ranking = self.ranking if self.is_attached and self.query(RankedList) else None
        if action in ("side", "ranking"):
            return ranking is not None and (action == "side" or len(ranking.rankings) > 1)
        if action == "query":
            return ranking is not None and len(ranking.queries) > 1
        if action in ("modules", "numbers"):
            if ranking is None:
                return False
            has_tokens, has_modules = bool(self.query_one(TokenStrip).tokens), self.query_one(ModuleMap).scores is not None
            return has_tokens or has_modules if action == "numbers" else has_tokens and has_modules and not self.has_class("-wide")
        return True

    def copied(self) -> str | None:
        """For `y`: what the cursor is on, as JSON."""
        for widget in (self.query_one(TokenStrip), self.query_one(ModuleMap)):
            if widget.has_focus:
                return widget.copied()
        row = self.query_one(RankedList).row
        if row is None:
            return None
        return json.dumps({"example": row.example, **row.numbers, "effect": row.effect or None, "text": self._example_text()})

    def selection(self) -> tuple[str, str] | None:
        """For `u`: the token under the cursor, or the row's text."""
        token = self.query_one(TokenStrip).token
        if self.query_one(TokenStrip).has_focus:
            return None if token is None else ("token", token.text)
        text = self._example_text()
        return None if text is None else ("example", text)

    def _example_text(self) -> str | None:
        row = self.query_one(RankedList).row
        if row is None:
            return None
        is_read = self._pair is not None and self._pair.example == row.example and self.full_text is not None
        text = self.full_text if is_read else row.text
        return None if text is None else text.whole


def _query_line(ranking: Ranking) -> Content:
    many = f"Query {ranking.wanted.query + 1} of {len(ranking.queries)}  " if len(ranking.queries) > 1 else "Query  "
    return Content.assemble((many, "bold"), ranking.query_text or "(its text is not here: the file of queries has gone)")


def _heading(ranking: Ranking) -> str:
    """Which ranking, and of how many rows."""
    side = "Supporters" if ranking.wanted.supporters else "Opponents"
    ranked = sum(row.numbers.get(ranking.wanted.by) is not None for row in ranking.rows)
    count = f"{ranking.of_side:,}" if ranked == ranking.of_side else f"the first {ranked:,} of {ranking.of_side:,}"
    whole = "" if ranking.is_whole else " the run has kept"
    aside = f", {ranking.set_aside:,} set aside" if ranking.set_aside else ""
    return f"{side} by {RANKINGS[ranking.wanted.by]}: {count}, of {ranking.of_query:,} rows{whole}{aside}"
