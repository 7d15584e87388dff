"""What a row of a table is about: the tensor, token, example, feature, edge or checkpoint its columns name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscope_app.api import MscopeError, neutralised
from modelscope_app.rendering.wording import is_unknown
from modelscope_app.tui.selections import Selection

if TYPE_CHECKING:
    from modelscope_app.api import FinishedRun
    from modelscope_app.api.params import SelectionKind

KINDS: Mapping[str, SelectionKind] = {
    "tensor": "tensor",
    "name": "tensor",
    "example": "example",
    "example_id": "example",
    "feature": "feature",
    "token": "token",
    "edge": "edge",
    "checkpoint": "checkpoint",
}
"""By name of the column, the most telling first. A name counts where the run's checkpoint has such a tensor."""
_LONGEST_LABEL = 60


@dataclass(frozen=True, slots=True)
class RowSelections:
    """Where rows come from, which is what makes a name in them mean something."""

    run: str | None = None
    checkpoint: str | None = None
    tensors: frozenset[str] | None = None
    """Names of the checkpoint's tensors; None where it cannot be read here."""

    def selection(self, row: Mapping[str, Any], column: str | None = None) -> Selection | None:
        """What a row names: in `column` if that names anything, else in the first column that does."""
        for name in ([column] if column is not None and column in KINDS else []) + [name for name in KINDS if name in row]:
            value = row.get(name)
            if is_unknown(value) or not isinstance(value, str | int) or not self._counts(name, value):
                continue
            return Selection(KINDS[name], str(value), f"{KINDS[name]} {neutralised(str(value), _LONGEST_LABEL)}", self.checkpoint, self.run)
        return None

    def _counts(self, column: str, value: str | int) -> bool:
        if KINDS[column] != "tensor":
            return True
        return column == "tensor" if self.tensors is None else value in self.tensors


def row_selections(run: FinishedRun, columns: Sequence[str]) -> RowSelections:
    """Reads the tensors' names of the run's checkpoint if a column may hold one; for a thread."""
    checkpoints = getattr(getattr(run, "job", None), "checkpoints", ())
    path = checkpoints[0].path if checkpoints else None
    tensors = None
    if path is not None and ("tensor" in columns or "name" in columns):
        from modelscope_app.checkpoints import open_checkpoint

        try:
            tensors = frozenset(open_checkpoint(path).tensors)
        except (MscopeError, OSError):
            tensors = None
    return RowSelections(str(run.folder), path, tensors)
