"""A pass over training rows that keeps the highest and lowest scores of each query, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from modelscope_influence.contractions import RowGradients
from modelscope_influence.low_rank import products
from modelscope_influence.objectives import Task
from modelscope_influence.recording import UseOfWeight
from modelscope_influence.score_passes import Block, OverRows, Queries, State, root
from modelscope_influence.weights import Weight

_ENDS = ("high", "low")


class TopPass(OverRows):
    """The `count` highest and lowest scores of each query; of each row its loss and self-influence, 17 bytes.

    Of equal scores the row that comes first in the file is the higher one. The state is (query, count) numbers for each end: merged with
    others, and told from the same rows in another order, it is the same.
    """

    def __init__(
        self,
        task: Task,
        weights: Sequence[Weight],
        queries: Queries,
        divided_by: Mapping[str, Block],
        count: int,
        ids: Sequence[int] | None = None,
        by_relatif: bool = False,
    ) -> None:
        """Over the rows `ids`, or all; scores are divided by the root of the row's self-influence where that is asked for."""
        super().__init__(task, weights, ids)
        self._by_relatif = by_relatif
        self._queries, self._divided_by = queries, divided_by
        self._count = min(count, len(self._ids))
        self._batch = torch.zeros(0)

    def start(self) -> State:
        shape = (len(self._queries.ids), self._count)
        state = {**super().start(), "self": torch.zeros(len(self._ids), dtype=torch.float64)}
        for end in _ENDS:
            state[end] = torch.full(shape, torch.nan, dtype=torch.float64)
            state[f"{end}_rows"] = torch.full(shape, -1, dtype=torch.int64)
        return state

    def step(self, state: State, batch: Any) -> State:
        self._batch = torch.zeros(0)
        return super().step(state, batch)

    def merge(self, a: State, b: State) -> State:
        """Each row's numbers from the state that has read it, and the ends of both."""
        merged = {name: torch.where(b["is_read"], b[name], a[name]) for name in ("loss", "self")}
        merged["is_read"] = a["is_read"] | b["is_read"]
        for end in _ENDS:
            scores = torch.cat([a[end], b[end]], dim=1)
            rows = torch.cat([a[f"{end}_rows"], b[f"{end}_rows"]], dim=1)
            merged[end], merged[f"{end}_rows"] = _end(scores, rows, self._count, end)
        return merged

    def finish(self, state: State) -> State:
        """`high` and `low` (query, count) by falling score with the places of their rows, NaN and -1 where there are fewer."""
        return {name: state[name] for name in ("high", "high_rows", "low", "low_rows", "self", "loss")}

    def _add(self, state: State, rows: torch.Tensor, weight: Weight, uses: Sequence[UseOfWeight]) -> None:
        inverse, basis = self._divided_by[weight.name]
        gradients = RowGradients(uses, basis)
        found = products(gradients, self._queries.ready[weight.name]).double().cpu()
        self._batch = self._batch + found if self._batch.numel() else found
        state["self"][rows] += gradients.weighted_squares(inverse).double().cpu()

    def _rows_done(self, state: State, rows: torch.Tensor, good: torch.Tensor) -> None:
        state["self"][rows[~good]] = torch.nan
        scores = self._batch if self._batch.numel() else torch.zeros(len(self._queries.ids), len(rows), dtype=torch.float64)
        if self._by_relatif:
            scores = scores / root(state["self"][rows])
        places = torch.where(good & scores.isfinite(), rows, -1)
        for end in _ENDS:
            both = torch.cat([state[end], scores], dim=1), torch.cat([state[f"{end}_rows"], places], dim=1)
            state[end], state[f"{end}_rows"] = _end(*both, self._count, end)


def kept_rows(found: State) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """By query, the places of both ends together and their scores, by falling score."""
    places, scores = [], []
    for high, high_rows, low, low_rows in zip(found["high"], found["high_rows"], found["low"], found["low_rows"], strict=True):
        is_new = ~torch.isin(low_rows, high_rows)
        places.append(torch.cat([high_rows[high_rows >= 0], low_rows[is_new & (low_rows >= 0)]]))
        scores.append(torch.cat([high[high_rows >= 0], low[is_new & (low_rows >= 0)]]))
    return places, scores


def _end(scores: torch.Tensor, rows: torch.Tensor, count: int, end: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The first or the last `count` of each query by falling score, rows of equal score in their order; row -1 is none."""
    by_row = rows.argsort(dim=1, stable=True)
    scores, rows = scores.gather(1, by_row), rows.gather(1, by_row)
    worst = -torch.inf if end == "high" else torch.inf  # what is none goes to the far end
    order = torch.where(rows >= 0, scores, worst).argsort(dim=1, descending=True, stable=True)
    scores, rows = scores.gather(1, order), rows.gather(1, order)
    if end == "high":
        is_none = (rows < 0).argsort(dim=1, stable=True)  # behind a score that is as low
        scores, rows = scores.gather(1, is_none), rows.gather(1, is_none)
        return scores[:, :count].contiguous(), rows[:, :count].contiguous()
    is_some = (rows >= 0).argsort(dim=1, stable=True)
    scores, rows = scores.gather(1, is_some), rows.gather(1, is_some)
    return scores[:, -count:].contiguous(), rows[:, -count:].contiguous()
