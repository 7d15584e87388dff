"""What `influence.scores` does, in the order it happens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modelscope_app.api import BadInput, JobContext
from modelscope_influence import score_report
from modelscope_influence.baselines import bm25
from modelscope_influence.fitting import Fitted
from modelscope_influence.objectives import LanguageTask, Task
from modelscope_influence.params import ScoresParams
from modelscope_influence.score_passes import PositionPass, ScorePass, batched, preconditioned, query_gradients
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
    found = _scored(context, params, begun, queries, fitted)
    if params.baselines and isinstance(begun.task, LanguageTask) and isinstance(queries, LanguageTask):
        train_tokens = [example.input_ids for example in begun.task.examples]
        query_tokens = [example.input_ids for example in queries.examples]
        found = found._replace(bm25=context.once("bm25", lambda: bm25(train_tokens, query_tokens)))
    kept = score_report.kept_pairs(found.scores, params.top_k)
    tokens = _by_token(context, params, begun, queries, fitted, kept) if params.per_token else None
    texts = _texts(context, begun.task, queries)
    score_report.leave_behind(context, params, found, kept, tokens, flags, texts, [weight.name for weight in begun.weights])


def _scored(context: JobContext, params: ScoresParams, begun: Started, queries: Task, fitted: Fitted) -> Found:
    parts = []
    for at, ids in enumerate(_parts(params, begun, queries)):
        raw = query_gradients(queries, begun.weights, params.measure, ids)
        ready = preconditioned(raw, fitted.curvatures, params.damping)
        both = raw if params.baselines else None
        reading = ScorePass(begun.task, begun.weights, ready, fitted.curvatures, params.damping, params.per_module, both)
        parts.append((raw, context.fold(f"scores-{at}", reading, begun.task.source())))
    rows = parts[0][1]
    by_module = torch.cat([part["scores"] for _, part in parts], dim=1) if params.per_module else None
    scores = by_module.sum(0) if by_module is not None else torch.cat([part["scores"] for _, part in parts])
    cosine = torch.cat([part["cosines"] for _, part in parts]) if params.baselines else None
    return Found(scores, by_module, rows["self"], rows["loss"], cosine, None, torch.cat([raw.values for raw, _ in parts]))


def _parts(params: ScoresParams, begun: Started, queries: Task) -> list[Sequence[int]]:
    each = total_size(begun.weights) * 4 * (2 if params.baselines else 1)
    at_once = params.queries_at_once or max(1, _QUERY_BYTES // max(each, 1))
    return list(batched(queries.ids, at_once))


def _by_token(
    context: JobContext, params: ScoresParams, begun: Started, queries: Task, fitted: Fitted, kept: Sequence[Sequence[int]]
) -> list[tuple[int, int, list[float]]]:
    """(query, example, score of each position) of the pairs that are kept."""
    pairs = sum(sum(begun.task.positions(example) for example in examples) for examples in kept)
    if pairs > _MOST_TOKEN_ROWS:
        raise BadInput(f"--per-token would write {pairs:,} rows; give --top-k, so that it is at most {_MOST_TOKEN_ROWS:,}")
    scored = []
    for query, examples in enumerate(kept):
        ready = preconditioned(query_gradients(queries, begun.weights, params.measure, [query]), fitted.curvatures, params.damping)
        ids = sorted(examples)
        longest = max(map(begun.task.positions, ids), default=1)
        reading = PositionPass(begun.task, begun.weights, ready, longest, ids)
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
