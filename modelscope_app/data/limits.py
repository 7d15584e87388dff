"""What token ids and lengths a checkpoint's model takes, as its config.json says.

A row beyond them would index past an embedding, which on a GPU ends the whole process; so rows are checked first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from modelscope_app.api import Checkpoint

_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")


class TokenLimits(NamedTuple):
    """Bounds on a row of tokens; None where the checkpoint does not say."""

    vocabulary: int | None = None
    """Token ids are below this: the rows of the model's embedding."""
    positions: int | None = None
    """The most tokens of one row."""


def token_limits(checkpoint: Checkpoint) -> TokenLimits:
    """The limits in config.json, or in its `text_config` where a model has several parts."""
    config = checkpoint.config or {}
    text_config = config.get("text_config")
    parts = [config, text_config] if isinstance(text_config, Mapping) else [config]
    return TokenLimits(_first_count(parts, ("vocab_size",)), _first_count(parts, _POSITION_KEYS))


def _first_count(parts: list[Mapping[str, Any]], keys: tuple[str, ...]) -> int | None:
    found = (part.get(key) for part in parts for key in keys)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool) and value > 0), None)
