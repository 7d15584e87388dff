"""From a checkpoint to a model: which of the builders is asked, in what order, and what is refused.

| model_type                                     | built by                                    |
|------------------------------------------------|---------------------------------------------|
| mlp                                            | `mlp`                                       |
| one that a plugin's `modelscope_architectures` names | that plugin, also where transformers has it |
| one that transformers has                      | `huggingface`                               |
| any other                                      | nobody: BadInput naming it                  |
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from modelscope_app.api import Architecture, BadInput, Checkpoint
from modelscope_app.models.built import BuiltModel
from modelscope_app.models.devices import resolve_device, resolve_dtype
from modelscope_app.models.huggingface import huggingface_model, is_native
from modelscope_app.models.loading import Loaded, load_weights, model_dtype, named, unsaved_buffers
from modelscope_app.models.mlp import mlp_from_config

log = logging.getLogger(__name__)


def build_model(
    checkpoint: Checkpoint, device: str = "auto", dtype: str = "auto", architectures: Sequence[Architecture] = ()
) -> BuiltModel:
    """Build a checkpoint into a model, in eval mode and with no parameter asking for gradients.

    `dtype="auto"` keeps the stored floating-point dtype. Raises UsageError for a device or dtype that is not there, and
    BadInput naming model_type, file or tensors where no model comes of it. No code from a checkpoint is ever run.
    """
    place = resolve_device(device)
    config = checkpoint.config
    if config is None:
        raise BadInput(f"{checkpoint.name} has no config.json, so no model can be built; analyses of the weights alone still run")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise BadInput(f"{checkpoint.name}: config.json names no model_type, so no model can be built")
    builder = _builder(model_type, architectures)
    if builder is None and model_type != "mlp" and not is_native(model_type):
        raise BadInput(_unknown(checkpoint, model_type))

    floating, notes = model_dtype(checkpoint, resolve_dtype(dtype))
    if model_type == "mlp":
        model = _built_here(checkpoint, lambda: mlp_from_config(config, checkpoint.name), floating, place, notes)
    elif builder is not None:
        model = _built_by_plugin(checkpoint, builder, floating, place, notes)
    else:
        filled = huggingface_model(checkpoint, floating, place)
        model = BuiltModel(filled.module, checkpoint, filled.kind, (*notes, *filled.loaded.notes), filled.loaded.files)
    for note in model.notes:
        log.info(note)
    return model


def _builder(model_type: str, architectures: Sequence[Architecture]) -> Architecture | None:
    found = [architecture for architecture in architectures if architecture.model_type == model_type]
    if model_type == "mlp" and found:
        raise BadInput(f"mlp is built by mscope itself; {found[0].build} needs another model_type")
    if len(found) > 1:
        raise BadInput(f"two plugins build {model_type}: {found[0].build} and {found[1].build}; disable one")
    return found[0] if found else None


def _unknown(checkpoint: Checkpoint, model_type: str) -> str:
    where = checkpoint.path / "config.json" if checkpoint.path.is_dir() else checkpoint.path
    code = (checkpoint.config or {}).get("auto_map")
    brings = ", and the code the checkpoint brings for it (auto_map) is never run" if code else ""
    return f"{where}: model_type {model_type!r} is unknown{brings}; a plugin can build it (modelscope_architectures)"


def _built_here(
    checkpoint: Checkpoint, build: Callable[[], nn.Module], dtype: torch.dtype, device: torch.device, notes: list[str]
) -> BuiltModel:
    with torch.device("meta"):
        module = build().to(dtype)
    loaded = _filled(module, checkpoint, dtype, device)
    return BuiltModel(module, checkpoint, "mlp", (*notes, *loaded.notes), loaded.files)


def _built_by_plugin(
    checkpoint: Checkpoint, architecture: Architecture, dtype: torch.dtype, device: torch.device, notes: list[str]
) -> BuiltModel:
    build = _function(architecture.build, architecture.model_type)
    config = dict(checkpoint.config or {})
    with torch.device("meta"):
        module = build(config)
    if not isinstance(module, nn.Module):
        raise BadInput(f"{architecture.build} returned {type(module).__name__} for {architecture.model_type}, not a torch module")
    # Buffers that no checkpoint stores have values only in a module built for real.
    module = (build(config) if unsaved_buffers(module) else module).to(dtype)
    loaded = _filled(module, checkpoint, dtype, device)
    module.to(device)
    adapter = _function(architecture.adapter, architecture.model_type)(module) if architecture.adapter else None
    return BuiltModel(module, checkpoint, "other", (*notes, *loaded.notes), loaded.files, adapter)


def _filled(module: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Loaded:
    expected = module.state_dict()
    unexpected = [name for name in checkpoint.tensors if name not in expected]
    if unexpected:
        raise BadInput(f"{checkpoint.name} holds tensors its config.json has no place for: {named(unexpected)}")
    return load_weights(module, checkpoint, {name: name for name in checkpoint.tensors}, dtype, device)


def _function(reference: str, model_type: str) -> Callable[..., Any]:
    """The function a plugin named. Raises BadInput naming it where it cannot be imported."""
    module, _, name = reference.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function
    except Exception as error:
        # A plugin's module may raise anything while it is imported.
        raise BadInput(f"{reference}, which builds {model_type}, cannot be imported: {type(error).__name__}: {error}") from error
