"""Llama and the many built like it: mistral, qwen2, qwen3, smollm3. Attention, then MLP, each added to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


class Llama:
    """Query heads may share keys and values; o_proj still takes one slice per query head."""

    def __init__(self, module: Any) -> None:
        self._layers: Sequence[nn.Module] = module.base_model.layers
        self._heads: int = module.config.num_attention_heads

    def layers(self) -> Sequence[nn.Module]:
        """The decoder layers."""
        return self._layers

    def attention_output(self, layer: int) -> nn.Module:
        """Attention: its output is added as it is."""
        return self._layers[layer].get_submodule("self_attn")

    def mlp_output(self, layer: int) -> nn.Module:
        """The gated MLP: its output is added as it is."""
        return self._layers[layer].get_submodule("mlp")

    def head_projection(self, layer: int) -> tuple[nn.Module, int]:
        """o_proj and the number of query heads."""
        return self._layers[layer].get_submodule("self_attn.o_proj"), self._heads
