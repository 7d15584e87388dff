"""An architecture nobody has described: its layers are found, what is inside them is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import nn

from modelscope_app.api import BadInput


def layer_list(module: nn.Module, model_type: str, layer_count: int | None) -> list[nn.Module]:
    """The list of `layer_count` modules with the most parameters. Raises BadInput where there is none."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList) and layer_count and len(part) == layer_count]
    if not lists:
        raise BadInput(f"{model_type}: no list of layers was found in this architecture, so it has no sites")
    largest = max(lists, key=lambda part: sum(parameter.numel() for parameter in part.parameters()))
    return list(largest)


class LayerList:
    """Offers resid_pre and resid_post; refuses the rest by name."""

    def __init__(self, layers: Sequence[nn.Module], model_type: str) -> None:
        self._layers = layers
        self._model_type = model_type

    def layers(self) -> Sequence[nn.Module]:
        """The layers found."""
        return self._layers

    def attention_output(self, layer: int) -> NoReturn:
        """Refuses."""
        self._refuse("attn_out")

    def mlp_output(self, layer: int) -> NoReturn:
        """Refuses."""
        self._refuse("mlp_out")

    def head_projection(self, layer: int) -> NoReturn:
        """Refuses."""
        self._refuse("head_out")

    def _refuse(self, kind: str) -> NoReturn:
        raise BadInput(f"{kind} is not known for the architecture {self._model_type}; resid_pre and resid_post are")
