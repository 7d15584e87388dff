"""Panel `probes.rescore`: type a prompt, and see what the run's own probe says of it, token by token and layer by layer.

Each prompt is a job of `probes.score` on the run's checkpoint. One is scored at a time: a prompt that is entered while another is being
scored cancels that one, also where the service has not accepted it yet. A job that was begun goes on when the panel is left. What goes
wrong with a job, its refusal included, is a sentence in the place of its score.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

from rich.table import Table
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Resize
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from modelscope_app.api import BadInput, FinishedRun, MscopeError, PanelApp, neutralised
from modelscope_probes.panels.own_scores import Range, own_ranges
from modelscope_probes.panels.token_map import LEGEND, TokenMap, number_text
from modelscope_probes.panels.token_scores import Found, read_found

LOOK_SECONDS = 0.25
MOST_NEW_TOKENS = 1024
_WIDE = 110
"""Columns from which the prompts stand beside the map."""
_LONGEST_PROMPT = 300

ABOUT = (
    "Type a prompt and press enter: it is scored with this run's own probe, at every layer, and so is the answer where answer tokens are "
    f"asked for. {LEGEND}. The score of a prompt is the probe's, at its layer (▼); beside it stand the lowest and highest of the run's "
    "own prompts, or the run's threshold. The list has the prompts of this visit, each with how much it differs from the one before: move "
    "to one to see its map, enter takes its text up again, o opens its run. One prompt is scored at a time: entering another cancels the "
    "one before."
)


class Asked(NamedTuple):
    """One prompt of this visit."""

    text: str
    new_tokens: int
    run: FinishedRun | None = None
    """None until the service has accepted it, and where it never did."""
    found: Found = Found("submitting")
    sentence: str = ""
    """What went wrong; harmless to print."""


def score_params(run: FinishedRun) -> tuple[str, Mapping[str, Any]]:
    """The checkpoint to score on and the params that name the probe. Raises BadInput, with a sentence, where the run has none."""
    if len(run.checkpoints) != 1:
        raise BadInput("this run was given no checkpoint to score prompts on")
    if run.analysis.endswith(".score"):
        probe = run.params.get("probe")
        if not isinstance(probe, str) or not probe:
            raise BadInput("this run does not say which probe it scored with")
        return run.checkpoints[0], {"probe": probe, **({"force": True} if run.params.get("force") is True else {})}
    saved = run.artifacts.get("probe")
    if saved is None or saved.suffix != ".safetensors":
        raise BadInput(f"this run has no saved probe (it is {run.status}); artifacts/probe.safetensors is written when it is done")
    return run.checkpoints[0], {"probe": str(saved)}


def threshold(run: FinishedRun) -> float | None:
    """The alarm threshold of a run of `probes.score` that has one."""
    limit = run.facts.get("threshold") if run.analysis.endswith(".score") else None
    return float(limit) if isinstance(limit, int | float) else None


class PromptField(Input):
    """A line to type in. What a terminal would obey, in text that was pasted, is drawn as something else and stays what it is."""

    @property
    def _value(self) -> Text:
        drawn = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in self.value)
        return Text(drawn, no_wrap=True, overflow="ignore", end="")


class RescorePanel(Vertical):
    """A prompt, its heat map, and the prompts before it."""

    DEFAULT_CSS = """
    RescorePanel {
        height: 1fr;
        & > #ask { height: 1; padding: 0 1; }
        & #ask Static { width: auto; text-style: bold; }
        & #prompt { width: 1fr; }
        & #new-tokens { width: 6; }
        & > #said { height: auto; max-height: 4; padding: 0 1; }
        & > #both { height: 1fr; layout: vertical; }
        & #map { padding: 0 1; }
        & #typed { height: auto; max-height: 8; }
        & #typed > Static { height: 1; color: $text-muted; padding: 0 1; }
        & OptionList { height: auto; max-height: 6; border: none; padding: 0; background: $background; }
        & OptionList:focus { border: none; }
        & > #readout { height: 1; padding: 0 1; }
        &.-wide > #both { layout: horizontal; }
        &.-wide #map { width: 1fr; }
        &.-wide #typed { width: 1fr; height: 1fr; max-height: 100%; }
        &.-wide OptionList { height: 1fr; max-height: 100%; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+n", "numbers", "Numbers"),
        Binding("x", "stop", "Stop scoring"),
        Binding("o", "open", "Open its run"),
    ]

    def __init__(self, run: FinishedRun) -> None:
        super().__init__()
        self.run = run
        self.asked: list[Asked] = []
        """In the order they were typed."""
        self._under_way: int | None = None
        """The one that is being scored; any other job is stopped."""
        self._shown: int | None = None
        self._limit: float | None = None
        self._own: Mapping[int, Range] = {}

    def compose(self) -> ComposeResult:
        """The prompt on top, so that it has the keyboard first."""
        with Horizontal(id="ask"):
            yield Static("Prompt ", markup=False)
            yield PromptField(id="prompt", compact=True, placeholder="type, enter scores it")
            yield Static(" Answer tokens ", markup=False)
            yield Input("0", id="new-tokens", compact=True, type="integer", max_length=4)
        yield Static(f"Scored with this run's probe at every layer. {LEGEND}.", id="said", markup=False)
        with Vertical(id="both"):
            yield TokenMap(id="map")
            with Vertical(id="typed"):
                yield Static("       score difference prompt", markup=False)
                yield OptionList(markup=False)
        yield Static("", id="readout", markup=False)

    def on_mount(self) -> None:
        """Nothing was typed yet."""
        self.query_one("#typed").display = False

    def on_resize(self, event: Resize) -> None:
        """Side by side where there is room."""
        self.set_class(event.size.width >= _WIDE, "-wide")

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        """Score it; what is wrong with it is said at once."""
        event.stop()
        text, wanted = self.query_one("#prompt", Input).value, self.query_one("#new-tokens", Input).value.strip() or "0"
        if not text.strip():
            self._say("Type a prompt first.")
        elif not (wanted.isdecimal() and int(wanted) <= MOST_NEW_TOKENS):
            self._say(f"Answer tokens: {neutralised(wanted, 10)} is no integer from 0 to {MOST_NEW_TOKENS}.")
        else:
            self.asked.append(Asked(text, int(wanted)))
            self._under_way = number = len(self.asked) - 1
            self.query_one("#typed").display = True
            typed = self.query_one(OptionList)
            typed.add_option(Option(self._line(number)))
            typed.highlighted = number
            self._show(number)
            self._score(number)

    @work(group="score")
    async def _score(self, number: int) -> None:
        """Submit, then look until it has ended or another prompt was entered."""
        app = cast("PanelApp", self.app)
        try:
            asked = self.asked[number]
            checkpoint, params = await asyncio.to_thread(score_params, self.run)
            if not number:
                self._limit, self._own = await asyncio.to_thread(self._held_against)
            given = {**params, "text": asked.text, "new_tokens": asked.new_tokens}
            run = await app.submit_job(f"{self.run.analysis.partition('.')[0]}.score", [checkpoint], given)
            self._update(number, run=run, found=Found("queued"))
            while self._under_way == number:
                found = await asyncio.to_thread(read_found, run, self.asked[number].found)
                self._update(number, found=found)
                if found.is_final:
                    return
                await asyncio.sleep(LOOK_SECONDS)
            self._update(
                number, found=self.asked[number].found._replace(state="cancelled"), sentence="it was stopped, or another one entered"
            )
            await app.cancel_job(run)
        except (MscopeError, OSError) as error:
            found = self.asked[number].found._replace(state="failed")
            self._update(number, found=found, sentence=neutralised(str(error), 1000))
        finally:
            if self._under_way == number:
                self._under_way = None
                self.refresh_bindings()

    def _update(self, number: int, **changes: Any) -> None:
        if not self.is_attached:
            return
        before, self.asked[number] = self.asked[number], self.asked[number]._replace(**changes)
        if before == self.asked[number]:
            return
        typed = self.query_one(OptionList)
        for line in (number, number + 1):  # the next one says how much it differs from this one
            if line < len(self.asked):
                typed.replace_option_prompt_at_index(line, self._line(line))
        if self._shown == number:
            self._show(number)

    def _show(self, number: int) -> None:
        """The map of one prompt, and how it stands."""
        if number >= len(self.asked):
            return
        before, self._shown = self._shown, number
        is_other = before != number
        if is_other:
            for line in {number} if before is None else {number, before}:  # the mark at the beginning of the line
                self.query_one(OptionList).replace_option_prompt_at_index(line, self._line(line))
        shown, asked = self.query_one("#map", TokenMap), self.asked[number]
        if is_other:
            shown.row = 0
        if is_other or shown.scores != asked.found.tokens:
            shown.scores = asked.found.tokens
        self._say(f"{number + 1}: {self._standing(asked)}")
        self.refresh_bindings()

    def _standing(self, asked: Asked) -> str:
        found, error = asked.found, asked.sentence or asked.found.error
        if found.state == "done":
            where = f"layer {found.best_layer or 'unknown'}, {_POOLED.get(found.pooling, found.pooling or 'pooling unknown')}"
            answer = f"; answer: {found.answer or '(nothing)'}" if found.answer is not None else ""
            return f"score {number_text(found.score)} ({where}){self._beside(found.score)}{answer}"
        if found.is_final:
            return f"{found.state}: {neutralised(error, 1000) if error else 'no reason was given'}"
        tokens = found.tokens
        if tokens is not None:
            return f"{found.state}, {len(tokens.tokens)} tokens read"
        return f"{found.state} ..." + ("" if any(one.found.is_final for one in self.asked) else " (the first prompt also loads the model)")

    def _held_against(self) -> tuple[float | None, Mapping[int, Range]]:
        """What a score is compared with. Reads files."""
        return threshold(self.run), {} if self.run.analysis.endswith(".score") else own_ranges(self.run)

    def _beside(self, score: float | None) -> str:
        """What the score is to be held against: the alarm threshold, or the run's own prompts."""
        if self._limit is not None and score is not None:
            return f", {'above' if score > self._limit else 'not above'} this run's threshold {number_text(self._limit)}"
        own = ", ".join(f"label {label} {number_text(one.low)} to {number_text(one.high)}" for label, one in self._own.items())
        return f"; this run's prompts: {own}" if own else ""

    def _line(self, number: int) -> Any:
        """Of the list: the score, how much it differs from the line before, the prompt."""
        asked = self.asked[number]
        score = asked.found.score if asked.found.state == "done" else None
        before = self.asked[number - 1].found.score if number else None
        said = number_text(score) if asked.found.state == "done" else asked.found.state
        grid: Table = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=4, justify="right")
        grid.add_column(width=10, justify="right")
        grid.add_column(width=10, justify="right")
        grid.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
        difference = "" if score is None or before is None else f"{score - before:+.4g}"
        grid.add_row(
            f"{'›' if number == self._shown else ''}{number + 1}", said, difference, Text(neutralised(asked.text, _LONGEST_PROMPT))
        )
        return grid

    def _say(self, sentence: str) -> None:
        self.query_one("#said", Static).update(Content(sentence))

    @on(TokenMap.Moved)
    def _moved(self, event: TokenMap.Moved) -> None:
        event.stop()
        self.query_one("#readout", Static).update(Content(self.query_one("#map", TokenMap).readout()))

    @on(OptionList.OptionHighlighted)
    def _looked_at(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        if event.option_index != self._shown:
            self._show(event.option_index)

    @on(OptionList.OptionSelected)
    def _taken_up(self, event: OptionList.OptionSelected) -> None:
        """The prompt again, to be changed."""
        event.stop()
        prompt = self.query_one("#prompt", Input)
        prompt.value = self.asked[event.option_index].text
        prompt.focus()

    def action_numbers(self) -> None:
        """Numbers beside the tokens, or none."""
        self.query_one("#map", TokenMap).action_numbers()

    def action_stop(self) -> None:
        """Cancel the job that is under way."""
        self._under_way = None

    def action_open(self) -> None:
        """The run of the prompt that is shown, on a screen of its own."""
        if self._shown is not None and (run := self.asked[self._shown].run) is not None:
            cast("PanelApp", self.app).open_run(run.folder)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what is there is opened or stopped."""
        if action == "stop":
            return self._under_way is not None
        if action == "open":
            return self._shown is not None and self.asked[self._shown].run is not None
        return True

    def explanation(self) -> str:
        """For `?`."""
        return ABOUT

    def copied(self) -> str | None:
        """For `y`: the token under the cursor; in the list the whole prompt with its score."""
        if self.query_one(OptionList).has_focus and self._shown is not None:
            asked = self.asked[self._shown]
            return f"{number_text(asked.found.score)}\t{asked.text}"
        return self.query_one("#map", TokenMap).copied()

    def headless_command(self) -> str | None:
        """For `c`: scores the prompt that is shown."""
        if self._shown is None:
            return None
        asked = self.asked[self._shown]
        try:
            checkpoint, params = score_params(self.run)
        except MscopeError:
            return None
        words = ["mscope", "run", f"{self.run.analysis.partition('.')[0]}.score", checkpoint, "--probe", params["probe"]]
        words += ["--force"] if params.get("force") else []
        words += [f"--text={asked.text}", *(["--new-tokens", str(asked.new_tokens)] if asked.new_tokens else [])]
        return shlex.join(words)


_POOLED: Mapping[str, str] = {"last": "its last token", "mean": "mean of its tokens", "max": "largest value of each feature"}
