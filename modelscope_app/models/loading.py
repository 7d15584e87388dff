"""A module on torch's meta device and a checkpoint become a model: every stored tensor put where it belongs, none invented.

Parameters that one module has under several names (tied embeddings) stay one tensor. Where a checkpoint stores several of
those names with different values, they are different tensors, whatever the config says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from modelscope_app.api import BadInput, Checkpoint
from modelscope_app.models.mapping import MappedFile
from modelscope_app.models.stored_values import floating_dtypes, stored_dtype, stored_values


class Loaded(NamedTuple):
    """What filling a module leaves behind."""

    notes: list[str]
    """What to tell the user, a sentence each."""
    files: list[MappedFile]
    """Files the module's memory is still shared with."""


def named(names: Sequence[str], shown: int = 4) -> str:
    """The first few of many names, for a sentence."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def model_dtype(checkpoint: Checkpoint, asked: torch.dtype | None) -> tuple[torch.dtype, list[str]]:
    """The floating-point dtype to build in, and what to tell the user about it.

    Without one asked for, it is the stored one. A checkpoint that mixes several runs in what config.json says, or in the one
    most of its parameters have, because layers of different dtypes do not multiply.
    """
    for header in checkpoint.tensors.values():
        stored_dtype(header, checkpoint.name)
    if asked is not None:
        return asked, []
    stored = floating_dtypes(checkpoint.tensors.values())
    if not stored:
        return torch.float32, []
    chosen = next(iter(stored))
    if len(stored) == 1:
        return chosen, []
    config = checkpoint.config or {}
    declared = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    chosen = declared if declared in stored else chosen
    kinds = " and ".join(_short(dtype) for dtype in stored)
    return chosen, [f"{checkpoint.name} stores {kinds}; the model is built in {_short(chosen)} (--dtype chooses another)"]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tied_groups(module: nn.Module) -> list[list[str]]:
    """State-dict names, grouped where they are one and the same tensor."""
    groups: dict[int, list[str]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        groups.setdefault(id(value), []).append(name)
    return list(groups.values())


def load_weights(
    module: nn.Module,
    checkpoint: Checkpoint,
    stored_names: Mapping[str, str],
    dtype: torch.dtype,
    device: torch.device,
) -> Loaded:
    """Put stored tensors into a module built (on the meta device, or for real) with default dtype `dtype`.

    `stored_names` maps state-dict names to names in the checkpoint. A floating-point value is cast to the dtype of the
    parameter it fills. Raises BadInput naming tensors that are missing or have another shape.
    """
    expected = module.state_dict(keep_vars=True)
    groups = tied_groups(module)
    missing = [group[0] for group in groups if not any(name in stored_names for name in group)]
    if missing:
        raise BadInput(f"{checkpoint.name} lacks tensors its config.json asks for: {named(missing)}")
    for name, stored in stored_names.items():
        shape = checkpoint.tensors[stored].shape
        if tuple(expected[name].shape) != tuple(shape):
            wanted = tuple(expected[name].shape)
            raise BadInput(f"{checkpoint.name}: {stored} has shape {tuple(shape)} where config.json asks for {wanted}")

    values = stored_values(checkpoint, {stored: expected[name].dtype for name, stored in stored_names.items()}, device)
    notes = []
    for group in groups:
        first = next(name for name in group if name in stored_names)
        shared = _filled(expected[first], values.tensors[stored_names[first]])
        for name in group:
            own = values.tensors[stored_names[name]] if name in stored_names else shared
            if name == first or own is shared or torch.equal(own, shared):
                put(module, name, shared)
            else:
                put(module, name, _filled(expected[name], own))
                notes.append(f"{checkpoint.name}: {name} and {first} differ, so they are not tied as config.json says")
    return Loaded(notes, values.files)


def _filled(placeholder: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(value, requires_grad=False) if isinstance(placeholder, nn.Parameter) else value


def put(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Make `value` the parameter or buffer of that state-dict name."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    if last in owner._parameters:
        owner._parameters[last] = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[last] = value


def unsaved_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers no state dict holds (rotary frequencies, position ids), by name."""
    saved = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers(remove_duplicate=False) if name not in saved}
