"""Where a running job gets its models from: built for it alone, or kept by a worker between jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from modelscope_app.api import Architecture
    from modelscope_app.checkpoints import OpenCheckpoint
    from modelscope_app.models import BuiltModel


class ModelSource(Protocol):
    """Hands out built models."""

    newly_built_bytes: int
    """Of the models that were built for the job that runs, not kept from an earlier one."""

    def model(self, checkpoint: OpenCheckpoint, device: str, dtype: str, architectures: Sequence[Architecture]) -> BuiltModel:
        """The checkpoint, built in `dtype` on `device`. Raises as `models.build_model`."""


class FreshModels:
    """Builds every model anew."""

    def __init__(self) -> None:
        self.newly_built_bytes = 0

    def model(self, checkpoint: OpenCheckpoint, device: str, dtype: str, architectures: Sequence[Architecture]) -> BuiltModel:
        """The checkpoint, built."""
        from modelscope_app.models import build_model

        built = build_model(checkpoint, device, dtype, architectures)
        self.newly_built_bytes += built.memory_bytes
        return built
