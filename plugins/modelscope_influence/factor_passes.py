"""The two passes over training data that curvature is fitted by. Both merge: order, batches and shards do not matter.

A row whose loss or gradients are not finite is set aside: it is left out of every sum and its id is kept. Gradients are known from the
last weight to the first, so that a row whose loss is finite is left out from the weight on where its gradient is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from modelscope_app.api import BadInput
from modelscope_influence.contractions import Basis, RowGradients
from modelscope_influence.ekfac import gradient_sums, input_sums
from modelscope_influence.objectives import Fisher, Generate, Scored, Task, labels
from modelscope_influence.recording import UseOfWeight, recorded
from modelscope_influence.weights import Weight

State = dict[str, torch.Tensor]


class Labels(NamedTuple):
    """Over which labels the Fisher is taken."""

    fisher: Fisher
    draws: int
    """Of `true`."""
    generate: Generate


class _Pass:
    """What both passes share: a forward pass, a backward pass for each labelling, and rows that are set aside."""

    stage = ""

    def __init__(self, task: Task, weights: Sequence[Weight], labels: Labels) -> None:
        self._task = task
        self._weights = weights
        self._labels = labels

    def start(self) -> State:
        rows = len(self._task.ids)
        return {"is_aside": torch.zeros(rows, dtype=torch.bool), "rows": torch.zeros((), dtype=torch.int64)}

    def step(self, state: State, batch: Any) -> State:
        labelling = positions = 0
        good = torch.empty(0)  # (batch,) bool once the loss is known

        def consume(weight: Weight, uses: Sequence[UseOfWeight]) -> None:
            nonlocal good
            bad = overflowing_rows(uses)
            if bool(bad.any()):
                good = good & ~bad
                unreal = bad[:, None, None]
                uses = [UseOfWeight(use.inputs.masked_fill(unreal, 0), use.gradients.masked_fill(unreal, 0), use.is_turned) for use in uses]
            self._add(state, weight, uses, positions if labelling == 0 else None)

        keeps = self._labels.fisher == "exact" or (self._labels.fisher == "true" and self._labels.draws > 1)
        with recorded(self._weights, consume, keeps) as tape:
            scored = self._task.forward(batch)
            good = finite_rows(scored)
            tape.mask = real_positions(scored, good)
            positions = len(scored.ids) if tape.mask is None else int(tape.mask.sum())
            for targets, weight in labels(scored, self._labels.fisher, self._labels.draws, self._labels.generate, self.stage):
                tape.backward((scored.losses(targets) * weight)[good[scored.row]].sum())
                labelling += 1
        state["rows"] += int(good.sum())
        state["is_aside"][torch.tensor(scored.ids)] = ~good.cpu()
        return state

    def merge(self, a: State, b: State) -> State:
        """Sums add up, and rows that either has set aside stay aside."""
        return {name: values | b[name] if values.dtype == torch.bool else values + b[name] for name, values in a.items()}

    def finish(self, state: State) -> State:
        """The sums, by `what weight`, with `rows` (how many went in) and `is_aside` (row,)."""
        return state

    def _add(self, state: State, weight: Weight, uses: Sequence[UseOfWeight], positions: int | None) -> None:
        """Add a weight's share; `positions` of the batch are real, None where the inputs were added already."""
        raise NotImplementedError


class CovariancePass(_Pass):
    """Uncentred covariances of inputs and output gradients, over every real position of every use."""

    stage = "covariances"

    def __init__(self, task: Task, weights: Sequence[Weight], labels: Labels, dtype: torch.dtype) -> None:
        """Sums are kept in `dtype`."""
        super().__init__(task, weights, labels)
        self._dtype = dtype

    def start(self) -> State:
        state = super().start()
        for weight in self._weights:
            state[f"inputs {weight.name}"] = torch.zeros(weight.inputs, weight.inputs, dtype=self._dtype)
            state[f"outputs {weight.name}"] = torch.zeros(weight.outputs, weight.outputs, dtype=self._dtype)
            state[f"positions {weight.name}"] = torch.zeros((), dtype=torch.int64)
        return state

    def finish(self, state: State) -> State:
        """As for every pass. Raises BadInput for a weight that no row's loss hangs on."""
        for weight in self._weights:
            if int(state["rows"]) and not int(state[f"positions {weight.name}"]):
                raise BadInput(f"{weight.name} has no part in the loss of any row; leave it out of --modules")
        return super().finish(state)

    def _add(self, state: State, weight: Weight, uses: Sequence[UseOfWeight], positions: int | None) -> None:
        inputs, outputs = state[f"inputs {weight.name}"], state[f"outputs {weight.name}"]
        turned, straight = [use for use in uses if use.is_turned], [use for use in uses if not use.is_turned]
        gradient_sums(straight, outputs)
        input_sums(turned, inputs)
        if positions is not None:  # what does not depend on the labels
            input_sums(straight, inputs)
            gradient_sums(turned, outputs)
            state[f"positions {weight.name}"] += positions * len(uses)


class EigenvaluePass(_Pass):
    """Sums of squared row gradients, in the basis of each weight or in the parameters themselves."""

    stage = "eigenvalues"

    def __init__(self, task: Task, weights: Sequence[Weight], labels: Labels, bases: dict[str, Basis] | None, dtype: torch.dtype) -> None:
        """Without `bases`, of the parameters themselves. Sums are kept in `dtype`."""
        super().__init__(task, weights, labels)
        self._bases = bases
        self._dtype = dtype

    def start(self) -> State:
        state = super().start()
        for weight in self._weights:
            state[f"squares {weight.name}"] = torch.zeros(weight.outputs, weight.inputs, dtype=self._dtype)
        return state

    def _add(self, state: State, weight: Weight, uses: Sequence[UseOfWeight], positions: int | None) -> None:
        basis = self._bases[weight.name] if self._bases is not None else None
        state[f"squares {weight.name}"] += RowGradients(uses, basis).summed_squares().to(state[f"squares {weight.name}"])


def finite_rows(scored: Scored) -> torch.Tensor:
    """(batch,) bool: rows whose own loss is finite, and the logits of every scored position."""
    with torch.no_grad():
        per_position = scored.logits.detach().isfinite().all(-1) & scored.losses().detach().isfinite()
    bad = scored.by_row((~per_position).to(scored.logits.dtype))
    return bad == 0


def overflowing_rows(uses: Sequence[UseOfWeight]) -> torch.Tensor:
    """(batch,) bool: rows whose inputs or output gradients are not finite, or are once they are multiplied and squared."""
    inputs, gradients = (
        torch.stack([torch.linalg.vector_norm(part, dim=(1, 2)).square() for part in parts]).sum(0)
        for parts in ([use.inputs for use in uses], [use.gradients for use in uses])
    )
    return ~(inputs + gradients + inputs * gradients).isfinite()


def real_positions(scored: Scored, good: torch.Tensor) -> torch.Tensor | None:
    """(batch, position) bool: real positions of rows that are not set aside; None where that is all there are."""
    if scored.mask is None:
        return None if bool(good.all()) else good[:, None]
    return scored.mask & good[:, None]
