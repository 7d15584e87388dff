"""Options of `influence.distance`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from modelscope_app.api import DataFile

DATA_HELP = "rows both are asked: text, prompt and completion, messages or input_ids; for mlp checkpoints features and label"
BATCH_HELP = "rows of features, or padded tokens, both models read at once, at most; none for 256 on a CPU and 2048 on a GPU"


class DistanceParams(BaseModel):
    """Options of `influence.distance`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataFile = Field(description=DATA_HELP)
    batch_size: int | None = Field(default=None, ge=1, le=10_000_000, description=BATCH_HELP)
    draws: int = Field(default=1000, ge=200, le=100_000, description="bootstrap draws of the rows")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="level of intervals")
    network_draws: int = Field(
        default=16_384,
        ge=4096,
        le=100_000_000,
        description="draws of the network with random gates that the exact moments are held against",
    )
