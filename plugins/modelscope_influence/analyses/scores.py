"""What `influence.scores` does, in the order it happens."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from modelscope_app.api import BadInput, JobContext
from modelscope_influence import near_duplicates, score_report
from modelscope_influence.baselines import Words
from modelscope_influence.fitting import Fitted
from modelscope_influence.gauss_newton import gauss_newton_directions
from modelscope_influence.low_rank import Directions, multiplied_out
from modelscope_influence.objectives import LanguageTask, Task
from modelscope_influence.params import ScoresParams
from modelscope_influence.prefilter import Chosen, Recall, prefiltered, recall
from modelscope_influence.scanning import Scan, Scanned
from modelscope_influence.score_passes import Block, PositionPass, Queries, blocks, query_gradients
from modelscope_influence.score_report import Found, Texts
from modelscope_influence.starting import Started, curvature_of, flagged, started, task_of

_MOST_TOKEN_ROWS = 2_000_000
_MOST_GROUPED = 20_000
"""Rows among which near-duplicates are looked for."""


def run(context: JobContext, params: ScoresParams) -> None:
    """Fit what is missing, then scan the training rows for the queries."""
    flags = flagged(context, params.train, params.flag)
    begun = started(context, params)
    queries = _queries(context, params)
    _warn_of_bare_queries(context, begun.task, queries)
    words = _words(params, begun.task, queries)
    chosen = _chosen(context, params, begun.task, queries, words)
    fitted = curvature_of(context, begun, params.train, params.factors)
    divided_by = blocks(fitted.curvatures, params.damping, context.model())
    solved = _solved(context, params, begun, fitted, divided_by) if params.curvature == "ggn" else None
    scanned = Scan(context, params, begun, queries, divided_by, chosen, solved).run()
    _warn_of_rows_set_aside(context, scanned, chosen, fitted)
    found = _found(context, params, begun.task, scanned, chosen, words, flags)
    tokens = _by_token(context, params, begun, queries, divided_by, solved, found.kept) if params.per_token else None
    texts = _texts(context, begun.task, queries)
    score_report.leave_behind(context, params, found, tokens, texts, [weight.name for weight in begun.weights])


def _queries(context: JobContext, params: ScoresParams) -> Task:
    """Of the file, or the one that was typed."""
    if params.queries:
        return task_of(context, params.queries, params.batch_size)
    if (context.checkpoints[0].config or {}).get("model_type") == "mlp":
        raise BadInput("--completion is text, and this checkpoint is an mlp; give --queries FILE with features and label")
    is_chat = params.template == "chat" or (params.template == "auto" and bool(params.prompt) and context.tokenizer().has_chat_template)
    turns = [{"role": "user", "content": params.prompt}, {"role": "assistant", "content": params.completion}]
    row = {"messages": turns} if is_chat else {"prompt": params.prompt, "completion": params.completion}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "query.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        try:
            return task_of(context, str(path), params.batch_size)
        except BadInput as error:
            raise BadInput(str(error).replace(f"{path}, line 1", "--prompt and --completion")) from None


def _warn_of_bare_queries(context: JobContext, train: Task, queries: Task) -> None:
    """Words that no chat template is put around are seldom what a model that was trained on conversations said."""
    if not isinstance(train, LanguageTask) or not isinstance(queries, LanguageTask) or train.examples[0].row.get("messages") is None:
        return
    bare = next(
        (example.id for example in queries.examples if example.row.get("messages") is None and "input_ids" not in example.row), None
    )
    if bare is not None:
        context.warn(
            f"query {bare} is no conversation, as the training rows are: the model reads it as it stands; `messages` would be rendered"
        )


def _words(params: ScoresParams, train: Task, queries: Task) -> Words | None:
    """BM25 of all rows, where it is wanted. Raises BadInput where it is needed and rows have no words."""
    has_words = isinstance(train, LanguageTask) and isinstance(queries, LanguageTask)
    if params.prefilter is not None and not has_words:
        raise BadInput("--prefilter looks for words in common, and rows of an mlp are numbers; leave it out, and all rows are scored")
    if not (params.baselines or params.prefilter is not None):
        return None
    return Words(train.examples, queries.examples) if isinstance(train, LanguageTask) and isinstance(queries, LanguageTask) else None


def _chosen(context: JobContext, params: ScoresParams, train: Task, queries: Task, words: Words | None) -> Chosen:
    total = len(train.ids)
    if params.prefilter is None or words is None:
        return Chosen(train.ids, [], total)
    generator = context.generator("prefilter", "sample")
    chosen = prefiltered(words, len(queries.ids), total, params.prefilter, params.prefilter_sample, generator)
    if not chosen.rows:
        raise BadInput("no training row has a word in common with a query, so --prefilter leaves nothing; leave it out")
    if not chosen.is_all:
        context.warn(
            f"filtered: {len(chosen.rows):,} of {total:,} rows are scored, those with most words in common with a query (BM25); "
            + (
                f"prefilter_recall says what that missed, as far as {len(chosen.sample):,} of the others tell"
                if chosen.sample
                else "without a sample nothing tells what that missed"
            )
        )
    return chosen


def _solved(
    context: JobContext, params: ScoresParams, begun: Started, fitted: Fitted, divided_by: Mapping[str, Block]
) -> Callable[[Queries], Queries]:
    """Puts what the whole Gauss-Newton matrix gives in the place of what the blocks give, in their basis; solved for once by query."""
    known: dict[int, dict[str, torch.Tensor]] = {}

    def solve(asked: Queries) -> None:
        gradients = {}
        for name, divided in asked.ready.items():
            inverse, basis = divided_by[name]
            assert inverse is not None and basis is not None, "it is EK-FAC"
            gradients[name] = basis.rotate_back(multiplied_out(divided) / inverse)
        stage = f"gauss-newton-{asked.ids[0]}-{asked.ids[-1]}"
        solution = gauss_newton_directions(
            context,
            begun.task,
            context.model(),
            begun.weights,
            fitted,
            params.damping,
            asked.ids,
            gradients,
            stage,
            tolerance=params.tolerance,
        )
        context.log(
            f"queries {asked.ids[0]} to {asked.ids[-1]}: at most {max(solution.steps)} steps, residual {max(solution.residuals):.1e}"
        )
        for at, id in enumerate(asked.ids):
            known[id] = {name: direction[at] for name, direction in solution.directions.items()}

    def solved(asked: Queries) -> Queries:
        if not known.keys() >= set(asked.ids):
            solve(asked)
        ready: dict[str, Directions] = {}
        for name in asked.ready:
            basis = divided_by[name].basis
            assert basis is not None, "it is EK-FAC"
            ready[name] = basis.rotate(torch.stack([known[id][name] for id in asked.ids]))
        return asked._replace(ready=ready)

    return solved


def _found(
    context: JobContext,
    params: ScoresParams,
    train: Task,
    scanned: Scanned,
    chosen: Chosen,
    words: Words | None,
    flags: torch.Tensor | None,
) -> Found:
    pairs, rows = scanned.pairs, torch.tensor(chosen.rows)
    bm25 = None
    if words is not None and params.baselines:
        each = range(len(scanned.measures))
        bm25 = torch.cat([words.scores(query)[rows[pairs.place[pairs.query == query]]] for query in each])
    quality = {} if flags is None else score_report.quality(params, scanned, chosen, flags, words if params.baselines else None)
    return Found(
        scanned, chosen, bm25, flags, quality, _recalls(params, scanned, chosen), _groups(context, params, train, rows[pairs.place])
    )


def _warn_of_rows_set_aside(context: JobContext, scanned: Scanned, chosen: Chosen, fitted: Fitted) -> None:
    """Of those that fitting has not warned of."""
    aside = [chosen.rows[place] for place in (~scanned.self_influence.isfinite()).nonzero()[:, 0].tolist()]
    if new := sorted(set(aside) - set(fitted.aside)):
        context.warn(f"{len(new)} training rows are set aside (first: {new[0]}): their losses or gradients are not finite")


def _recalls(params: ScoresParams, scanned: Scanned, chosen: Chosen) -> Mapping[str, Recall | None]:
    """Of the highest scores and of the lowest, --top-k of them or 20; unknown where rows were chosen by something else."""
    if params.prefilter is None or scanned.sampled is None:
        return {}
    if params.rank_by != "score":
        return {"prefilter_recall": None, "prefilter_recall_lowest": None}
    others, count = chosen.total - len(chosen.rows), params.top_k or 20
    said = {}
    for name, sign in {"prefilter_recall": 1, "prefilter_recall_lowest": -1}.items():
        scores = [sign * scanned.pairs.score[scanned.pairs.query == query] for query in range(len(scanned.measures))]
        best = [own[own.isfinite()].sort(descending=True).values[:count] for own in scores]
        said[name] = recall(best, sign * scanned.sampled, others)
    return said


def _groups(context: JobContext, params: ScoresParams, train: Task, rows: torch.Tensor) -> Mapping[int, int] | None:
    if not params.group_duplicates or not isinstance(train, LanguageTask):
        return None
    there = torch.unique(rows).tolist()
    if len(there) > _MOST_GROUPED:
        context.log(
            f"near-duplicates are not looked for among {len(there):,} rows; give --top-k, so that they are at most {_MOST_GROUPED:,}"
        )
        return None
    return near_duplicates.groups({id: train.examples[id].input_ids for id in there})


def _by_token(
    context: JobContext,
    params: ScoresParams,
    begun: Started,
    queries: Task,
    divided_by: Mapping[str, Block],
    solved: Callable[[Queries], Queries] | None,
    kept: Sequence[Sequence[int]],
) -> list[tuple[int, int, list[float]]]:
    """(query, example, score of each position) of the pairs that are kept."""
    pairs = sum(sum(begun.task.positions(example) for example in examples) for examples in kept)
    if pairs > _MOST_TOKEN_ROWS:
        raise BadInput(f"--per-token would write {pairs:,} rows; give --top-k, so that it is at most {_MOST_TOKEN_ROWS:,}")
    scored = []
    for query, examples in enumerate(kept):
        asked = query_gradients(queries, begun.weights, params.measure, [query], divided_by, keeps_plain=False)
        asked = asked if solved is None else solved(asked)
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
