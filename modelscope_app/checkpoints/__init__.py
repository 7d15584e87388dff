"""Checkpoints on disk: headers, shards, fingerprint, overview, series. No torch until a tensor's values are asked for.

    from modelscope_app.checkpoints import open_checkpoint, open_series
    from modelscope_app.checkpoints.overview import overview

Names are resolved when first used, because opening a checkpoint does not need the module for series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelscope_app.checkpoints.checkpoint import OpenCheckpoint, open_checkpoint
    from modelscope_app.checkpoints.header import FileState, Shard, read_shard
    from modelscope_app.checkpoints.natural_order import natural_key
    from modelscope_app.checkpoints.series import OpenSeries, is_series, is_series_only, open_series

__all__ = [
    "FileState",
    "OpenCheckpoint",
    "OpenSeries",
    "Shard",
    "is_series",
    "is_series_only",
    "natural_key",
    "open_checkpoint",
    "open_series",
    "read_shard",
]

_MODULE_OF = {
    "FileState": "header",
    "OpenCheckpoint": "checkpoint",
    "OpenSeries": "series",
    "Shard": "header",
    "is_series": "series",
    "is_series_only": "series",
    "natural_key": "natural_order",
    "open_checkpoint": "checkpoint",
    "open_series": "series",
    "read_shard": "header",
}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value
