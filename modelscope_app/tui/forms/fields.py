"""One line of a form: a sign, a name, something to type or choose in, what can be done there; under it what is wrong.

| sign | means                            |
|------|----------------------------------|
| `*`  | differs from the default         |
| `!`  | is wrong; the line below says why |
"""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.suggester import Suggester
from textual.widget import Widget
from textual.widgets import Checkbox, Input, Select, Static

from modelscope_app.tui.forms.completion import ListSuggester, PathSuggester
from modelscope_app.tui.forms.entries import Entry
from modelscope_app.tui.on_screen import Explanation
from modelscope_app.tui.plain import plain

_LONGEST_LABEL = 18
_LONGEST_PROBLEM = 400
_LONGEST_HELP = 300


class TextField(Input):
    """A line to type in. Characters that a terminal would obey are drawn as others of the same width, and stay what they are."""

    def __init__(self, value: str, placeholder: str, suggester: Suggester | None = None) -> None:
        super().__init__(value, placeholder=placeholder, suggester=suggester, compact=True, select_on_focus=False)
        self._bindings.key_to_bindings.pop("ctrl+d", None)  # deletes to the right, as does the key made for it

    @property
    def _value(self) -> Text:
        return Text("".join(_drawn(character) for character in self.value), no_wrap=True, overflow="ignore", end="")


class Choice(Select[str], inherit_bindings=False):
    """A list that opens with enter or space; up and down lead to other lines."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,space", "show_overlay", "Show choices", show=False)]


class Flag(Checkbox):
    """On or off, said in words and by a cross."""

    def __init__(self, value: bool) -> None:
        super().__init__("yes" if value else "no", value, compact=True)
        self.BUTTON_INNER = "X" if value else " "

    def watch_value(self) -> None:
        """Say it in words too."""
        self.BUTTON_INNER = "X" if self.value else " "
        self.label = Content("yes" if self.value else "no")
        super().watch_value()


class Field(Vertical):
    """One line and what is wrong with it."""

    DEFAULT_CSS = """
    Field { height: auto; }
    Field Horizontal { height: 1; }
    Field .name { width: 22; height: 1; }
    Field .note { width: auto; max-width: 14; padding: 0 0 0 1; color: $text-muted; }
    Field .problem { padding: 0 0 0 2; color: $error; }
    Field Input { width: 1fr; }
    Field Select { width: 1fr; }
    Field Checkbox { width: 1fr; background: transparent; }
    """

    class Edited(Message):
        """Its value is another one now."""

        def __init__(self, field: Field) -> None:
            self.field = field
            super().__init__()

    class PickAsked(Message):
        """Somebody clicked where it says that values can be chosen."""

        def __init__(self, field: Field) -> None:
            self.field = field
            super().__init__()

    def __init__(self, entry: Entry, value: str | bool | None = None) -> None:
        """`value` stands in it to begin with; None for the default."""
        super().__init__()
        self.entry = entry
        self.problem: str | None = None
        self._control = _control(entry, entry.default if value is None else value)
        self._is_current = False
        self._name_line = Static(self._named(), classes="name")
        self._problem_line: Static | None = None

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield self._name_line
            yield self._control
            if self.entry.required or self.entry.is_pickable:
                yield _Note(self)

    @property
    def control(self) -> Widget:
        """What takes the focus."""
        return self._control

    @property
    def value(self) -> str | bool | None:
        """What stands in it; None where it is left to the default, or nothing was chosen yet."""
        if isinstance(self._control, Flag):
            return bool(self._control.value)
        if isinstance(self._control, Choice):
            chosen = self._control.value
            return chosen if isinstance(chosen, str) else None
        text = self._control.value
        return None if not text and not self.entry.empty_is_a_value else text

    @property
    def text(self) -> str:
        """What stands in it, for a line of text; empty for none."""
        value = self.value
        return value if isinstance(value, str) else ""

    @property
    def is_changed(self) -> bool:
        """Whether it differs from the default. What is required has none."""
        return not self.entry.required and self.value is not None and self.value != self.entry.default

    def fill(self, value: str | bool | None) -> None:
        """Put a value into it; None for the default."""
        value = self.entry.default if value is None else value
        if isinstance(self._control, Flag):
            self._control.value = value in (True, "true")
        elif isinstance(self._control, Choice):
            self._control.value = value if isinstance(value, str) and value in self.entry.choices else Select.NULL
        else:
            self._control.value = _typed(value)

    def say(self, problem: str | None) -> None:
        """Show what is wrong with it, or that nothing is."""
        if problem == self.problem:
            return
        self.problem = problem
        if self._problem_line is None:
            self._problem_line = Static(classes="problem")
            self.mount(self._problem_line)
        self._problem_line.display = problem is not None
        self._problem_line.update(plain(problem or "", _LONGEST_PROBLEM))
        self._show_name()

    def about(self) -> str:
        """Help, what it takes and its default; from the plugin, so not to be trusted."""
        entry = self.entry
        default = "required" if entry.required else f"default {entry.default_text[:60]}" if entry.default_text else "may stay empty"
        return "\n".join(part for part in (f"takes {entry.takes[:_LONGEST_HELP]} ({default})", entry.help[:_LONGEST_HELP]) if part)

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(self.entry.label[:_LONGEST_HELP], self.about())

    def on_descendant_focus(self) -> None:
        """The user is on this line."""
        self._is_current = True
        self._show_name()

    def on_descendant_blur(self) -> None:
        """And no longer."""
        self._is_current = False
        self._show_name()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Something was typed."""
        self._edited(event)

    def on_select_changed(self, event: Select.Changed) -> None:
        """Something was chosen."""
        self._edited(event)

    def on_checkbox_changed(self, event: Checkbox.Changed) -> None:
        """It was switched."""
        self._edited(event)

    def _edited(self, event: Message) -> None:
        event.stop()
        self._show_name()
        self.post_message(self.Edited(self))

    def _show_name(self) -> None:
        self._name_line.update(self._named(), layout=False)

    def _named(self) -> Content:
        """The sign and the name; reversed where the user is."""
        if self.problem is not None:
            sign = Content.styled("! ", "bold $error")
        else:
            sign = Content.styled("* ", "bold $warning") if self.is_changed else Content("  ")
        return Content.assemble(sign, plain(self.entry.label, _LONGEST_LABEL, "bold reverse" if self._is_current else ""))


class _Note(Static):
    """What else there is to a line, in a word; clicking it opens the list to choose from."""

    def __init__(self, field: Field) -> None:
        words = ["required"] if field.entry.required else []
        if field.entry.is_pickable:
            words.append("F2 …")
        super().__init__(Content(" ".join(words)), classes="note")
        self._field = field

    def on_click(self) -> None:
        if self._field.entry.is_pickable:
            self._field.post_message(Field.PickAsked(self._field))


def _control(entry: Entry, value: str | bool | None) -> TextField | Choice | Flag:
    if entry.drawn == "flag":
        return Flag(value in (True, "true"))
    if entry.drawn == "choice":
        chosen = value if isinstance(value, str) and value in entry.choices else Select.NULL
        options = [(plain(choice, 200), choice) for choice in entry.choices]
        return Choice(options, value=chosen, allow_blank=chosen is Select.NULL or entry.default is None, prompt="choose one", compact=True)
    if entry.pick in ("checkpoint", "series", "data-file", "file"):
        suggester: Suggester | None = PathSuggester(entry.pick)
    else:
        suggester = ListSuggester(entry.suggestions) if entry.suggestions else None
    placeholder = "required" if entry.required else entry.default_text if entry.default is None else ""
    return TextField(_typed(value), plain(placeholder, 60).plain, suggester)


def _typed(value: str | bool | None) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value or ""


def _drawn(character: str) -> str:
    """A stand-in of one column for what a terminal would obey."""
    if character.isprintable():
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
