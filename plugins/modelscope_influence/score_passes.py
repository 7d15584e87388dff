"""Passes over training rows that score them against queries, and the gradients of the queries themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from modelscope_app.api import BadInput, Model
from modelscope_influence.contractions import Basis, RowGradients, position_products
from modelscope_influence.ekfac import Curvature
from modelscope_influence.factor_passes import finite_rows, overflowing_rows, real_positions
from modelscope_influence.low_rank import Directions, compressed, concatenated, multiplied_out, products, squared_norms, taken
from modelscope_influence.objectives import Measure, Task, measured
from modelscope_influence.recording import UseOfWeight, recorded
from modelscope_influence.weights import Weight

State = dict[str, torch.Tensor]
_WHOLE_BYTES = 2**30
"""Of one weight's gradients, as they are and divided, of the queries that are brought to a rank at once."""


class Block(NamedTuple):
    """What is divided by, for one weight."""

    inverse: torch.Tensor | None
    """(out, in): 1 / (eigenvalue + damping) in the basis; None for the identity."""
    basis: Basis | None


def blocks(curvatures: Mapping[str, Curvature], damping: float, model: Model) -> dict[str, Block]:
    """Inverse curvature by weight, on the model's device, in the dtype the curvature is in, in which gradients are contracted."""
    device = next(model.module.parameters()).device
    found = {}
    for name, curvature in curvatures.items():
        inverse, basis = curvature.inverse(damping), curvature.basis
        like = torch.empty(0, dtype=torch.float32 if curvature.eigenvalues is None else curvature.eigenvalues.dtype, device=device)
        moved = None if basis is None else Basis(basis.inputs.to(like), basis.outputs.to(like))
        found[name] = Block(None if inverse is None else inverse.to(like), moved)
    return found


class Queries(NamedTuple):
    """Gradients of queries' measures, by weight and in its basis."""

    ids: list[int]
    plain: dict[str, list[RowGradients]]
    """As they are, by batch; none where they are not kept."""
    ready: dict[str, Directions]
    """(query, out, in): divided by curvature, which makes inner products with rows' gradients scores."""
    values: torch.Tensor
    """(query,) float64: the measure itself."""
    order: torch.Tensor
    """(query,) int64: where each query stands among the batches' rows, one batch after the other."""
    kept: torch.Tensor
    """(query,) float64: share of the squared norm of `ready` that its rank leaves, 1 where it is whole."""

    def products(self, weight: str, rows: RowGradients) -> torch.Tensor:
        """(query, row): inner products of the plain gradients with those of rows."""
        return torch.cat([rows.products_with(batch) for batch in self.plain[weight]])[self.order]

    @property
    def squared_norms(self) -> torch.Tensor:
        """(query,) float64: of the plain gradients over all weights."""
        by_weight = [torch.cat([batch.weighted_squares(None) for batch in batches]).double() for batches in self.plain.values()]
        return torch.stack(by_weight).sum(0)[self.order]


def query_gradients(
    task: Task,
    weights: Sequence[Weight],
    measure: Measure,
    ids: Sequence[int],
    divided_by: Mapping[str, Block],
    rank: int | None = None,
    keeps_plain: bool = True,
) -> Queries:
    """The gradient of each query's measure, plain and divided by curvature. Raises BadInput for a measure that is not finite.

    With a `rank`, divided ones are brought to it batch by batch, so that one batch's are held as they are.
    """
    plain: dict[str, list[RowGradients]] = {weight.name: [] for weight in weights}
    ready: dict[str, list[Directions]] = {weight.name: [] for weight in weights}
    found: list[int] = []
    values: list[torch.Tensor] = []
    whole = left = torch.zeros(0)
    source = task.source(ids)

    def consume(weight: Weight, uses: Sequence[UseOfWeight]) -> None:
        nonlocal whole, left
        rows = RowGradients(uses, divided_by[weight.name].basis)
        inverse = divided_by[weight.name].inverse
        if keeps_plain and rows.one_position is None:
            plain[weight.name].append(rows)  # its dense gradient is kept, too
        dense = rows.dense if inverse is None else rows.dense * inverse
        divided: Directions = dense
        if keeps_plain and rows.one_position is not None:
            plain[weight.name].append(RowGradients(uses, divided_by[weight.name].basis))
        if rank is not None:
            whole = whole + squared_norms(dense)
            divided = compressed(dense, rank)
            left = left + squared_norms(divided)
        ready[weight.name].append(divided)

    shares = []
    plan: Sequence[Sequence[int]] = source.plan
    if rank is not None:
        widest = max(weight.size for weight in weights)
        plan = [part for batch in plan for part in batched(batch, max(1, _WHOLE_BYTES // (8 * widest)))]
    for batch in plan:
        with recorded(weights, consume) as tape:
            scored = task.forward(source.load(batch))
            tape.mask = scored.mask
            value = measured(scored, measure)
            bad = (~value.detach().isfinite()).nonzero()[:, 0].tolist()
            if bad:
                raise BadInput(f"query {scored.ids[bad[0]]}: its {measure} is not finite; leave it out")
            whole = left = torch.zeros(len(scored.ids), dtype=torch.float64, device=scored.logits.device)
            tape.backward(value.sum())
        found += scored.ids
        values.append(value.detach().double().cpu())
        shares.append(torch.where(whole > 0, left / whole, 1.0).clamp(max=1.0).cpu())
    order = torch.argsort(torch.tensor(found))
    sorted_ready = {weight.name: taken(concatenated(ready.pop(weight.name)), order) for weight in weights}
    return Queries(
        [found[at] for at in order.tolist()],
        plain if keeps_plain else {},
        sorted_ready,
        torch.cat(values)[order],
        order,
        torch.cat(shares)[order],
    )


class OverRows:
    """What the passes share: rows forward, their summed loss backward, rows without a finite loss set aside."""

    def __init__(self, task: Task, weights: Sequence[Weight], ids: Sequence[int] | None = None) -> None:
        self._task = task
        self._weights = weights
        self._ids = task.ids if ids is None else ids
        self._place_of = self._ids if self._ids == range(len(self._ids)) else {id: at for at, id in enumerate(self._ids)}

    def start(self) -> State:
        rows = len(self._ids)
        return {
            "loss": torch.full((rows,), torch.nan, dtype=torch.float64),
            "is_read": torch.zeros(rows, dtype=torch.bool),
        }

    def step(self, state: State, batch: Any) -> State:
        rows = good = torch.empty(0)

        def consume(weight: Weight, uses: Sequence[UseOfWeight]) -> None:
            nonlocal good
            good = good & ~overflowing_rows(uses)
            self._add(state, rows, weight, uses)

        with recorded(self._weights, consume) as tape:
            scored = self._task.forward(batch)
            good = finite_rows(scored)
            tape.mask = real_positions(scored, good)
            rows = torch.tensor([self._place_of[id] for id in scored.ids])
            losses = scored.losses()
            tape.backward(losses[good[scored.row]].sum())
        state["loss"][rows] = scored.by_row(losses.detach().double()).cpu()
        state["is_read"][rows] = True
        self._rows_done(state, rows, good.cpu())
        return state

    def merge(self, a: State, b: State) -> State:
        """Each row from the state that has read it; rows are the last dimension."""
        taken = b["is_read"]
        return {name: values | taken if name == "is_read" else torch.where(taken, b[name], values) for name, values in a.items()}

    def finish(self, state: State) -> State:
        """By name, rows last; NaN for rows that were set aside."""
        return state

    def _add(self, state: State, rows: torch.Tensor, weight: Weight, uses: Sequence[UseOfWeight]) -> None:
        raise NotImplementedError

    def _rows_done(self, state: State, rows: torch.Tensor, good: torch.Tensor) -> None:
        for name, values in state.items():
            if name not in ("is_read", "loss"):
                values[..., rows[~good]] = torch.nan


class ScorePass(OverRows):
    """Scores (query, row), or by weight (weight, query, row), and the self-influence of each row beside them."""

    def __init__(
        self,
        task: Task,
        weights: Sequence[Weight],
        queries: Queries,
        divided_by: Mapping[str, Block],
        by_weight: bool,
        cosines: bool,
        ids: Sequence[int] | None = None,
    ) -> None:
        """Of the rows `ids`, in that order, or of all; `cosines` of the plain gradients beside the scores where they are asked for."""
        super().__init__(task, weights, ids)
        self._queries, self._divided_by, self._by_weight, self._cosines = queries, divided_by, by_weight, cosines
        self._place = {weight.name: at for at, weight in enumerate(weights)}

    def start(self) -> State:
        rows = len(self._ids)
        shape = (len(self._queries.ids), rows)
        state = {
            **super().start(),
            "scores": torch.zeros(*((len(self._weights),) if self._by_weight else ()), *shape, dtype=torch.float64),
            "self": torch.zeros(rows, dtype=torch.float64),
        }
        if self._cosines:
            state["cosines"] = torch.zeros(*shape, dtype=torch.float64)
            state["squared_norm"] = torch.zeros(rows, dtype=torch.float64)
        return state

    def finish(self, state: State) -> State:
        """By name, rows last; NaN for rows that were set aside."""
        if self._cosines:
            both = (self._queries.squared_norms.cpu()[:, None] * state["squared_norm"]).sqrt()
            state["cosines"] = state["cosines"] / torch.where(both > 0, both, torch.nan)
        return state

    def _add(self, state: State, rows: torch.Tensor, weight: Weight, uses: Sequence[UseOfWeight]) -> None:
        inverse, basis = self._divided_by[weight.name]
        gradients = RowGradients(uses, basis)
        into = state["scores"][self._place[weight.name]] if self._by_weight else state["scores"]
        into[:, rows] += products(gradients, self._queries.ready[weight.name]).double().cpu()
        state["self"][rows] += gradients.weighted_squares(inverse).double().cpu()
        if self._cosines:
            state["cosines"][:, rows] += self._queries.products(weight.name, gradients).double().cpu()
            state["squared_norm"][rows] += gradients.weighted_squares(None).double().cpu()


class SelfPass(OverRows):
    """Self-influence and gradient norm of each row."""

    def __init__(self, task: Task, weights: Sequence[Weight], divided_by: Mapping[str, Block]) -> None:
        super().__init__(task, weights)
        self._divided_by = divided_by

    def start(self) -> State:
        rows = len(self._task.ids)
        return {
            **super().start(),
            "self": torch.zeros(rows, dtype=torch.float64),
            "squared_norm": torch.zeros(rows, dtype=torch.float64),
        }

    def _add(self, state: State, rows: torch.Tensor, weight: Weight, uses: Sequence[UseOfWeight]) -> None:
        inverse, basis = self._divided_by[weight.name]
        gradients = RowGradients(uses, basis)
        state["self"][rows] += gradients.weighted_squares(inverse).double().cpu()
        state["squared_norm"][rows] += gradients.weighted_squares(None).double().cpu()


class PositionPass(OverRows):
    """Scores of single positions (query, row, position) for a few rows, summed over weights."""

    def __init__(
        self, task: Task, weights: Sequence[Weight], queries: Queries, divided_by: Mapping[str, Block], longest: int, ids: Sequence[int]
    ) -> None:
        """Of the rows `ids`, in that order."""
        super().__init__(task, weights, ids)
        self._queries, self._divided_by, self._longest = queries, divided_by, longest

    def start(self) -> State:
        shape = (len(self._queries.ids), self._longest, len(self._ids))
        return {**super().start(), "positions": torch.zeros(*shape, dtype=torch.float32)}

    def _add(self, state: State, rows: torch.Tensor, weight: Weight, uses: Sequence[UseOfWeight]) -> None:
        found = (
            position_products(uses, multiplied_out(self._queries.ready[weight.name]), self._divided_by[weight.name].basis).float().cpu()
        )  # (query, batch, position)
        state["positions"][:, : found.shape[2], rows] += found.transpose(1, 2)


def root(self_influence: torch.Tensor) -> torch.Tensor:
    """(row,): NaN where it is zero."""
    found = self_influence.clamp(min=0).sqrt()
    return torch.where(found > 0, found, torch.nan)


def batched(ids: Sequence[int], at_once: int) -> Iterator[Sequence[int]]:
    """Parts of at most `at_once`."""
    for start in range(0, len(ids), at_once):
        yield ids[start : start + at_once]
