"""What the user is on, as a value that one part of the app can hand to another: a tensor, a token, an example, a checkpoint ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscope_app.api.params import SelectionKind


@dataclass(frozen=True, slots=True)
class Selection:
    """One thing on the screen, as a param of kind `Selection[...]` takes it."""

    kind: SelectionKind
    value: str
    """As it would be written on a command line."""
    label: str
    """For people, on one line; neutralised."""
    checkpoint: str | None = None
    """Absolute path of the checkpoint it belongs to, where that is known."""
    run: str | None = None
    """Absolute folder of the run it was seen in."""
