"""The one recorder: what each weight was given and what its outputs' gradients are, for every pass of this plugin.

    with recorded(weights, consume) as tape:
        loss = ...                      # a forward pass
        tape.mask = real                # (batch, position) bool: what is not real counts as zero
        tape.backward(loss)

`consume(weight, uses)` is called once for each weight, during the backward pass, as soon as all its uses have their gradients; what it
was given is let go afterwards, so that memory holds the inputs of the weights still to come and no gradient of a parameter at all. A use
whose output the objective does not depend on is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from modelscope_app.api import BadInput
from modelscope_influence.weights import Use, Weight


class UseOfWeight(NamedTuple):
    """One use of a weight in a batch; the gradient of the weight by row is `einsum("bto,bti->boi", gradients, inputs)`."""

    inputs: torch.Tensor
    """(batch, position, in), zero where a position is not real; the last column is the bias', if any: 1 on real positions."""
    gradients: torch.Tensor
    """(batch, position, out) of the objective, zero where a position is not real."""
    is_turned: bool = False
    """Whether inputs and gradients have changed places: then `inputs` depend on the objective, and `gradients` do not."""


Consume = Callable[[Weight, Sequence[UseOfWeight]], None]


class Tape:
    """What was recorded in one forward pass."""

    def __init__(self, consume: Consume, keeps: bool) -> None:
        self.mask: torch.Tensor | None = None
        """(batch, position) bool; None where every position is real."""
        self._unreal: torch.Tensor | None = None
        self._consume = consume
        self._keeps = keeps
        self._weights: dict[str, Weight] = {}
        self._expected: dict[str, int] = {}
        self._found: dict[str, list[UseOfWeight]] = {}

    def backward(self, objective: torch.Tensor) -> None:
        """Gradients of the objective (a number) for every use; may be called again where the recording keeps its inputs."""
        self._found = {}
        self._unreal = None if self.mask is None or bool(self.mask.all()) else ~self.mask[..., None]
        if objective.requires_grad:
            objective.backward(retain_graph=self._keeps)  # type: ignore[no-untyped-call]
        for name, found in self._found.items():  # of these some uses do not reach the objective
            self._consume(self._weights[name], found)
        self._found = {}

    def add(self, weight: Weight, use: Use, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Note one use; returns the output that the model goes on with."""
        if not output.requires_grad:
            output = output.detach().requires_grad_()  # nothing below needs a gradient, so the graph begins here
        self._weights[weight.name] = weight
        self._expected[weight.name] = self._expected.get(weight.name, 0) + 1
        inputs: list[torch.Tensor | None] = [given.detach()]

        def gradient_is_there(gradient: torch.Tensor) -> None:
            kept = inputs[0]
            assert kept is not None, "the recording does not keep inputs for a second backward pass"
            if not self._keeps:
                inputs[0] = None
            found = self._found.setdefault(weight.name, [])
            found.append(self._use(weight, use, kept, gradient.detach()))
            if len(found) == self._expected[weight.name]:
                del self._found[weight.name]
                self._consume(weight, found)

        output.register_hook(gradient_is_there)  # type: ignore[no-untyped-call]
        return output

    def _use(self, weight: Weight, use: Use, given: torch.Tensor, gradient: torch.Tensor) -> UseOfWeight:
        if isinstance(use.module, nn.Embedding):
            given = _one_hot(use.module, given).to(gradient.dtype)
        dtype = weight.contracted_in or _at_least_float32(gradient.dtype)
        inputs, gradients = self._by_row(weight, given).to(dtype), self._by_row(weight, gradient).to(dtype)
        if self._unreal is not None:
            inputs, gradients = inputs.masked_fill(self._unreal, 0), gradients.masked_fill(self._unreal, 0)
        if use.kind == "embedding-transposed":
            return UseOfWeight(gradients, inputs, is_turned=True)
        if weight.has_bias:
            ones = inputs.new_ones(*inputs.shape[:2], 1) if self.mask is None else self.mask[..., None].to(inputs.dtype)
            inputs = torch.cat([inputs, ones], dim=-1)
        return UseOfWeight(inputs, gradients)

    def _by_row(self, weight: Weight, values: torch.Tensor) -> torch.Tensor:
        """(batch, position, width), of a model that goes on with positions of all rows in one list, too."""
        if self.mask is None:
            return values if values.ndim == 3 else values[:, None]
        rows, positions = self.mask.shape
        if values.shape[:-1].numel() != rows * positions:
            raise BadInput(
                f"{weight.name} is not applied to each row by itself ({values.shape[:-1].numel()} times for {rows} rows of {positions} "
                "positions); leave it out of --modules"
            )
        return values.reshape(rows, positions, values.shape[-1])


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Sums over positions are beyond half precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _one_hot(table: nn.Embedding, tokens: torch.Tensor) -> torch.Tensor:
    """(..., row of the table); zero for the row that torch keeps from being learnt."""
    found = nn.functional.one_hot(tokens, table.num_embeddings)
    return found if table.padding_idx is None else found.masked_fill((tokens == table.padding_idx)[..., None], 0)


@contextmanager
def recorded(weights: Sequence[Weight], consume: Consume, keeps: bool = False) -> Iterator[Tape]:
    """Record every use of these weights in the forward passes inside; `keeps` their inputs for several backward passes."""
    tape = Tape(consume, keeps)
    handles = []
    try:
        for weight in weights:
            for use in weight.uses:
                handles.append(use.module.register_forward_hook(_hook(tape, weight, use)))
        with torch.enable_grad():
            yield tape
    finally:
        for handle in handles:
            handle.remove()


def _hook(tape: Tape, weight: Weight, use: Use) -> Callable[[nn.Module, Any, Any], torch.Tensor]:
    def called(module: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        return tape.add(weight, use, given[0], output)

    return called
