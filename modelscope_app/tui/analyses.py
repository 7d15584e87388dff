"""What can be computed: the analyses of all plugins, with search, and which of them the open checkpoint suits.

Plugins that are broken stand at the end, each with its sentence. Plugins are imported in a thread of their own.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from modelscope_app.api import Checkpoints, MscopeError
from modelscope_app.tui.messages import AnalysisChosen
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.plain import plain
from modelscope_app.tui.plugins import Plugins, shared_plugins

if TYPE_CHECKING:
    from modelscope_app.plugin_host import PluginHost

_LONGEST_ID = 60
_LONGEST_TITLE = 80
_LONGEST_SUMMARY = 300
_LONGEST_PROBLEM = 400


@dataclass(frozen=True, slots=True)
class Offer:
    """One analysis, for the list."""

    id: str
    plugin: str
    title: str
    summary: str
    takes: Checkpoints


@dataclass(frozen=True, slots=True)
class Offers:
    """What the plugins offer."""

    analyses: tuple[Offer, ...] = ()
    """By plugin."""
    problems: tuple[tuple[str, str], ...] = ()
    """Name of a plugin and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What is open, as far as it matters to what can be done with it."""

    path: str | None = None
    is_series: bool = False
    has_config: bool = True
    has_tokenizer: bool = True


def offers(host: PluginHost) -> Offers:
    """All analyses and all that is wrong. Imports every plugin; called in their thread."""
    analyses = [
        Offer(bound.id, bound.plugin, bound.analysis.title, bound.analysis.summary, bound.analysis.checkpoints) for bound in host.analyses()
    ]
    problems = [(name, problem) for name in host.names() for problem in host.problems(name)[:1]]
    return Offers(tuple(analyses), (*problems, *(("", problem) for problem in host.unreadable)))


def why_not(takes: Checkpoints, opened: Opened) -> str | None:
    """Why an analysis has no use for what is open; None where it has.

    >>> why_not(Checkpoints(kind="series"), Opened("/models/one"))
    'takes a series, and this is one checkpoint'
    """
    if takes.maximum == 0 or opened.path is None:
        return None
    if takes.kind == "series":
        return None if opened.is_series else "takes a series, and this is one checkpoint"
    if opened.is_series:
        return f"takes {takes}, and this is a series: open one of its checkpoints"
    if takes.kind in ("model", "language-model") and not opened.has_config:
        return "needs a model, and without config.json nothing says how to build one"
    if takes.kind == "language-model" and not opened.has_tokenizer:
        return "needs a language model with its tokenizer, and there is no tokenizer.json"
    return None


class AnalysisList(OptionList):
    """The list itself."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select", "Open the form")]


class AnalysesBrowser(Vertical):
    """Posts `AnalysisChosen` for the one that was chosen, with the open checkpoint where it takes one."""

    DEFAULT_CSS = """
    AnalysesBrowser { height: 1fr; }
    AnalysesBrowser Input { dock: top; margin: 0 1; width: 1fr; }
    AnalysesBrowser AnalysisList { height: 1fr; border: none; background: transparent; padding: 0; }
    AnalysesBrowser .state { padding: 1 2; height: auto; color: $text-muted; }
    AnalysesBrowser AnalysisList:focus { border: none; }
    AnalysesBrowser AnalysisList > .option-list--option { padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search"),
        Binding("escape", "leave_search", "Back to the list", show=False),
        Binding("down", "to_list", "To the list", show=False),
    ]

    def __init__(
        self,
        checkpoint: str | None,
        is_series: bool = False,
        *,
        has_config: bool = True,
        has_tokenizer: bool = True,
        plugins: Plugins | None = None,
        id: str | None = None,
    ) -> None:
        """`plugins` stands in for those of this process."""
        super().__init__(id=id)
        self._opened = Opened(checkpoint, is_series, has_config, has_tokenizer)
        self._plugins = plugins or shared_plugins()
        self._offers: Offers | None = None
        self._shown: list[Offer | None] = []
        """What stands at each place of the list; None for headings and problems."""

    def compose(self) -> ComposeResult:
        yield Static(plain("loading plugins ..."), classes="state")
        yield AnalysisList(markup=False)
        yield Input(placeholder="/ to search", compact=True)

    def on_mount(self) -> None:
        """Look for what there is."""
        self.reload()

    def focus(self, scroll_visible: bool = True) -> Self:
        """Put the cursor into the list."""
        self.query_one(AnalysisList).focus(scroll_visible)
        return self

    def reload(self) -> None:
        """Ask the plugins again."""
        self._load()

    def show_for(self, checkpoint: str | None, is_series: bool = False, has_config: bool = True, has_tokenizer: bool = True) -> None:
        """Another one is open now."""
        self._opened = Opened(checkpoint, is_series, has_config, has_tokenizer)
        self._fill()

    @work(exclusive=True, exit_on_error=False, group="analyses")
    async def _load(self) -> None:
        try:
            self._offers = await self._plugins.ask(offers)
        except MscopeError as error:
            self._say(plain(str(error), _LONGEST_PROBLEM, "$error"))
            return
        self._fill()

    def _fill(self) -> None:
        found = self._offers
        if found is None:
            return
        words = self.query_one(Input).value.lower().split()
        fitting = [offer for offer in found.analyses if all(word in f"{offer.id} {offer.title} {offer.summary}".lower() for word in words)]
        options = self.query_one(AnalysisList)
        before = self.highlighted
        options.clear_options()
        self._shown = []
        plugin = None
        for offer in fitting:
            if offer.plugin != plugin:
                plugin = offer.plugin
                self._add(_heading(plugin), None)
            self._add(_described(offer, why_not(offer.takes, self._opened)), offer)
        problems = [] if words else found.problems
        if problems:
            self._add(_heading("cannot be used: `mscope plugins doctor` says more"), None)
        for name, problem in problems:
            self._add(Content.assemble(plain(name, 40, "bold"), "  ", plain(problem, _LONGEST_PROBLEM, "$error")), None)
        if not self._shown:
            self._say(plain("nothing fits; escape goes back" if words else "no plugin is installed that has an analysis"))
            return
        self._say(None)
        can_run = [offer is not None and why_not(offer.takes, self._opened) is None for offer in self._shown]
        first = can_run.index(True) if any(can_run) else next((at for at, offer in enumerate(self._shown) if offer is not None), None)
        options.highlighted = next((place for place, offer in enumerate(self._shown) if offer is not None and offer == before), first)

    def _add(self, prompt: Content, offer: Offer | None) -> None:
        self.query_one(AnalysisList).add_option(Option(prompt, disabled=offer is None))
        self._shown.append(offer)

    def _say(self, state: Content | None) -> None:
        line = self.query_one(".state", Static)
        line.display = state is not None
        line.update(state or "")

    @property
    def highlighted(self) -> Offer | None:
        """The analysis the cursor is on."""
        place = self.query_one(AnalysisList).highlighted
        return self._shown[place] if place is not None and place < len(self._shown) else None

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self._fill()

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        event.stop()
        self._choose(self.highlighted)

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self._choose(self._shown[event.option_index])

    def _choose(self, offer: Offer | None) -> None:
        if offer is None:
            return
        reason = why_not(offer.takes, self._opened)
        if reason is not None:
            self.notify(f"{offer.id} {reason}"[:_LONGEST_PROBLEM], severity="warning", markup=False)
            return
        takes_it = offer.takes.maximum != 0 and self._opened.path is not None
        self.post_message(AnalysisChosen(offer.id, [self._opened.path or ""] if takes_it else []))

    def action_search(self) -> None:
        """Type a part of a name."""
        self.query_one(Input).focus()

    def action_leave_search(self) -> None:
        """Empty the search first; then it is somebody else's key."""
        search = self.query_one(Input)
        search.value = ""
        self.query_one(AnalysisList).focus()

    def action_to_list(self) -> None:
        """From the search to what it found."""
        self.query_one(AnalysisList).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Escape leaves the search, and nothing else."""
        if action in ("leave_search", "to_list"):
            search = self.query_one(Input)
            return search.has_focus or (action == "leave_search" and bool(search.value))
        return True

    def copied(self) -> Copied | None:
        """What `y` copies: an id."""
        offer = self.highlighted
        return None if offer is None else Copied(offer.id, f"the id {offer.id}")

    def headless_command(self) -> str | None:
        """What `c` copies: the command that shows the options of this one."""
        offer = self.highlighted
        return "mscope analyses" if offer is None else shlex.join(["mscope", "analyses", offer.id])

    def explanation(self) -> Explanation:
        """For `?`."""
        offer = self.highlighted
        if offer is None:
            return Explanation("Analyses", "What can be computed of a checkpoint, by plugin. / searches.")
        reason = why_not(offer.takes, self._opened)
        text = f"{offer.summary[:_LONGEST_SUMMARY]} It takes {offer.takes}." + (
            f" It has no use for this one: it {reason}." if reason else ""
        )
        return Explanation(offer.title[:_LONGEST_TITLE], text)


def _heading(text: str) -> Content:
    return plain(f"─ {text}", _LONGEST_TITLE, "bold $primary")


def _described(offer: Offer, reason: str | None) -> Content:
    """Two lines: what it is called, and the question it answers or why it cannot be asked."""
    title = plain(offer.title, _LONGEST_TITLE, "dim" if reason else "bold")
    name = Content.assemble(title, "  ", plain(offer.id, _LONGEST_ID, "dim"), "  ", plain(str(offer.takes), 40, "dim"))
    below = plain(f"no: {reason}", _LONGEST_SUMMARY, "$warning") if reason is not None else plain(offer.summary, _LONGEST_SUMMARY)
    return Content("\n").join([name, below])
