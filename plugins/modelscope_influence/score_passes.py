"""Passes over training rows that score them against queries, and the gradients of the queries themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from modelscope_app.api import BadInput
from modelscope_influence.contractions import Basis, position_products, products, row_gradients, weighted_squares
from modelscope_influence.ekfac import Curvature
from modelscope_influence.factor_passes import finite_rows, real_positions
from modelscope_influence.objectives import Measure, Task, measured
from modelscope_influence.recording import UseOfWeight, recorded
from modelscope_influence.weights import Weight

State = dict[str, torch.Tensor]


class Queries(NamedTuple):
    """Gradients of queries' measures, by weight."""

    ids: list[int]
    gradients: dict[str, torch.Tensor]
    """(query, out, in) by weight."""
    values: torch.Tensor
    """(query,) float64: the measure itself."""


def query_gradients(task: Task, weights: Sequence[Weight], measure: Measure, ids: Sequence[int]) -> Queries:
    """The gradient of each query's measure. Raises BadInput for a query whose measure is not finite, naming it."""
    found: dict[str, list[torch.Tensor]] = {weight.name: [] for weight in weights}
    order: list[int] = []
    values: list[torch.Tensor] = []
    source = task.source(ids)

    def consume(weight: Weight, uses: Sequence[UseOfWeight]) -> None:
        found[weight.name].append(row_gradients(uses))

    for batch in source.plan:
        with recorded(weights, consume) as tape:
            scored = task.forward(source.load(batch))
            tape.mask = scored.mask
            value = measured(scored, measure)
            bad = (~value.detach().isfinite()).nonzero()[:, 0].tolist()
            if bad:
                raise BadInput(f"query {scored.ids[bad[0]]}: its {measure} is not finite; leave it out")
            tape.backward(value.sum())
        order += scored.ids
        values.append(value.detach().double().cpu())
    back = torch.argsort(torch.tensor(order))
    ids = [order[at] for at in back.tolist()]
    return Queries(ids, {name: torch.cat(parts)[back.to(parts[0].device)] for name, parts in found.items()}, torch.cat(values)[back])


def preconditioned(queries: Queries, curvatures: Mapping[str, Curvature], damping: float) -> Queries:
    """(H + damping)^-1 applied to the queries' gradients."""
    gradients = {name: curvatures[name].precondition(gradient, damping) for name, gradient in queries.gradients.items()}
    return queries._replace(gradients=gradients)


class _OverRows:
    """What the passes share: rows forward, their summed loss backward, rows without a finite loss set aside."""

    def __init__(self, task: Task, weights: Sequence[Weight], ids: Sequence[int] | None = None) -> None:
        self._task = task
        self._weights = weights
        self._ids = task.ids if ids is None else ids
        self._place_of = {id: at for at, id in enumerate(self._ids)}

    def start(self) -> State:
        rows = len(self._ids)
        return {
            "loss": torch.full((rows,), torch.nan, dtype=torch.float64),
            "is_read": torch.zeros(rows, dtype=torch.bool),
        }

    def step(self, state: State, batch: Any) -> State:
        rows: torch.Tensor = torch.empty(0)

        def consume(weight: Weight, uses: Sequence[UseOfWeight]) -> None:
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


class ScorePass(_OverRows):
    """Scores (query, row), or by weight (weight, query, row), and the self-influence of each row beside them."""

    def __init__(
        self,
        task: Task,
        weights: Sequence[Weight],
        queries: Queries,
        curvatures: Mapping[str, Curvature],
        damping: float,
        by_weight: bool,
        raw: Queries | None = None,
    ) -> None:
        """`queries` are preconditioned; with `raw`, the same as they were, cosines of plain gradients are computed too."""
        super().__init__(task, weights)
        self._queries, self._by_weight, self._raw = queries, by_weight, raw
        self._place = {weight.name: at for at, weight in enumerate(weights)}
        self._inverse = inverses(curvatures, damping, queries.gradients)

    def start(self) -> State:
        rows = len(self._task.ids)
        shape = (len(self._queries.ids), rows)
        state = {
            **super().start(),
            "scores": torch.zeros(*((len(self._weights),) if self._by_weight else ()), *shape, dtype=torch.float64),
            "self": torch.zeros(rows, dtype=torch.float64),
        }
        if self._raw is not None:
            state["cosines"] = torch.zeros(*shape, dtype=torch.float64)
            state["squared_norm"] = torch.zeros(rows, dtype=torch.float64)
        return state

    def finish(self, state: State) -> State:
        """By name, rows last; NaN for rows that were set aside."""
        if self._raw is not None:
            lengths = sum(gradient.double().square().sum((1, 2)) for gradient in self._raw.gradients.values())
            assert isinstance(lengths, torch.Tensor)
            both = (lengths.cpu()[:, None] * state["squared_norm"]).sqrt()
            state["cosines"] = state["cosines"] / torch.where(both > 0, both, torch.nan)
        return state

    def _add(self, state: State, rows: torch.Tensor, weight: Weight, uses: Sequence[UseOfWeight]) -> None:
        into = state["scores"][self._place[weight.name]] if self._by_weight else state["scores"]
        into[:, rows] += products(uses, self._queries.gradients[weight.name]).double().cpu()
        inverse, basis = self._inverse[weight.name]
        state["self"][rows] += weighted_squares(uses, inverse, basis).double().cpu()
        if self._raw is not None:
            state["cosines"][:, rows] += products(uses, self._raw.gradients[weight.name]).double().cpu()
            state["squared_norm"][rows] += weighted_squares(uses, None).double().cpu()


class SelfPass(_OverRows):
    """Self-influence and gradient norm of each row."""

    def __init__(
        self, task: Task, weights: Sequence[Weight], curvatures: Mapping[str, Curvature], damping: float, like: torch.Tensor
    ) -> None:
        """Computed in the dtype and on the device of `like`."""
        super().__init__(task, weights)
        self._inverse = inverses(curvatures, damping, {weight.name: like for weight in weights})

    def start(self) -> State:
        rows = len(self._task.ids)
        return {
            **super().start(),
            "self": torch.zeros(rows, dtype=torch.float64),
            "squared_norm": torch.zeros(rows, dtype=torch.float64),
        }

    def _add(self, state: State, rows: torch.Tensor, weight: Weight, uses: Sequence[UseOfWeight]) -> None:
        inverse, basis = self._inverse[weight.name]
        state["self"][rows] += weighted_squares(uses, inverse, basis).double().cpu()
        state["squared_norm"][rows] += weighted_squares(uses, None).double().cpu()


class PositionPass(_OverRows):
    """Scores of single positions (query, row, position) for a few rows, summed over weights."""

    def __init__(self, task: Task, weights: Sequence[Weight], queries: Queries, longest: int, ids: Sequence[int]) -> None:
        """Of the rows `ids`, in that order."""
        super().__init__(task, weights, ids)
        self._queries, self._longest = queries, longest

    def start(self) -> State:
        shape = (len(self._queries.ids), self._longest, len(self._ids))
        return {**super().start(), "positions": torch.zeros(*shape, dtype=torch.float32)}

    def _add(self, state: State, rows: torch.Tensor, weight: Weight, uses: Sequence[UseOfWeight]) -> None:
        found = position_products(uses, self._queries.gradients[weight.name]).float().cpu()  # (query, batch, position)
        state["positions"][:, : found.shape[2], rows] += found.transpose(1, 2)


def inverses(
    curvatures: Mapping[str, Curvature], damping: float, like: Mapping[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor | None, Basis | None]]:
    """1 / (eigenvalue + damping) and the basis it is in, by weight, in the dtype and on the device of `like`."""
    found = {}
    for name, curvature in curvatures.items():
        inverse, basis = curvature.inverse(damping), curvature.basis
        found[name] = (
            None if inverse is None else inverse.to(like[name]),
            None if basis is None else Basis(basis.inputs.to(like[name]), basis.outputs.to(like[name])),
        )
    return found


def batched(ids: Sequence[int], at_once: int) -> Iterator[Sequence[int]]:
    """Parts of at most `at_once`."""
    for start in range(0, len(ids), at_once):
        yield ids[start : start + at_once]
