"""What a model was like when it was built, and whether it still is: the next job has to find what this one found.

Looked at are its modules and their classes, hooks, replaced methods and mode, its config, and its parameters and buffers, whose
content is compared by checksum. What a job built may take part in a job at once: weights that were mapped from a file are
compared with that file later, and only others are read when they are built.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from modelscope_app.jobs.worker.checksum import PIECE_BYTES, checksum_of_pieces, checksums

if TYPE_CHECKING:
    from modelscope_app.models import BuiltModel
    from modelscope_app.models.mapping import MappedFile

Read = Callable[[int, torch.Tensor], None]


class _Module(NamedTuple):
    """A module of the model, as it was."""

    module: nn.Module
    kind: type[nn.Module]
    hooks: dict[str, dict[Any, Any]]
    methods: dict[str, Any]
    """Attributes of the instance that stand before a method of its class."""


class _Layout(NamedTuple):
    """Where a tensor lies and how it is read. Tied ones have the same."""

    kind: type[torch.Tensor]
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Place(NamedTuple):
    """Where in a file the bytes of a tensor were mapped from."""

    file: MappedFile
    begin: int
    end: int


class AsBuilt:
    """A model as it was built."""

    def __init__(self, model: BuiltModel) -> None:
        self._model = model
        self._modules = dict(_modules(model.unsettled_module))
        self._config = _config(model.unsettled_module)
        tensors = dict(_tensors(model.unsettled_module))
        self._layouts = {name: _layout(tensor) for name, tensor in tensors.items()}
        places = {self._layouts[name]: _place(model, tensor) for name, tensor in tensors.items()}
        self._mapped = {layout: place for layout, place in places.items() if place is not None}
        self._checksums = _checksums(
            {self._layouts[name]: tensor for name, tensor in tensors.items() if places[self._layouts[name]] is None}
        )

    def difference(self) -> str | None:
        """What is not as it was, in a few words; None where everything is. Gradients that were left are dropped.

        Afterwards the model's memory is its own. Raises BadInput where its files changed, so that nobody can say what it was.
        """
        self._model.settled()
        return self._changed_modules() or self._changed_tensors() or self._changed_content()

    def _changed_modules(self) -> str | None:
        now = dict(_modules(self._model.unsettled_module))
        for name in {**self._modules, **now}:
            where = name or "the model"
            before, after = self._modules.get(name), now.get(name)
            if before is None or after is None:
                return f"{where} is a module that was {'added' if before is None else 'removed'}"
            if after.module is not before.module or after.kind is not before.kind:
                return f"{where} is another module"
            if after.hooks.keys() != before.hooks.keys() or not all(_same(after.hooks[key], before.hooks[key]) for key in after.hooks):
                return f"{where} has other hooks"
            if not _same(after.methods, before.methods):
                return f"{where} has other methods"
            if after.module.training:
                return f"{where} is in training mode"
        return "its config is another" if _config(self._model.unsettled_module) != self._config else None

    def _changed_tensors(self) -> str | None:
        now = dict(_tensors(self._model.unsettled_module))
        for name in {**self._layouts, **now}:
            tensor = now.get(name)
            if tensor is None or name not in self._layouts:
                return f"{name} is a tensor that was {'removed' if tensor is None else 'added'}"
            if tensor.requires_grad:
                return f"{name} asks for a gradient"
            if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
                return f"{name} has a hook"
            if _layout(tensor) != self._layouts[name]:
                return f"{name} is another tensor"
            tensor.grad = None
        return None

    def _changed_content(self) -> str | None:
        if self._mapped:
            self._checksums |= _stored_checksums(self._mapped)
            self._mapped = {}
        found = _checksums({self._layouts[name]: tensor for name, tensor in _tensors(self._model.unsettled_module)})
        return next(
            (f"{name} has other values" for name, layout in self._layouts.items() if found[layout] != self._checksums[layout]), None
        )


def _modules(model: nn.Module) -> Iterator[tuple[str, _Module]]:
    for name, module in model.named_modules(remove_duplicate=False):
        attributes = vars(module)
        hooks = {key: dict(value) for key, value in attributes.items() if key.endswith("_hooks") and isinstance(value, Mapping)}
        methods = {key: value for key, value in attributes.items() if callable(getattr(type(module), key, None))}
        yield name, _Module(module, type(module), hooks, methods)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _layout(tensor: torch.Tensor) -> _Layout:
    return _Layout(type(tensor), tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def _config(model: nn.Module) -> Any:
    """What a transformers model's config says, as text; None for other models."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return None
    return json.dumps(config.to_dict(), sort_keys=True, default=str), getattr(config, "_attn_implementation", None)


def _place(model: BuiltModel, tensor: torch.Tensor) -> _Place | None:
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        for file in model.files:
            begin = file.offset(tensor)
            if begin is not None:
                return _Place(file, begin, begin + tensor.nbytes)
    return None


def _checksums(tensors: Mapping[_Layout, torch.Tensor]) -> dict[_Layout, int]:
    return dict(zip(tensors, checksums(list(tensors.values())), strict=True))


def _stored_checksums(places: Mapping[_Layout, _Place]) -> dict[_Layout, int]:
    """Of the bytes in the files. Raises BadInput where a file is not the one that was mapped."""
    found: dict[_Layout, int] = {}
    buffer = torch.empty(PIECE_BYTES, dtype=torch.uint8)

    def pieces(read: Read, begin: int, end: int) -> Iterator[torch.Tensor]:
        for start in range(begin, end, PIECE_BYTES):
            piece = buffer[: min(PIECE_BYTES, end - start)]
            read(start, piece)
            yield piece

    for file in dict.fromkeys(place.file for place in places.values()):
        with file.read_again() as read:
            for layout, place in places.items():
                if place.file is file:
                    found[layout] = int(checksum_of_pieces(pieces(read, place.begin, place.end), torch.device("cpu")))
    return found


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both hold the very same objects."""
    return one.keys() == other.keys() and all(value is other[key] for key, value in one.items())
