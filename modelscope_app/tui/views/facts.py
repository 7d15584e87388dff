"""The headline facts of a run: a name and a value a line, with its uncertainty where it has one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.binding import BindingType
from textual.widget import Widget
from textual.widgets import Static

from modelscope_app.api import FactsView
from modelscope_app.rendering.drawings import Drawing, FactsDrawing, facts_drawing
from modelscope_app.rendering.records import json_value
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.views.board import ViewBoard
from modelscope_app.tui.views.named_values import NamedValue, NamedValues

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, eq=False)
class ReadFacts(FactsDrawing):
    """Facts as they read, and as they are stored."""

    stored: tuple[tuple[str, Any], ...]


class FactList(NamedValues):
    """Facts with a cursor."""

    BINDINGS: ClassVar[list[BindingType]] = []

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Facts",
            "What the run found, in single numbers. 0.91 [0.87, 0.94] is a value with the interval it is believed to lie in; "
            "unknown is a value that could not be had. y copies the fact under the cursor with every digit.",
        )

    def copied(self) -> Copied | None:
        """For `y`: name and value."""
        value = self.value
        return None if value is None else Copied(f"{value.name}: {value.exact}", f"fact {value.name[:40]}")


class FactsBoard(ViewBoard):
    """Facts."""

    about = "y copies the fact under the cursor."

    def computed(self) -> Drawing:
        """The facts, read once."""
        return read_facts(self.finished_run.facts, cast("FactsView", self.view).keys)

    def body(self, drawing: Drawing) -> Widget:
        """A list with a cursor."""
        facts = cast("ReadFacts", drawing)
        if not facts.facts:
            return Static("", classes="view-sentence", markup=False)
        pairs = zip(facts.facts, facts.stored, strict=True)
        return FactList([NamedValue(name, text, _exact(value)) for (name, text), (_, value) in pairs])


def read_facts(facts: Mapping[str, Any], keys: Iterable[str] = ()) -> ReadFacts:
    """Facts of these keys, or all."""
    wanted = tuple(keys) or tuple(facts)
    drawn = facts_drawing(facts, wanted)
    return ReadFacts(drawn.facts, drawn.notes, tuple((key, facts[key]) for key in wanted if key in facts))


def _exact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(json_value(value), allow_nan=False, ensure_ascii=False)
