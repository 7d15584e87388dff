"""What `influence.scores` does, in the order it happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from modelscope_app.api import BadInput, JobContext
from modelscope_influence import score_report
from modelscope_influence.baselines import bm25
from modelscope_influence.objectives import LanguageTask, Task
from modelscope_influence.params import ScoresParams
from modelscope_influence.score_passes import Block, PositionPass, ScorePass, batched, blocks, query_gradients
from modelscope_influence.score_report import Found, Texts
from modelscope_influence.starting import Started, curvature_of, flagged, started, task_of
from modelscope_influence.weights import total_size

_QUERY_BYTES = 2 * 2**30
_MOST_TOKEN_ROWS = 2_000_000


def run(context: JobContext, params: ScoresParams) -> None:
    """Fit what is missing, then one pass over the training rows for each part of the queries."""
    flags = flagged(context, params.train, params.flag)
    begun = started(context, params)
    queries = task_of(context, params.queries, params.batch_size)
    fitted = curvature_of(context, begun, params.train, params.factors)
    divided_by = blocks(fitted.curvatures, params.damping, context.model())
    found = _scored(context, params, begun, queries, divided_by)
    if params.baselines and isinstance(begun.task, LanguageTask) and isinstance(queries, LanguageTask):
        train_tokens = [example.input_ids for example in begun.task.examples]
        query_tokens = [example.input_ids for example in queries.examples]
        found = found._replace(bm25=context.once("bm25", lambda: bm25(train_tokens, query_tokens)))
    kept = score_report.kept_pairs(found.scores, params.top_k)
    tokens = _by_token(context, params, begun, queries, divided_by, kept) if params.per_token else None
    texts = _texts(context, begun.task, queries)
    score_report.leave_behind(context, params, found, kept, tokens, flags, texts, [weight.name for weight in begun.weights])


def _scored(context: JobContext, params: ScoresParams, begun: Started, queries: Task, divided_by: Mapping[str, Block]) -> Found:
    parts, values = [], []
    for at, ids in enumerate(_parts(params, begun, queries)):
        asked = query_gradients(queries, begun.weights, params.measure, ids, divided_by)
        reading = ScorePass(begun.task, begun.weights, asked, divided_by, params.per_module, params.baselines)
        parts.append(context.fold(f"scores-{at}", reading, begun.task.source()))
        values.append(asked.values)
    by_module = torch.cat([part["scores"] for part in parts], dim=1) if params.per_module else None
    scores = by_module.sum(0) if by_module is not None else torch.cat([part["scores"] for part in parts])
    cosine = torch.cat([part["cosines"] for part in parts]) if params.baselines else None
    return Found(scores, by_module, parts[0]["self"], parts[0]["loss"], cosine, None, torch.cat(values))


def _parts(params: ScoresParams, begun: Started, queries: Task) -> list[Sequence[int]]:
    each = total_size(begun.weights) * 4 * (2 if params.baselines else 1)
    at_once = params.queries_at_once or max(1, _QUERY_BYTES // max(each, 1))
    return list(batched(queries.ids, at_once))


def _by_token(
    context: JobContext, params: ScoresParams, begun: Started, queries: Task, divided_by: Mapping[str, Block], kept: Sequence[Sequence[int]]
) -> list[tuple[int, int, list[float]]]:
    """(query, example, score of each position) of the pairs that are kept."""
    pairs = sum(sum(begun.task.positions(example) for example in examples) for examples in kept)
    if pairs > _MOST_TOKEN_ROWS:
        raise BadInput(f"--per-token would write {pairs:,} rows; give --top-k, so that it is at most {_MOST_TOKEN_ROWS:,}")
    scored = []
    for query, examples in enumerate(kept):
        asked = query_gradients(queries, begun.weights, params.measure, [query], divided_by)
        ids = sorted(examples)
        longest = max(map(begun.task.positions, ids), default=1)
        reading = PositionPass(begun.task, begun.weights, asked, divided_by, longest, ids)
        found = context.fold(f"tokens-{query}", reading, begun.task.source(ids))
        for at, example in enumerate(ids):
            scored.append((query, example, found["positions"][0, : begun.task.positions(example), at].tolist()))
    return scored


def _texts(context: JobContext, train: Task, queries: Task) -> Texts | None:
    if not (isinstance(train, LanguageTask) and isinstance(queries, LanguageTask)):
        return None
    try:
        tokenizer = context.tokenizer()
    except BadInput:
        return None
    return Texts(tokenizer, train.examples, queries.examples)
