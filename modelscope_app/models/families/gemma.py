"""Gemma. The first is built like Llama; gemma2 and gemma3 normalise what attention and MLP add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import nn

from modelscope_app.api import BadInput
from modelscope_app.models.families.llama import Llama


class Gemma(Llama):
    """The first Gemma: its norms and embedding differ from Llama's, its layers do not."""


class GemmaWithPostNorms:
    """gemma2 and gemma3: a norm stands between each sublayer and the residual stream, and its output is what is added."""

    def __init__(self, module: Any) -> None:
        self._layers: Sequence[nn.Module] = module.base_model.layers
        self._model_type = module.config.model_type

    def layers(self) -> Sequence[nn.Module]:
        """The decoder layers."""
        return self._layers

    def attention_output(self, layer: int) -> nn.Module:
        """The norm after attention."""
        return self._layers[layer].get_submodule("post_attention_layernorm")

    def mlp_output(self, layer: int) -> nn.Module:
        """The norm after the MLP."""
        return self._layers[layer].get_submodule("post_feedforward_layernorm")

    def head_projection(self, layer: int) -> NoReturn:
        """Refuses: a norm of a sum is not a sum over heads."""
        raise BadInput(f"head_out is not defined for {self._model_type}: it normalises attention's output before adding it")
