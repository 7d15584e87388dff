"""Panel `influence.ask`: type what the model was given and what it said, and see which training rows made it say so.

Each is a job of `influence.scores` on the run's checkpoint, asked as the run was. One is explained at a time: entering another cancels the
one before. What goes wrong with a job, its refusal included, is a sentence in the place of its ranking.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, cast

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Input, Static

from modelscope_app.api import FinishedRun, MscopeError, PanelApp
from modelscope_influence.panels.pane import ABOUT, InfluencePane
from modelscope_influence.panels.ranked_list import RankedList
from modelscope_influence.panels.scores_jobs import asked_params, command_line
from modelscope_influence.panels.with_job import PanelWithJob

HINT = (
    "Type what the model was given and what it said. With a prompt, and where the model has a chat template, they are a turn and its "
    "answer. Enter asks."
)
_ABOUT_ASKING = (
    "Type a prompt and its completion and press enter: a job ranks the run's training rows by how much they made the model say the "
    "completion, with the curvature from the cache. With a prompt they are rendered as a conversation where the model has a chat template, "
    "else read as they stand. One is explained at a time: entering another cancels the one before, x stops it, o opens its run."
)


class TypedLine(Input):
    """A line to type in. What a terminal would obey, in text that was pasted, is drawn as something else and stays what it is."""

    @property
    def _value(self) -> Text:
        drawn = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in self.value)
        return Text(drawn, no_wrap=True, overflow="ignore", end="")


class AskPanel(PanelWithJob):
    """Two fields, and below them the ranked rows."""

    DEFAULT_CSS = """
    AskPanel {
        height: 1fr;
        & > Horizontal { height: 1; padding: 0 1; }
        & > Horizontal > Static { width: 12; text-style: bold; }
        & > Horizontal > Input { width: 1fr; }
        & > InfluencePane > #query { max-height: 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "stop", "Stop"),
        Binding("o", "open", "Open its run"),
    ]

    def __init__(self, run: FinishedRun) -> None:
        super().__init__(run)
        self._asked: tuple[str, str] | None = None
        """Prompt and completion that were entered last."""

    def compose(self) -> ComposeResult:
        """The fields on top, so that they have the keyboard first."""
        with Horizontal():
            yield Static("Prompt", markup=False)
            yield TypedLine(id="prompt", compact=True, placeholder="what the model was given; may be empty")
        with Horizontal():
            yield Static("Completion", markup=False)
            yield TypedLine(id="completion", compact=True, placeholder="what it said; enter asks which rows taught it")
        yield InfluencePane(id="pane")

    def on_mount(self) -> None:
        """Nothing was asked yet."""
        self.query_one(InfluencePane).say(HINT)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        """From the prompt to the completion, and from there to the job."""
        event.stop()
        prompt, completion = (self.query_one(f"#{name}", Input).value for name in ("prompt", "completion"))
        if completion.strip():
            self._asked = (prompt, completion)
            self._ask(prompt, completion)
            return
        if event.input.id == "completion":
            self.query_one(InfluencePane).say("Type a completion first: what the model said.")
        self.query_one("#completion", Input).focus()

    @work(group="ask")
    async def _ask(self, prompt: str, completion: str) -> None:
        run = await self.job.follow(cast("PanelApp", self.app), self.run.analysis, partial(asked_params, self.run, prompt, completion))
        if run is not None and self.is_attached:
            pane = self.query_one(InfluencePane)
            pane.explain("The run has no scores by module and by token of this row.")
            pane.show(run)

    def _told(self) -> None:
        if not self.is_attached or self.job.standing is None:
            return
        if self.job.standing.state != "done":
            first = "" if self.job.standing.is_final or self.job.run is not None else " The first one also loads the model."
            self.query_one(InfluencePane).say(f"{self.job.standing}{first}")
        self.refresh_bindings()

    def explanation(self) -> str:
        """For `?`."""
        said = self.query_one(RankedList).readout()
        return f"{_ABOUT_ASKING}\n\n" + (f"{said}\n\n" if said else "") + ABOUT

    def headless_command(self) -> str | None:
        """For `c`: asks the same."""
        if self._asked is None:
            return None
        try:
            return command_line(self.run.analysis, *asked_params(self.run, *self._asked))
        except MscopeError:
            return None
