"""An analysis: one computation a plugin contributes. Typed params in; tables, artifacts and views out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from modelscope_app.api.params import RESERVED_PARAM_NAMES

if TYPE_CHECKING:
    from pydantic import BaseModel  # 60 ms that `mscope inspect` need not pay

CheckpointKind = Literal["weights", "model", "language-model", "series"]
"""What an analysis needs a checkpoint to be: tensors are enough; it must build into a model; it must also have a tokenizer;
it is a folder of checkpoints of one training run."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """How many checkpoints an analysis takes, and of which kind. `maximum=None` means any number."""

    minimum: int = 1
    maximum: int | None = 1
    kind: CheckpointKind = "weights"

    def __str__(self) -> str:
        if self.maximum == 0:
            return "no checkpoint"
        if self.maximum is None:
            count = f"{self.minimum} or more"
        elif self.minimum == self.maximum:
            count = str(self.minimum)
        else:
            count = f"{self.minimum} to {self.maximum}"
        if self.kind == "series":
            return f"{count} series"
        return f"{count} checkpoint{'' if (self.minimum, self.maximum) == (1, 1) else 's'}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What running would cost, known before it runs."""

    memory_bytes: int
    """Peak memory on the device beyond a resident model."""
    seconds: float | None = None
    """Time to run, where it can be said."""
    needs_model: bool = False
    """Whether the model itself must be resident on the device."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a plugin returns from `modelscope_analyses`.

    The id users type is `<plugin>.<name>`, where the plugin's part is its entry-point name.
    """

    name: str
    """Lower-case words joined by dashes, as `stats` in `weights.stats`."""
    title: str
    """A few words, as a heading."""
    summary: str
    """One sentence: the question it answers."""
    params: type[BaseModel]
    """The options, declared once: CLI options, forms, params files, JSON Schema and docs come from it."""
    run: str
    """`package.module:function`, called as `run(context, params)`. Imported only where the job runs."""
    estimate: str | None = None
    """`package.module:function`, called as `estimate(checkpoints, params)` and returning an `Estimate`."""
    checkpoints: Checkpoints = Checkpoints()
    """How many checkpoints it takes and of which kind."""
    version: int = 1
    """Raised by its author whenever the same input may give another result."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"analysis name {self.name!r}: use lower-case words joined by dashes")
        for attribute in ("run", "estimate"):
            reference = getattr(self, attribute)
            if reference is not None and not _FUNCTION.fullmatch(reference):
                raise ValueError(f"analysis {self.name}: {attribute}={reference!r} is not 'package.module:function'")
        taken = sorted(name for name in self.params.model_fields if name in RESERVED_PARAM_NAMES or name.startswith("host_"))
        if taken:
            raise ValueError(f"analysis {self.name}: the param name {taken[0]!r} belongs to the host; choose another")
