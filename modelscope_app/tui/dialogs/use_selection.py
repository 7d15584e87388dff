"""`u`: what the selected thing can be used for. One menu over all plugins, made from the params of their analyses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from modelscope_app.api import neutralised
from modelscope_app.tui.selections import Selection

if TYPE_CHECKING:
    from modelscope_app.plugin_host import PluginHost


class Use(NamedTuple):
    """One line of the menu."""

    analysis: str
    param: str
    """Which of its params the selection becomes; empty where it becomes the checkpoint."""
    title: str


class UseScreen(ModalScreen[Use | None]):
    """Dismissed with the use that was chosen."""

    DEFAULT_CSS = """
    UseScreen { align: center middle; }
    UseScreen > Vertical {
        width: 76; max-width: 95%; height: auto; max-height: 80%;
        background: $panel; border: round $primary; padding: 0 2;
    }
    UseScreen Static { height: auto; margin-bottom: 1; }
    UseScreen OptionList { height: auto; max-height: 16; border: none; }
    """
    BINDINGS = [("escape", "leave", "Close")]

    def __init__(self, selection: Selection, uses: Sequence[Use]) -> None:
        super().__init__()
        self._selection = selection
        self._uses = tuple(uses)

    def compose(self) -> ComposeResult:
        what = f"{self._selection.kind} {neutralised(self._selection.label, 120)}"
        with Vertical():
            yield Static(Content.assemble(("Use ", "bold"), (what, "bold")))
            if not self._uses:
                yield Static(Content(f"No analysis that is installed takes a {self._selection.kind}. Escape closes this."))
            yield OptionList(*[Option(_line(use)) for use in self._uses])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter or a click."""
        self.dismiss(self._uses[event.option_index])

    def action_leave(self) -> None:
        """Nothing is used."""
        self.dismiss(None)


def _line(use: Use) -> Content:
    place = f"as {use.param.replace('_', '-')} in" if use.param else "as checkpoint in"
    return Content(f"{place} {neutralised(use.analysis, 60)}  {neutralised(use.title, 60)}")


def uses_of(selection: Selection, host: PluginHost) -> tuple[Use, ...]:
    """Where a selection can go: every param that takes its kind, over all working plugins. Imports them."""
    from modelscope_app.plugin_host import param_fields

    found = []
    for bound in host.analyses():
        try:
            fields = param_fields(bound.analysis.params)
        except TypeError:
            continue  # the doctor says what is wrong with it
        for field in fields:
            meaning = field.meaning
            if meaning is None:
                continue
            if (meaning.kind == "selection" and selection.kind in meaning.selections) or meaning.kind == selection.kind:
                found.append(Use(bound.id, field.name, bound.analysis.title))
        if selection.kind == "checkpoint" and bound.analysis.checkpoints.maximum != 0 and bound.analysis.checkpoints.kind != "series":
            found.append(Use(bound.id, "", bound.analysis.title))
    return tuple(found)
