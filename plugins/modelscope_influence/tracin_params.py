"""Options of `influence.tracin`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from modelscope_app.api import DataFile
from modelscope_influence.params import BATCH_HELP, FLAG_HELP, MODULES_HELP, QUERIES_HELP, TRAIN_HELP

Rate = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class TracinParams(BaseModel):
    """Options of `influence.tracin`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: DataFile = Field(description=TRAIN_HELP)
    queries: DataFile = Field(description=QUERIES_HELP)
    modules: str = Field(default="mlp", description=MODULES_HELP)
    measure: Literal["loss", "logprob", "margin"] = Field(default="loss", description="what of a query is explained")
    learning_rates: list[Rate] = Field(
        default=[],
        description="learning rate at each member, or one for all; none for those in trainer_state.json of the members, or else 1",
    )
    flag: str = Field(default="", description=FLAG_HELP)
    top_k: int | None = Field(
        default=None, ge=1, le=1_000_000, description="keep only the rows of the highest and lowest scores of each query; none for all"
    )
    batch_size: int | None = Field(default=None, ge=1, le=10_000_000, description=BATCH_HELP)

    @field_validator("modules")
    @classmethod
    def _some_module(cls, modules: str) -> str:
        if not modules.strip(" ,"):
            raise ValueError("mlp, attention and all are possible, or the name of a module, as in model.layers.*.mlp.*")
        return modules
