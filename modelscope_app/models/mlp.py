"""The built-in `mlp`: a plain feed-forward classifier.

config.json is `{"model_type": "mlp", "layer_sizes": [64, 64, 10], "activation": "tanh"}`; its tensors are
`layers.{i}.weight` (out, in) and `layers.{i}.bias` (out,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from modelscope_app.api import BadInput

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
}

_MOST_LAYERS = 1000


class Mlp(nn.Module):
    """Linear layers with an activation between them and none after the last."""

    def __init__(self, layer_sizes: tuple[int, ...], activation: str) -> None:
        super().__init__()
        self.layer_sizes = layer_sizes
        self.activation = activation
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(layer_sizes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(row, class) logits of (row, feature) features, computed in the dtype of the weights."""
        weight = self.layers[0].weight
        hidden = features.to(weight.dtype)  # type: ignore[arg-type]
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden if index == 0 else ACTIVATIONS[self.activation](hidden))
        return hidden


def mlp_from_config(config: Mapping[str, Any], where: str) -> Mlp:
    """The empty classifier a config describes. Raises BadInput naming the key that is wrong."""
    sizes = config.get("layer_sizes")
    if not isinstance(sizes, list) or not 2 <= len(sizes) <= _MOST_LAYERS:
        raise BadInput(f"{where}: config.json needs layer_sizes, a list of at least two sizes, as in [64, 64, 10]")
    if any(isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 2**31 for size in sizes):
        raise BadInput(f"{where}: layer_sizes in config.json must be whole numbers from 1, not {sizes}")
    activation = config.get("activation")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise BadInput(f"{where}: activation in config.json must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    return Mlp(tuple(sizes), activation)
