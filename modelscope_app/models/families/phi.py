"""Phi (1 and 2): one norm, then attention and MLP side by side. Phi-3 is built like Llama."""

from __future__ import annotations

from torch import nn

from modelscope_app.models.families.llama import Llama


class Phi(Llama):
    """Attention and MLP read the same normalised stream; the output projection is called `dense` and has a bias."""

    def head_projection(self, layer: int) -> tuple[nn.Module, int]:
        """`dense` of attention and the number of query heads."""
        return self._layers[layer].get_submodule("self_attn.dense"), self._heads


class Phi3(Llama):
    """Queries, keys and values come from one projection; everything behind it is Llama's."""
