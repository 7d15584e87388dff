"""Types for the fields of an analysis' params, beside what pydantic brings.

A field's type tells every front end what it is: the CLI completes paths for it, a form offers a file picker, and a
`Selection` says which things on the screen can be handed over. Their values are plain strings.

    class Params(BaseModel):
        data: DataFile = Field(description="rows to read")
        site: SiteName = "resid_post.5"
        top: int = Field(16, ge=1, le=1024, description="how many to keep")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

RESERVED_PARAM_NAMES = frozenset(
    {"device", "dtype", "out", "json", "detach", "seed", "assert", "quiet", "params", "help", "foreground", "checkpoints"}
)
"""Names the host keeps for its own options."""

SelectionKind = Literal["tensor", "token", "example", "feature", "edge", "checkpoint"]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a string field stands for. Attached to a type with `Annotated`; read by front ends."""

    kind: Literal["checkpoint", "run", "data-file", "file", "site", "selection"]
    selections: tuple[SelectionKind, ...] = ()
    """For `selection`: the kinds of thing that can be handed over."""


CheckpointPath = Annotated[str, Meaning("checkpoint")]
"""A folder or file of safetensors, or `hf:org/name`. Made absolute at submission."""
RunReference = Annotated[str, Meaning("run")]
"""A run id or a run folder."""
DataFile = Annotated[str, Meaning("data-file")]
"""A jsonl, parquet, csv or txt file of examples. Made absolute at submission."""
InputFile = Annotated[str, Meaning("file")]
"""Any other file. Made absolute at submission."""
SiteName = Annotated[str, Meaning("site")]
"""A place in the model, as `resid_post.5`."""


class Selection:
    """`Selection["token", "example"]`: a string field that can be filled from what the user is on."""

    def __class_getitem__(cls, kinds: SelectionKind | tuple[SelectionKind, ...]) -> object:
        return Annotated[str, Meaning("selection", kinds if isinstance(kinds, tuple) else (kinds,))]
