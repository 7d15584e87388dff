"""Runs of one checkpoint, or all: how each stands, how old it is, what came out in a few words."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from modelscope_app.api import BadInput, neutralised
from modelscope_app.rendering.wording import age_text, count_text, fact_text
from modelscope_app.tui.jobs.words import state_text
from modelscope_app.tui.messages import RunOpened, RunsCompared
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.thread_work import failure_told

if TYPE_CHECKING:
    from modelscope_app.runs.folder import RunFolder

MOST_RUNS = 500
"""The newest are listed; `mscope runs list` has them all."""
_MOST_FACTS = 4
_LONGEST_FACT = 40
_LONGEST_LINE = 300
_STATE_CELLS = 13
_AGE_CELLS = 8
_AGES_EVERY_SECONDS = 30
_UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One run, as read from its folder. Texts are neutralised."""

    folder: Path
    id: str
    state: str
    """A state of a job, or `unreadable`."""
    created: float
    """Unix seconds."""
    analysis: str
    checkpoints: str
    told: str
    """Headline facts; of a run that ended otherwise the sentence, of one under way where it stands."""


class _RunsRead(Message):
    """The run folders were read."""

    def __init__(self, runs: Sequence[ListedRun], more: int, problems: Sequence[str]) -> None:
        self.runs, self.more, self.problems = tuple(runs), more, tuple(problems)
        super().__init__()


class RunList(Vertical):
    """The list. Enter opens a run, space marks it, `d` shows the two marked ones side by side."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "Mark"),
        Binding("d", "compare", "Compare two"),
    ]
    DEFAULT_CSS = """
    RunList {
        & > #runs-count { height: auto; max-height: 4; padding: 0 1; color: $text-muted; }
        & > #runs-state { height: 1fr; padding: 0 1; }
        & > OptionList {
            height: 1fr; border: none; padding: 0; background: transparent; background-tint: transparent;
            text-wrap: nowrap; text-overflow: ellipsis; scrollbar-size-vertical: 1;
            & > .option-list--option { padding: 0 1; }
        }
        & > OptionList:focus { border: none; }
    }
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        """Runs on the checkpoint at this absolute path; without one, all runs. `clock` gives Unix seconds, for ages."""
        super().__init__(id=id, classes=classes)
        self._checkpoint = checkpoint
        self._clock = clock
        self._runs: dict[str, ListedRun] = {}
        self._counted = ""
        self._marked: list[str] = []

    def compose(self) -> ComposeResult:
        """A line that counts, and the list or what stands in its place."""
        yield Static(id="runs-count")
        yield Static("Looking for runs ...", id="runs-state")
        yield OptionList(id="runs", markup=False)

    def on_mount(self) -> None:
        """Read the runs, and keep the ages true."""
        self._list.display = False
        self.query_one("#runs-count").display = False
        self.refresh_runs()
        self.set_interval(_AGES_EVERY_SECONDS, self._redraw)

    def refresh_runs(self) -> None:
        """Read the run folders again; the cursor stays on its run."""
        self._read()

    def action_mark(self) -> None:
        """Mark the run, or take its mark away; of three marks the oldest goes."""
        key, run = self._current
        if key is None or run is None or run.state == _UNREADABLE:
            return
        if key in self._marked:
            self._marked.remove(key)
        else:
            self._marked = [*self._marked[-1:], key]
        self._redraw()
        self._say_count()

    def action_compare(self) -> None:
        """The two marked runs side by side; with one mark, that one and the run the cursor is on."""
        key, run = self._current
        chosen = [*self._marked]
        if len(chosen) == 1 and key is not None and key not in chosen and run is not None and run.state != _UNREADABLE:
            chosen.append(key)
        if len(chosen) != 2:
            self.app.notify("Mark two runs with space first, then d shows them side by side.", markup=False)
            return
        self.post_message(RunsCompared(*(self._runs[each].folder for each in chosen)))

    def copied(self) -> Copied | None:
        """The run's folder."""
        run = self._current[1]
        return Copied(str(run.folder), "the run's folder") if run is not None else None

    def headless_command(self) -> str | None:
        """What prints the run, or the list."""
        run = self._current[1]
        if run is None or run.state == _UNREADABLE:
            return "mscope runs list"
        return f"mscope runs show {shlex.quote(str(run.folder))}"

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Runs",
            "What analyses left behind, newest first. A sign and a word say how a run stands: + done, > running, · queued, ~ waiting for "
            "memory, ! failed, - cancelled, ? lost (its process ended without a word). Below it its first facts, or why it has none. "
            "Enter opens a run. Space marks one, d shows two marked runs side by side.",
        )

    @property
    def _list(self) -> OptionList:
        return self.query_one("#runs", OptionList)

    @property
    def _current(self) -> tuple[str | None, ListedRun | None]:
        """Key and run that the cursor is on."""
        option = self._list.highlighted_option if self.is_mounted else None
        return (option.id, self._runs.get(option.id)) if option is not None and option.id is not None else (None, None)

    @work(thread=True, exclusive=True, exit_on_error=False, group="runs")
    def _read(self) -> None:
        with failure_told(lambda sentence: self.post_message(_RunsRead((), 0, (sentence,))), "the runs cannot be listed"):
            self.post_message(_listed_runs(self._checkpoint))

    @on(_RunsRead)
    def _were_read(self, event: _RunsRead) -> None:
        event.stop()
        self._runs = {str(run.folder): run for run in event.runs}
        self._marked = [key for key in self._marked if key in self._runs]
        state, count = self.query_one("#runs-state", Static), self.query_one("#runs-count", Static)
        state.display, self._list.display = not self._runs, bool(self._runs)
        where = " on this checkpoint" if self._checkpoint is not None else ""
        state.update(f"No runs{where} yet. Choose an analysis to run one; `mscope analyses` lists them as well.")
        counted = [f"{count_text(len(self._runs) + event.more, 'run')}{where}"] if self._runs else []
        if event.more:
            counted = [f"{counted[0]}, the newest {len(self._runs)} shown"]
        lines = [*counted, *(neutralised(problem, _LONGEST_LINE) for problem in event.problems)]
        self._counted = "\n".join(lines)
        count.display = bool(lines)
        self._fill()
        self._say_count()

    def _fill(self) -> None:
        """Bring the list up to date: only what changed where the runs are the same ones, else all, the cursor on its run."""
        listed = self._list
        if [option.id for option in listed.options] == list(self._runs):
            self._redraw()
            return
        key = self._current[0]
        listed.set_options(Option(self._prompt(key, run), id=key) for key, run in self._runs.items())
        if self._runs:
            listed.highlighted = listed.get_option_index(key) if key in self._runs else 0

    def _say_count(self) -> None:
        marks = ("", " · 1 marked, d shows it beside the run under the cursor", " · 2 marked, d shows them side by side")[len(self._marked)]
        self.query_one("#runs-count", Static).update(Content(self._counted + marks))

    def _redraw(self) -> None:
        for option in self._list.options:
            if option.id is not None and option.id in self._runs:
                prompt = self._prompt(option.id, self._runs[option.id])
                if prompt != option.prompt:
                    self._list.replace_option_prompt(option.id, prompt)

    def _prompt(self, key: str, run: ListedRun) -> Content:
        mark = "* " if key in self._marked else "  "
        if run.state == _UNREADABLE:
            return Content.assemble((f"{mark}? {_UNREADABLE}  ", "bold"), run.id, ("\n    " + run.told, "dim"))
        age = age_text(max(0.0, self._clock() - run.created))
        about = run.checkpoints if self._checkpoint is None or "," in run.checkpoints else run.id.rpartition("-")[2]
        style = {"failed": "bold $text-error", "lost": "bold $text-warning"}.get(run.state, "bold")
        head = Content.assemble(
            (mark, "bold"), (state_text(run.state).ljust(_STATE_CELLS), style), age.ljust(_AGE_CELLS), (run.analysis, "bold"), f"  {about}"
        )
        return head + Content.styled(f"\n    {run.told or run.id}", "dim")

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        run = self._runs.get(event.option.id or "")
        if run is None:
            return
        if run.state == _UNREADABLE:
            self.app.notify(run.told, title="This run cannot be read", severity="warning", markup=False)
        else:
            self.post_message(RunOpened(run.folder))


def _listed_runs(checkpoint: str | None) -> _RunsRead:
    """Every run, or those on a checkpoint; called in a thread."""
    from modelscope_app.runs.index import found_runs

    found = found_runs()
    runs = [run for run in found.runs if checkpoint is None or any(given.path == checkpoint for given in run.job.checkpoints)]
    listed = [_listed(run) for run in runs[:MOST_RUNS]]
    if checkpoint is None:
        listed += [
            ListedRun(one.folder, neutralised(one.folder.name, 80), _UNREADABLE, 0.0, "", "", neutralised(one.error, _LONGEST_LINE))
            for one in found.unreadable[:MOST_RUNS]
        ]
    return _RunsRead(listed, max(0, len(runs) - MOST_RUNS), found.problems)


def _listed(run: RunFolder) -> ListedRun:
    created = run.job.created_at.timestamp()
    try:
        status = run.read_status()
        state: str = status.state
        if state == "done":
            told = _headline(run.facts)
        elif state == "running":
            told = _progress(status.stage, status.done, status.total, status.unit)
        else:
            told = status.error or status.waiting_for or ""
    except (BadInput, OSError) as error:
        state, told = _UNREADABLE, str(error)
    names = ", ".join(Path(given.path).name or given.path for given in run.job.checkpoints)
    return ListedRun(
        run.folder,
        neutralised(run.id, 80),
        state,
        created,
        neutralised(run.analysis, 60),
        neutralised(names or "no checkpoint", 120),
        neutralised(told, _LONGEST_LINE),
    )


def _headline(facts: Mapping[str, Any]) -> str:
    """The first few facts that are short: `tensors 272, all finite yes`."""
    told = []
    for name, value in facts.items():
        text = fact_text(value, name)
        if value is not None and len(text) <= _LONGEST_FACT:
            told.append(f"{name.replace('_', ' ')} {text}")
        if len(told) == _MOST_FACTS:
            break
    return ", ".join(told) or "no facts"


def _progress(stage: str | None, done: float | None, total: float | None, unit: str | None) -> str:
    if done is None:
        return stage or "started"
    of = f" of {total:,.0f}" if total else ""
    return f"{stage or 'at work'}: {done:,.0f}{of} {unit or ''}".rstrip()
