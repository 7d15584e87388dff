"""Which pairs of a query and a training row are worth a line, and what their scores are: one scan, and a closer look where it is needed.

| the scan                         | when                                              | what is held                                     |
|----------------------------------|---------------------------------------------------|--------------------------------------------------|
| all pairs, exactly               | they fit, and the rank is whole                   | 16 bytes a pair                                  |
| both ends of each query, exactly | --top-k, and all pairs do not fit                 | of each row 17 bytes                             |
| the same at low rank             | --rank, or queries that do not fit with --top-k   | the same; the best are scored exactly afterwards |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from modelscope_app.api import JobContext
from modelscope_influence.estimates import PAIR_BYTES, QUERY_BYTES, SOLVING_BYTES
from modelscope_influence.objectives import Task
from modelscope_influence.params import ScoresParams
from modelscope_influence.prefilter import Chosen
from modelscope_influence.rankings import mean
from modelscope_influence.score_passes import Block, Queries, ScorePass, State, batched, query_gradients, root
from modelscope_influence.starting import Started
from modelscope_influence.top_pass import TopPass, kept_rows
from modelscope_influence.weights import total_size

DEFAULT_RANK = 32


class Pairs(NamedTuple):
    """What is known of pairs, by query and falling score."""

    query: torch.Tensor
    """(pair,) int64."""
    place: torch.Tensor
    """(pair,) int64: among the scored rows."""
    score: torch.Tensor
    """(pair,) float64, NaN for rows that were set aside."""
    cosine: torch.Tensor | None
    """(pair,) of the plain gradients; NaN where it was not computed."""
    by_module: torch.Tensor | None
    """(module, pair)."""
    is_exact: torch.Tensor
    """(pair,) bool: not only scored at low rank."""


class Scanned(NamedTuple):
    """What a scan found."""

    pairs: Pairs
    self_influence: torch.Tensor
    """(row,) of the scored rows, NaN for those that were set aside."""
    loss: torch.Tensor
    """(row,)."""
    scores: torch.Tensor | None
    """(query, row), where all pairs are held."""
    cosines: torch.Tensor | None
    sampled: torch.Tensor | None
    """(query, sampled row): of rows that a filter left out."""
    rank: int | None
    rank_kept: float
    """Mean share of the queries' squared norms that the rank leaves."""
    rank_correlation: float | None
    """Between the scan's scores and exact ones within an end, the lower of both, mean over queries; None where the scan was exact."""
    deepest: int | None
    """Of the rows that are shown, the place of the last one in the scan's own order, counted from its end; None where it was exact."""
    candidates: int | None
    """Of each end of each query that were scored exactly after a scan of low rank."""
    measures: torch.Tensor
    """(query,) float64: the measure itself."""


class Scan:
    """A scan of the chosen rows for all queries."""

    def __init__(
        self,
        context: JobContext,
        params: ScoresParams,
        begun: Started,
        queries: Task,
        divided_by: Mapping[str, Block],
        chosen: Chosen,
        solved: Callable[[Queries], Queries] | None = None,
    ) -> None:
        """`solved` puts other directions into the place of those that curvature's blocks give, in their basis."""
        self._context, self._params, self._begun, self._queries = context, params, begun, queries
        self._divided_by, self._chosen, self._solved = divided_by, chosen, solved
        self._ids = None if chosen.is_all else list(chosen.rows)
        size = next(context.model().module.parameters()).element_size()
        each = total_size(begun.weights) * (SOLVING_BYTES if solved is not None else max(size, 4) * (2 if params.baselines else 1))
        self._fit = params.queries_at_once or max(1, QUERY_BYTES // each)
        self._measures = torch.full((len(queries.ids),), torch.nan, dtype=torch.float64)
        self._rank = params.rank
        if (
            solved is None
            and self._rank is None
            and params.top_k is not None
            and params.queries_at_once is None
            and len(queries.ids) > self._fit
        ):
            self._rank = DEFAULT_RANK
            context.log(f"gradients of {len(queries.ids):,} queries do not fit at once: a scan of rank {DEFAULT_RANK}, its best exactly")

    def run(self) -> Scanned:
        """Scan, and look closer where that is needed."""
        top_k = self._params.top_k
        pairs = len(self._queries.ids) * len(self._chosen.rows)
        is_most = top_k is not None and 2 * top_k >= len(self._chosen.rows)
        if top_k is None or (self._rank is None and (is_most or pairs * 16 <= PAIR_BYTES)):
            found = self._all_pairs() if self._rank is None else self._all_at_low_rank()
        else:
            found = self._ends(top_k)
        return found._replace(measures=self._measures)

    def _all_pairs(self) -> Scanned:
        """One pass for each part of the queries that fits."""
        params = self._params
        by_module_of_all = params.per_module and params.top_k is None
        parts, sampled = [], []
        for at, ids in enumerate(batched(self._queries.ids, self._fit)):
            asked = self._asked(ids)
            parts.append(self._pass(f"scores-{at}", asked, self._ids, by_module_of_all, params.baselines))
            sampled += self._of_sample(at, asked)
        by_module = torch.cat([part["scores"] for part in parts], dim=1) if by_module_of_all else None
        scores = by_module.sum(0) if by_module is not None else torch.cat([part.pop("scores") for part in parts])
        cosines = torch.cat([part.pop("cosines") for part in parts]) if params.baselines else None
        places = kept_places(self._ranking(scores, parts[0]["self"]), params.top_k)
        query = numbered(places)
        place = torch.cat(places)
        pairs = Pairs(
            query,
            place,
            scores[query, place],
            None if cosines is None else cosines[query, place],
            None if by_module is None else by_module[:, query, place],
            torch.ones(len(query), dtype=torch.bool),
        )
        if params.per_module and not by_module_of_all:
            pairs = pairs._replace(by_module=self._closer(places).by_module)
        return _whole(pairs, parts[0], scores, cosines, sampled)

    def _ends(self, top_k: int) -> Scanned:
        """Both ends of each query, at low rank with more rows than are wanted."""
        params, rank = self._params, self._rank
        by_relatif = params.rank_by == "relatif"
        wanted = top_k if rank is None else max(params.rerank, 2 * top_k)
        places: list[torch.Tensor] = []
        scores: list[torch.Tensor] = []
        kept, sampled, first = [], [], None
        for at, ids in enumerate(self._parts()):
            asked = self._asked(ids, rank)
            kept.append(asked.kept)
            reading = TopPass(self._begun.task, self._begun.weights, asked, self._divided_by, wanted, self._ids, by_relatif)
            found = self._context.fold(f"ends-{at}", reading, self._begun.task.source(self._ids))
            first = first or found
            for collected, part in zip((places, scores), kept_rows(found), strict=True):
                collected += part
            sampled += self._of_sample(at, asked) if rank is None else []
        assert first is not None, "there are queries"
        if rank is None and not params.per_module and not params.baselines and not by_relatif:
            flat = torch.cat(scores)
            pairs = Pairs(numbered(places), torch.cat(places), flat, None, None, torch.ones(len(flat), dtype=torch.bool))
            return _whole(pairs, first, None, None, sampled)
        closer = self._closer(places, sampled if rank is not None else None)
        if rank is None:
            return _whole(closer, first, None, None, sampled)
        return self._reranked(closer, scores, first, torch.cat(kept), wanted, sampled)

    def _reranked(
        self, closer: Pairs, scores: Sequence[torch.Tensor], first: State, kept: torch.Tensor, wanted: int, sampled: list[torch.Tensor]
    ) -> Scanned:
        """The pairs of a scan of low rank in the order of their exact scores, and how well the scan did."""
        taken, deepest, correlations = [], 0, []
        start = 0
        for theirs in scores:
            own = torch.arange(start, start + len(theirs))
            start += len(theirs)
            exact = self._ranking(closer.score[own], first["self"][closer.place[own]])
            correlations.append(within_ends(theirs, exact))
            order = kept_places(exact[None], self._params.top_k)[0]
            from_end = torch.minimum(order, len(theirs) - 1 - order) + 1
            deepest = max(deepest, int(from_end.max()) if len(order) else 0)
            taken.append(own[order])
        pairs = _some(closer, torch.cat(taken))
        return _whole(pairs, first, None, None, sampled)._replace(
            rank=self._rank, rank_kept=float(kept.mean()), rank_correlation=mean(correlations), deepest=deepest, candidates=wanted
        )

    def _all_at_low_rank(self) -> Scanned:
        """Scores of all pairs at low rank, and exact ones of both ends of each query."""
        parts, kept, sampled = [], [], []  # type: ignore[var-annotated]
        for at, ids in enumerate(self._parts()):
            asked = self._asked(ids, self._rank)
            kept.append(asked.kept)
            parts.append(self._pass(f"scores-{at}", asked, self._ids, False, False))
        scores = torch.cat([part["scores"] for part in parts])
        candidates = kept_places(self._ranking(scores, parts[0]["self"]), self._params.rerank)
        closer = self._closer(candidates, sampled)
        query, place = closer.query, closer.place
        correlations = [within_ends(scores[at, own], closer.score[query == at]) for at, own in enumerate(candidates)]
        scores[query, place] = closer.score
        is_exact = torch.zeros_like(scores, dtype=torch.bool)
        is_exact[query, place] = True
        cosines = torch.full_like(scores, torch.nan)
        if closer.cosine is not None:
            cosines[query, place] = closer.cosine
        places = kept_places(self._ranking(scores, parts[0]["self"]), None)
        all_query, all_place = numbered(places), torch.cat(places)
        by_module = None
        if closer.by_module is not None:
            by_module = torch.full((len(closer.by_module), *scores.shape), torch.nan, dtype=torch.float64)
            by_module[:, query, place] = closer.by_module
            by_module = by_module[:, all_query, all_place]
        pairs = Pairs(
            all_query,
            all_place,
            scores[all_query, all_place],
            None if closer.cosine is None else cosines[all_query, all_place],
            by_module,
            is_exact[all_query, all_place],
        )
        return _whole(pairs, parts[0], scores, None, sampled)._replace(
            rank=self._rank,
            rank_kept=float(torch.cat(kept).mean()),
            rank_correlation=mean(correlations),
            candidates=min(self._params.rerank, scores.shape[1]),
        )

    def _closer(self, places: Sequence[torch.Tensor], sampled: list[torch.Tensor] | None = None) -> Pairs:
        """Exact scores of these places by query, with cosines and modules where they are asked for; the sample's go into `sampled`."""
        params, found = self._params, []
        each = 8 * len(self._begun.weights) * max(map(len, places), default=1)  # by module, if the rows of all queries are others
        fit = min(self._fit, max(1, math.isqrt(PAIR_BYTES // each))) if params.per_module else self._fit
        for at, ids in enumerate(batched(range(len(places)), fit)):
            asked = self._asked([self._queries.ids[id] for id in ids])
            wanted = torch.unique(torch.cat([places[id] for id in ids]))
            rows = self._row_ids(wanted)
            part = self._pass(f"closer-{at}", asked, rows, params.per_module, params.baselines)
            if sampled is not None:
                sampled += self._of_sample(at, asked)
            for own, id in enumerate(ids):
                within = torch.searchsorted(wanted, places[id])
                by_module = part["scores"][:, own, within] if params.per_module else None
                score = part["scores"][own, within] if by_module is None else by_module.sum(0)
                found.append((score, part["cosines"][own, within] if params.baselines else None, by_module))
        cosines = [cosine for _, cosine, _ in found if cosine is not None]
        modules = [by_module for _, _, by_module in found if by_module is not None]
        return Pairs(
            numbered(places),
            torch.cat(list(places)),
            torch.cat([score for score, _, _ in found]),
            torch.cat(cosines) if cosines else None,
            torch.cat(modules, dim=1) if modules else None,
            torch.ones(sum(map(len, places)), dtype=torch.bool),
        )

    def _ranking(self, scores: torch.Tensor, self_influence: torch.Tensor) -> torch.Tensor:
        """(..., row): by what rows are ranked."""
        return scores / root(self_influence) if self._params.rank_by == "relatif" else scores

    def _of_sample(self, at: int, asked: Queries) -> list[torch.Tensor]:
        """(query, sampled row) of the rows that a filter left out; none without a sample."""
        if not self._chosen.sample:
            return []
        scores: torch.Tensor = self._pass(f"sample-{at}", asked, list(self._chosen.sample), False, False)["scores"]
        return [scores]

    def _pass(self, name: str, asked: Queries, ids: Sequence[int] | None, by_module: bool, cosines: bool) -> State:
        task = self._begun.task
        reading = ScorePass(task, self._begun.weights, asked, self._divided_by, by_module, cosines, ids)
        return self._context.fold(name, reading, task.source(ids))

    def _asked(self, ids: Sequence[int], rank: int | None = None) -> Queries:
        plain = rank is None and self._params.baselines
        asked = query_gradients(self._queries, self._begun.weights, self._params.measure, ids, self._divided_by, rank, plain)
        self._measures[list(ids)] = asked.values
        return asked if self._solved is None else self._solved(asked)

    def _parts(self) -> Iterator[Sequence[int]]:
        """Queries whose gradients fit at once at the scan's rank."""
        rank = self._rank
        if rank is None or self._params.queries_at_once is not None:
            return batched(self._queries.ids, self._fit)
        weights = self._begun.weights
        thin = sum(min(rank * (weight.outputs + weight.inputs), weight.outputs * weight.inputs) for weight in weights) * 4
        return batched(self._queries.ids, max(1, QUERY_BYTES // thin))

    def _row_ids(self, places: torch.Tensor) -> list[int]:
        rows: list[int] = torch.tensor(self._chosen.rows)[places].tolist()
        return rows


def kept_places(scores: torch.Tensor, top_k: int | None) -> list[torch.Tensor]:
    """By query, the places of all scores, or of the `top_k` highest and lowest; highest first, what is not finite last or not at all."""
    kept = []
    for row in scores:
        order = torch.argsort(torch.where(row.isfinite(), row, -torch.inf), descending=True, stable=True)
        known = order[row[order].isfinite()]
        if top_k is None:
            kept.append(torch.cat([known, order[~row[order].isfinite()]]))
        else:
            kept.append(torch.cat([known[:top_k], known[max(top_k, len(known) - top_k) :]]))
    return kept


def numbered(places: Sequence[torch.Tensor]) -> torch.Tensor:
    """The query of each place."""
    return torch.repeat_interleave(torch.arange(len(places)), torch.tensor([len(own) for own in places], dtype=torch.int64))


def within_ends(scanned: torch.Tensor, exact: torch.Tensor) -> float | None:
    """Pearson's within the higher half and within the lower one, the lower of both: across them any scan that tells signs does well."""
    order = scanned.argsort(descending=True, stable=True)
    halves = (order[: len(order) // 2], order[len(order) // 2 :])
    found = [correlation(scanned[half], exact[half]) for half in halves]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def correlation(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Pearson's; None where either does not vary."""
    both = torch.stack([one, other]).double()
    both = both[:, both.isfinite().all(0)]
    if both.shape[1] < 2 or bool((both.std(dim=1) == 0).any()):
        return None
    return float(both.corrcoef()[0, 1])


def _some(pairs: Pairs, at: torch.Tensor) -> Pairs:
    return Pairs(
        pairs.query[at],
        pairs.place[at],
        pairs.score[at],
        None if pairs.cosine is None else pairs.cosine[at],
        None if pairs.by_module is None else pairs.by_module[:, at],
        pairs.is_exact[at],
    )


def _whole(
    pairs: Pairs, part: State, scores: torch.Tensor | None, cosines: torch.Tensor | None, sampled: Sequence[torch.Tensor]
) -> Scanned:
    return Scanned(
        pairs,
        part["self"],
        part["loss"],
        scores,
        cosines,
        torch.cat(list(sampled)) if sampled else None,
        None,
        1.0,
        None,
        None,
        None,
        torch.zeros(0),
    )
