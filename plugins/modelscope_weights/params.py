"""Options of the weights analyses, declared once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from modelscope_app.api import Meaning

TensorNames = Annotated[str, Meaning("selection", ("tensor",))]
"""A tensor name, or comma-separated patterns with `*` and `?`."""

ONLY_HELP = "tensors to read: a name, or comma-separated patterns as in '*q_proj*,*embed*'"


class StatsParams(BaseModel):
    """Options of `weights.stats`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bins: int = Field(
        default=64, ge=1, le=512, description="bins of each tensor's histogram, of equal width between its smallest and largest value"
    )
    only: TensorNames = Field(default="*", description=ONLY_HELP)


class DiffParams(BaseModel):
    """Options of `weights.diff`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    only: TensorNames = Field(default="*", description=ONLY_HELP)
    rows: int = Field(default=32, ge=0, le=100_000, description="how many embedding rows to list as tokens, those that moved most first")
    rank_rows_by: Literal["movement", "relative"] = Field(
        default="movement", description="order the rows by the length of their change, or by that length over the row's own"
    )
    embedding: TensorNames = Field(default="", description="name of the input embedding, where it is not found by itself")
    spectrum: bool = Field(default=True, description="compute singular values of each matrix difference (the slow part)")


class SeriesParams(BaseModel):
    """Options of `weights.series`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    only: TensorNames = Field(default="*", description=ONLY_HELP)
