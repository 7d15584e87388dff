"""GPT-2. Projections are Conv1D modules, which keep their weight as (in, out)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


class Gpt2:
    """Blocks of attention, then MLP, each added to the residual stream; the output projection has a bias."""

    def __init__(self, module: Any) -> None:
        self._layers: Sequence[nn.Module] = module.base_model.h
        self._heads: int = module.config.num_attention_heads

    def layers(self) -> Sequence[nn.Module]:
        """The blocks."""
        return self._layers

    def attention_output(self, layer: int) -> nn.Module:
        """Attention: its output is added as it is."""
        return self._layers[layer].get_submodule("attn")

    def mlp_output(self, layer: int) -> nn.Module:
        """The MLP: its output is added as it is."""
        return self._layers[layer].get_submodule("mlp")

    def head_projection(self, layer: int) -> tuple[nn.Module, int]:
        """c_proj of attention and the number of heads."""
        return self._layers[layer].get_submodule("attn.c_proj"), self._heads
