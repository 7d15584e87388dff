"""GPT-NeoX and Pythia. Attention and MLP usually read the same residual stream and are added together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


class GptNeoX:
    """With `use_parallel_residual` or without: either way what the two modules return is what is added."""

    def __init__(self, module: Any) -> None:
        self._layers: Sequence[nn.Module] = module.base_model.layers
        self._heads: int = module.config.num_attention_heads

    def layers(self) -> Sequence[nn.Module]:
        """The layers."""
        return self._layers

    def attention_output(self, layer: int) -> nn.Module:
        """Attention: its output is added as it is."""
        return self._layers[layer].get_submodule("attention")

    def mlp_output(self, layer: int) -> nn.Module:
        """The MLP: its output is added as it is."""
        return self._layers[layer].get_submodule("mlp")

    def head_projection(self, layer: int) -> tuple[nn.Module, int]:
        """`dense` of attention and the number of heads."""
        return self._layers[layer].get_submodule("attention.dense"), self._heads
