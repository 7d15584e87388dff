"""Small protocols by which any widget or screen takes part in the keys that work everywhere: `y`, `c`, `e`, `u` and `?`.

The app asks the focused widget first, then what it lies in, up to the screen; the first one that has an answer gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from textual.widget import Widget
from textual.widgets import Tabs

from modelscope_app.tui.selections import Selection

if TYPE_CHECKING:
    from textual.dom import DOMNode
    from textual.screen import Screen

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Copied:
    """What `y` copies."""

    text: str
    what: str
    """For the message that says so: `row 12 of tensors`."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `?` says about a widget; its keys are listed from its bindings."""

    title: str
    text: str
    """A few sentences, plain text."""


@runtime_checkable
class Copyable(Protocol):
    """Has something to copy."""

    def copied(self) -> Copied | None:
        """What `y` copies now; None leaves it to what this lies in."""


@runtime_checkable
class Explained(Protocol):
    """Says what it is."""

    def explanation(self) -> Explanation:
        """For `?`."""


@runtime_checkable
class Reproducible(Protocol):
    """Can be had without the app."""

    def headless_command(self) -> str | None:
        """What `c` copies: the shell command that prints or computes what is on the screen."""


@runtime_checkable
class Exportable(Protocol):
    """Can be written to a file."""

    def exports(self) -> Exports | None:
        """What `e` offers."""


@dataclass(frozen=True, slots=True)
class Exports:
    """A thing that can be written as one of several formats."""

    what: str
    """`table tensors`."""
    formats: tuple[str, ...]
    """`csv`, `parquet`, `json`, `html`, `svg`."""
    folder: Path
    """Where files go unless the user says otherwise."""
    name: str
    """File name without its suffix."""
    write: Callable[[str, Path], Path]
    """Called as `write(format, path)` in a thread; gives back the file written. Raises MscopeError."""


@runtime_checkable
class Selecting(Protocol):
    """Is on something that other analyses can be given."""

    def selection(self) -> Selection | None:
        """For `u`."""


def answers(screen: Screen[object], protocol: type[Answer]) -> Iterator[Answer]:
    """The focused widget and what it lies in, as far as they follow a protocol, from the inside out; then the screen, then what lies on
    the page in front, for when the focus is on the bar of tabs."""
    node: DOMNode | None = screen.focused or screen
    while node is not None:
        if isinstance(node, protocol):
            yield node
        if node is screen:
            break
        node = node.parent
    if screen.focused is None or isinstance(screen.focused, Tabs):
        for page in screen.query("TabPane"):
            yield from (widget for widget in page.query() if isinstance(widget, protocol) and _is_shown(widget))


def _is_shown(widget: Widget) -> bool:
    return all(node.display for node in widget.ancestors_with_self if isinstance(node, Widget))
