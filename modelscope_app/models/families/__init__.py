"""Where each architecture keeps its parts: one short adapter per family, and a table of model types."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from modelscope_app.api import FamilyAdapter
from modelscope_app.models.families.gemma import Gemma, GemmaWithPostNorms
from modelscope_app.models.families.gpt2 import Gpt2
from modelscope_app.models.families.gpt_neox import GptNeoX
from modelscope_app.models.families.layer_list import LayerList, layer_list
from modelscope_app.models.families.llama import Llama
from modelscope_app.models.families.phi import Phi, Phi3

FAMILIES: Mapping[str, Callable[[nn.Module], FamilyAdapter]] = {
    "gpt2": Gpt2,
    "gpt_neox": GptNeoX,
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Llama,
    "qwen3": Llama,
    "smollm3": Llama,
    "gemma": Gemma,
    "gemma2": GemmaWithPostNorms,
    "gemma3_text": GemmaWithPostNorms,
    "phi": Phi,
    "phi3": Phi3,
}
"""Adapters by `model_type` of the module's own config."""


def adapter_for(module: nn.Module, model_type: str, layer_count: int | None) -> FamilyAdapter:
    """The adapter of a model type; for one not in the table, its layer list alone.

    Raises BadInput naming the architecture where no list of `layer_count` layers is found.
    """
    family = FAMILIES.get(model_type)
    if family is not None:
        return family(module)
    return LayerList(layer_list(module, model_type, layer_count), model_type)


__all__ = ["FAMILIES", "LayerList", "adapter_for"]
