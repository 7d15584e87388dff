"""What `influence.tracin` does, in the order it happens.

With theta_c the members of a series and eta_c their learning rates (Pruthi et al. 2020, TracInCP),

    score(q, n) = sum_c eta_c <grad f_q(theta_c), grad L_n(theta_c)>

is how much steps of gradient descent on row n, one at each member, would lower f_q. One member is in memory at a time beside the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import torch

from modelscope_app.api import BadInput, Checkpoint, JobContext, UsageError
from modelscope_influence import tracin_report
from modelscope_influence.baselines import Words
from modelscope_influence.members import TaskAtMember, check_members_are_alike, task_of_series, tensors_of, tokenizer_place
from modelscope_influence.objectives import LanguageTask, Task
from modelscope_influence.score_passes import Block, ScorePass, batched, query_gradients
from modelscope_influence.starting import flagged
from modelscope_influence.tracin_params import TracinParams
from modelscope_influence.tracin_report import Traced
from modelscope_influence.weights import Weight, chosen_weights, total_size

_QUERY_BYTES = 2 * 2**30
_HISTORY = "trainer_state.json"


def run(context: JobContext, params: TracinParams) -> None:
    """One pass over the training rows for each member and part of the queries."""
    along = context.series[0]
    flags = flagged(context, params.train, params.flag)
    rates, rates_from = learning_rates(along.checkpoints, along.steps, params.learning_rates)
    check_members_are_alike(context)
    tokenizer = tokenizer_place(context)
    train, queries = (task_of_series(context, path, params.batch_size, tokenizer) for path in (params.train, params.queries))
    by_member, loss = [], torch.empty(0)
    for member, rate in enumerate(rates):
        scores, loss = _products(context, params, member, tokenizer, train, queries)
        by_member.append(scores.mul_(rate))
    bm25 = None
    if isinstance(train, LanguageTask) and isinstance(queries, LanguageTask):
        words = (train.examples, queries.examples)
        bm25 = context.once("bm25", lambda: Words(*words).all_scores())
    names = [checkpoint.name for checkpoint in along.checkpoints]
    found = Traced(names, along.steps, rates, rates_from, torch.stack(by_member), loss, bm25)
    aside = int((~found.scores.isfinite()).any(0).sum())
    if aside:
        context.warn(f"{aside} training rows are set aside: at some member their loss or gradient is not finite")
    tracin_report.leave_behind(context, params, found, flags, train, tokenizer)


def learning_rates(members: Sequence[Checkpoint], steps: Sequence[int], given: Sequence[float]) -> tuple[list[float], str]:
    """One for each member, and where they come from: what is given, or what the members' histories record, or 1.

    Raises UsageError for another number of them than there are members, and where all are 0.
    """
    if given and not any(given):
        raise UsageError("--learning-rates: every one is 0, so that every score would be")
    if len(given) == 1:
        return list(given) * len(members), f"{given[0]:g} at every member, as given"
    if given:
        if len(given) != len(members):
            raise UsageError(
                f"--learning-rates gives {len(given)} numbers, and the series has {len(members)} members; give one, or each its own"
            )
        return list(given), "one by member, as given"
    recorded = [_recorded(member, step) for member, step in zip(members, steps, strict=True)]
    known = [rate for rate in recorded if rate is not None]
    if len(known) == len(members) and any(known) and all(map(math.isfinite, known)):
        return known, f"recorded in {_HISTORY} of the members"
    return [1.0] * len(members), "1 at every member: none is given, and not every member records one"


def _recorded(member: Checkpoint, step: int) -> float | None:
    """The rate that a trainer's history has at this step, or at the last one before it. Raises BadInput for a damaged history."""
    path = member.path / _HISTORY
    if not path.is_file():
        return None
    try:
        history = json.loads(path.read_text(encoding="utf-8")).get("log_history") or []
        rates = [(int(entry["step"]), float(entry["learning_rate"])) for entry in history if "learning_rate" in entry]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: its log_history cannot be read ({type(error).__name__}); give --learning-rates") from None
    before = [rate for at, rate in sorted(rates, key=lambda entry: entry[0]) if at <= step]  # of several at a step, the last
    return before[-1] if before else None


def _products(
    context: JobContext, params: TracinParams, member: int, tokenizer: int, train: Task, queries: Task
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products of gradients (query, example) at a member, and losses (example,)."""
    train, queries, weights = _at_member(context, params, member, tokenizer, train, queries)
    plain: Mapping[str, Block] = {weight.name: Block(None, None) for weight in weights}
    at_once = max(1, _QUERY_BYTES // (4 * max(total_size(weights), 1)))
    parts, loss = [], torch.empty(0)
    for at, ids in enumerate(batched(queries.ids, at_once)):
        asked = query_gradients(queries, weights, params.measure, ids, plain, keeps_plain=False)
        reading = ScorePass(train, weights, asked, plain, by_weight=False, cosines=False)
        found = context.fold(f"step-{context.series[0].steps[member]}-{at}", reading, train.source())
        parts.append(found["scores"])
        loss = found["loss"]
    return torch.cat(parts), loss


def _at_member(
    context: JobContext, params: TracinParams, member: int, tokenizer: int, train: Task, queries: Task
) -> tuple[Task, Task, Sequence[Weight]]:
    """The rows and the weights there."""
    model = context.model()
    tensors = tensors_of(context.checkpoints[member], model.module) if member else {}
    if tensors is None:
        context.log(f"step {context.series[0].steps[member]} is built as a model of its own: its tensors have other names than parameters")
        train, queries = (task_of_series(context, path, params.batch_size, tokenizer, member) for path in (params.train, params.queries))
        model = context.model(member)
    elif tensors:
        train, queries = (TaskAtMember(task, model.module, tensors) for task in (train, queries))
    return train, queries, chosen_weights(model, params.modules)
