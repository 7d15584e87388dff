"""The keys that work on every screen: each asks what is on it, from the focused widget outwards, and does something with the answer.

A widget takes part by having the method of a protocol (`on_screen`); it needs to know nothing of the app.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from textual import work
from textual.binding import Binding
from textual.events import DescendantFocus
from textual.keys import format_key
from textual.message import Message
from textual.widgets import Input

from modelscope_app.api import MscopeError, neutralised
from modelscope_app.tui.key_order import OrderedKeysApp
from modelscope_app.tui.messages import AnalysisChosen, Selected
from modelscope_app.tui.on_screen import (
    Copied,
    Copyable,
    Explained,
    Explanation,
    Exportable,
    Exports,
    Reproducible,
    Selecting,
    answers,
)
from modelscope_app.tui.selections import Selection

if TYPE_CHECKING:
    from modelscope_app.tui.dialogs.use_selection import Use

Answer = TypeVar("Answer")
Severity = Literal["information", "warning", "error"]
_LONGEST_MESSAGE = 1000


class EverywhereApp(OrderedKeysApp[None]):
    """An app with help, copying, exporting and one menu of uses for what is selected."""

    BINDINGS = [
        Binding("question_mark", "help", "Help", id="help"),
        Binding("f1", "help", "Help, also in a text field", show=False, priority=True),
        Binding("f3", "copy_command", "Copy command, also in a text field", show=False, priority=True),
        Binding("y", "copy", "Copy", id="copy", show=False),
        Binding("c", "copy_command", "Copy command", id="command", show=False),
        Binding("e", "export", "Export", id="export", show=False),
        Binding("u", "use", "Use in ...", id="use", show=False),
    ]

    class UsesFound(Message):
        """Where a selection can go."""

        def __init__(self, selection: Selection, uses: Sequence[Use]) -> None:
            self.selection, self.uses = selection, uses
            super().__init__()

    def __init__(self) -> None:
        super().__init__()
        self.selected: dict[str, Selection] = {}
        """What the user was on last, by kind; the latest kind last."""

    def notify(self, message: str, **options: Any) -> None:
        """As textual's, without markup and with nothing that a terminal would obey, whoever says it."""
        super().notify(neutralised(message, _LONGEST_MESSAGE), **{**options, "markup": False})

    def tell(self, sentence: str, severity: Severity = "information") -> None:
        """A line in the corner that goes by itself."""
        self.notify(sentence, severity=severity, timeout=10 if severity != "information" else 5)

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """A cursor that blinks would be two repaints a second, for ever."""
        if isinstance(event.widget, Input):
            event.widget.cursor_blink = False

    def on_selected(self, event: Selected) -> None:
        if event.selection is not None:
            self.selected.pop(event.selection.kind, None)
            self.selected[event.selection.kind] = event.selection

    def _first(self, protocol: type[Any], method: str, kind: type[Answer]) -> Answer | None:
        """The first answer from the focused widget outwards. What answers something else, or raises, is passed over and said."""
        for widget in answers(self.screen, protocol):
            ask = getattr(widget, method)
            if not callable(ask):
                continue  # textual's own text fields have a `selection` that is none of ours
            try:
                found = ask()
            except Exception as error:
                self.tell(f"{type(widget).__name__}.{method} failed ({type(error).__name__}: {error})", "error")
                continue
            if isinstance(found, kind):
                return found
        return None

    def action_help(self) -> None:
        """What has the focus, and every key that works."""
        from modelscope_app.tui.dialogs.help import HelpScreen

        if isinstance(self.screen, HelpScreen):
            return
        said = self._first(Explained, "explanation", Explanation)
        fallback = Explanation("mscope", "Looks at checkpoints, runs analyses on them as background jobs, and shows what came of them.")
        self.push_screen(HelpScreen(said or fallback, self._keys()))

    def _keys(self) -> list[tuple[str, list[tuple[str, str]]]]:
        anywhere: dict[str, list[str]] = {}
        lines: dict[str, list[str]] = {}
        for key, active in self.screen.active_bindings.items():
            binding = active.binding
            if not binding.description or binding.system:
                continue
            into = anywhere if active.node is self else lines
            into.setdefault(binding.description, []).append(format_key(key) if len(key) > 1 else key)
        return [
            (where, [("/".join(keys), what) for what, keys in one.items()]) for where, one in (("Here", lines), ("Everywhere", anywhere))
        ]

    def action_copy(self) -> None:
        """Copy what the cursor is on."""
        if (copied := self._first(Copyable, "copied", Copied)) is not None:
            self._copy(copied.text, copied.what)
        else:
            self.tell("Nothing here to copy")

    def action_copy_command(self) -> None:
        """Copy the command that does the same without the app."""
        if (command := self._first(Reproducible, "headless_command", str)) is not None:
            self._copy(command, "the command")
        else:
            self.tell("There is no command for what is on the screen")

    def _copy(self, text: str, what: str) -> None:
        from modelscope_app.tui.copying import MOST_THROUGH_TERMINAL, write_copied

        try:
            path = write_copied(text)
        except (OSError, MscopeError) as error:
            self.tell(f"not kept in a file: {error}", "warning")
            path = None
        through = len(text) <= MOST_THROUGH_TERMINAL
        if through:
            self.copy_to_clipboard(text)
        place = f"in {path}" if path else ""
        if through:
            self.tell(f"Copied {neutralised(what, 100)}: {neutralised(text, 120)}" + (f" (also {place})" if place else ""))
        else:
            self.tell(f"{neutralised(what, 100)} is too long for the terminal's clipboard; it is {place}", "warning")

    def action_export(self) -> None:
        """Write what is on the screen to a file."""
        from modelscope_app.tui.dialogs.export import ExportScreen

        def written(path: Path | None) -> None:
            if path is not None:
                self.tell(f"Written: {neutralised(str(path), 400)}")

        exports = self._first(Exportable, "exports", Exports)
        if exports is not None and exports.formats:
            self.push_screen(ExportScreen(exports), written)
        else:
            self.tell("Nothing here to export")

    def action_use(self) -> None:
        """Hand what is selected to an analysis."""
        selection = self._first(Selecting, "selection", Selection)
        if selection is None:
            self.tell("Nothing is selected: move the cursor to a tensor, a token, an example, a feature, an edge or a checkpoint")
            return
        self.on_selected(Selected(selection))  # what a panel is on, no message has said
        self._find_uses(selection)

    @work(exclusive=True, exit_on_error=False, group="uses")
    async def _find_uses(self, selection: Selection) -> None:
        from modelscope_app.tui.dialogs.use_selection import uses_of
        from modelscope_app.tui.plugins import shared_plugins

        try:
            self.post_message(self.UsesFound(selection, await shared_plugins().ask(partial(uses_of, selection))))
        except MscopeError as error:
            self.tell(str(error), "error")

    def on_everywhere_app_uses_found(self, event: UsesFound) -> None:
        """One menu over all plugins."""
        from modelscope_app.tui.dialogs.use_selection import UseScreen

        selection = event.selection

        def chosen(use: Use | None) -> None:
            if use is None:
                return
            if use.param:
                checkpoints = [selection.checkpoint] if selection.checkpoint else ()
                self.post_message(AnalysisChosen(use.analysis, checkpoints, {use.param: selection.value}))
            else:
                self.post_message(AnalysisChosen(use.analysis, [selection.value]))

        self.push_screen(UseScreen(selection, event.uses), chosen)

    def action_settings(self) -> None:
        """Where the settings are."""
        from modelscope_app.locations import config_dir

        path = config_dir() / "config.toml"
        self.tell(
            f"{path} ({'there' if path.is_file() else 'not there yet; the defaults hold'}); docs/app.md and docs/service.md have every key"
        )

    def action_screenshot_file(self) -> None:
        """The screen as SVG."""
        try:
            path = self.save_screenshot(path=str(Path.cwd()))
        except OSError as error:
            self.tell(f"no screenshot: {error.strerror or error}", "error")
        else:
            self.tell(f"Written: {path}")
