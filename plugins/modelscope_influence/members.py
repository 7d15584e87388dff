"""Members of a series, one after another in one model: a forward pass is given a member's tensors in the place of its parameters.

The model is that of the first member and is never written to; beside it the tensors of one member are in memory. A member whose tensors
are not named as the model's parameters are (an architecture that is renamed as it is read) needs a model of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from modelscope_app.api import BadInput, Checkpoint, JobContext, Source
from modelscope_influence.objectives import ClassifierTask, LanguageTask, Scored, Task

_SAYS_NOTHING = {"transformers_version", "_name_or_path", "torch_dtype", "dtype"}
"""Of config.json, of how a model computes."""


class _Caller(nn.Module):
    """Runs a task while the parameters of its model are replaced."""

    def __init__(self, inner: nn.Module, task: Task) -> None:
        super().__init__()
        self.inner = inner
        self._task = task

    def forward(self, batch: Any) -> Scored:
        return self._task.forward(batch)


class TaskAtMember:
    """Rows as a member of the series reads them."""

    def __init__(self, task: Task, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        """`tensors` by the names of the module's parameters, all of them, and of buffers that are stored."""
        self.ids = task.ids
        self._task, self._caller = task, _Caller(module, task)
        self._tensors = {f"inner.{name}": tensor for name, tensor in tensors.items()}

    def source(self, ids: Sequence[int] | None = None) -> Source[Any]:
        return self._task.source(ids)

    def forward(self, batch: Any) -> Scored:
        scored: Scored = functional_call(self._caller, self._tensors, (batch,))
        return scored

    def positions(self, id: int) -> int:
        return self._task.positions(id)


def tensors_of(checkpoint: Checkpoint, module: nn.Module) -> dict[str, torch.Tensor] | None:
    """A checkpoint's tensors by the names of parameters and buffers, in their dtypes; None where names or shapes are others."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found = {}
    for parameter in module.parameters():
        own = names[id(parameter)]
        stored = next((name for name in own if name in checkpoint.tensors), None)
        if stored is None or tuple(checkpoint.tensors[stored].shape) != tuple(parameter.shape):
            return None
        found[own[0]] = checkpoint.tensor(stored).to(parameter)
    for name, buffer in module.named_buffers():
        if name in checkpoint.tensors:
            found[name] = checkpoint.tensor(name).to(buffer)
    return found


def check_members_are_alike(context: JobContext) -> None:
    """Raise BadInput, naming the step, for a member of another shape or configuration than the first."""
    along = context.series[0]
    first, start = along.checkpoints[0], along.steps[0]
    for step, member in zip(along.steps, along.checkpoints, strict=True):
        for name in sorted({*first.tensors, *member.tensors}):
            shapes = [list(one.tensors[name].shape) if name in one.tensors else None for one in (member, first)]
            if shapes[0] != shapes[1]:
                told = ["no such tensor" if shape is None else f"shape {shape}" for shape in shapes]
                raise BadInput(
                    f"step {step}: {name} has {told[0]}, and at step {start} {told[1]}: these are not members of one training run"
                )
        for name in sorted({*(first.config or {}), *(member.config or {})} - _SAYS_NOTHING):
            values = [json.dumps((one.config or {}).get(name), default=str, sort_keys=True) for one in (member, first)]
            if values[0] != values[1]:
                raise BadInput(f"step {step}: {name} in config.json is {values[0][:200]}, and at step {start} {values[1][:200]}")


def tokenizer_place(context: JobContext) -> int:
    """The checkpoint whose tokenizer reads the rows: the first member, or one beside the series where training saved it once."""
    along = context.series[0]
    for folder in (None, along.path, along.path.parent):
        try:
            place = 0 if folder is None else context.open_checkpoint(str(folder))
            context.tokenizer(place)
        except BadInput:
            continue
        return place
    return 0  # rows of token ids need none, and others are refused by name


def task_of_series(context: JobContext, path: str, batch_size: int | None, tokenizer: int, member: int = 0) -> Task:
    """Rows of a file for a member's model, in tokens of that checkpoint's tokenizer (`tokenizer_place`).

    Raises BadInput for a member whose own tokenizer makes other tokens of them.
    """
    along = context.series[0]
    if (along.checkpoints[0].config or {}).get("model_type") == "mlp":
        return ClassifierTask(context, context.model(member), path, batch_size or 1024)
    tokens_per_batch = batch_size or (256 if context.device.type == "cpu" else 4096)
    task = LanguageTask(context, context.model(member), path, tokens_per_batch, tokenizer)
    for at, step in list(enumerate(along.steps))[1:]:
        try:
            context.tokenizer(at)
        except BadInput:
            continue
        for one, other in zip(task.examples, context.examples(path, at), strict=True):
            if (one.input_ids, one.completion_start) != (other.input_ids, other.completion_start):
                raise BadInput(
                    f"step {step}: its tokenizer makes other tokens of row {one.id} of {path} than that of step {along.steps[0]}"
                )
    return task
