"""What `influence.validate` does, in the order it happens: scores, then what they are held against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from modelscope_app.api import BadInput, JobContext, Source
from modelscope_influence import validate_report
from modelscope_influence.baselines import Words
from modelscope_influence.ekfac import Curvature
from modelscope_influence.fitting import Fitted, fit
from modelscope_influence.objectives import ClassifierTask, LanguageTask, Scored, Task
from modelscope_influence.removals import Solver, datamodeling_scores, responses, retrained, solved_exactly, solver_of
from modelscope_influence.score_passes import ScorePass, batched, blocks, query_gradients
from modelscope_influence.starting import Started, curvature_of, started, task_of
from modelscope_influence.validate_params import ValidateParams
from modelscope_influence.validate_report import Compared, Solving
from modelscope_influence.weights import total_size

_QUERY_BYTES = 2 * 2**30
_SWEPT = (0.1, 10.0)
_EPSILONS = (10, 100)


class _Scores(NamedTuple):
    """(query, row) each."""

    scores: torch.Tensor
    cosine: torch.Tensor
    dot: torch.Tensor


def run(context: JobContext, params: ValidateParams) -> None:
    """Score, choose rows, solve for their removal, and compare."""
    begun = started(context, params)
    queries = task_of(context, params.queries, params.batch_size)
    _check_recipe(params, begun)
    fitted = curvature_of(context, begun, params.train, params.factors)
    scored = _scored(context, params, begun, queries, fitted.curvatures, params.damping, "scores")
    removed, by_score = _chosen(context, params, scored.scores)
    solver = solver_of(context, params, begun, queries, fitted)
    solved = responses(context, solver, fitted, removed, params.damping, 1, "responses")
    count = len(begun.task.ids)
    changes = {
        "pbrf": solved["changes"],
        "curvature": scored.scores.T[removed] / count,
        "gradient_dot": scored.dot.T[removed] / count,
    }
    exact = solved_exactly(context, params, begun, solver, fitted, removed)
    if exact is not None:
        changes["exact"] = exact["changes"]
    changes |= retrained(context, params, begun, solver, fitted, removed)
    rankings = _rankings(context, params, begun, queries, scored)
    found = Compared(
        removed=removed,
        by_score=by_score,
        solving=Solving(solved["steps"], solved["first_norm"], solved["last_norm"], solved["has_converged"]),
        changes=changes,
        rankings={name: values.T[removed] for name, values in rankings.items()},
        stability=_stability(context, params, begun, queries, solver, fitted, scored.scores, removed, changes["pbrf"]),
        epsilons=_epsilons(context, params, solver, fitted, removed, changes),
        lds=datamodeling_scores(context, params, begun, solver, {"curvature": scored.scores, **rankings}),
        exact_residual=None if exact is None else float(exact["residual"].max()),
        rows=count,
        aside=len(fitted.aside),
    )
    lost = int(solved["last_norm"].isinf().sum())
    unsolved = len(removed) - int(solved["has_converged"].sum()) - lost
    if unsolved:
        context.warn(f"{unsolved} of {len(removed)} removals were not solved to --tolerance {params.tolerance:g}; raise --max-steps")
    if lost:
        context.warn(f"{lost} of {len(removed)} removals have no solution near the checkpoint, and are not compared; raise --damping")
    validate_report.leave_behind(context, params, found)


def _check_recipe(params: ValidateParams, begun: Started) -> None:
    if params.weight_decay is not None and not isinstance(begun.task, ClassifierTask):
        raise BadInput("--weight-decay, --epochs and --learning-rate train an mlp anew, and this checkpoint is none; leave them out")


def _scored(
    context: JobContext,
    params: ValidateParams,
    begun: Started,
    queries: Task,
    curvatures: Mapping[str, Curvature],
    damping: float,
    stage: str,
) -> _Scores:
    divided_by = blocks(curvatures, damping, context.model())
    at_once = max(1, _QUERY_BYTES // (8 * max(total_size(begun.weights), 1)))
    parts = []
    for at, ids in enumerate(batched(queries.ids, at_once)):
        asked = query_gradients(queries, begun.weights, params.measure, ids, divided_by)
        reading = ScorePass(begun.task, begun.weights, asked, divided_by, by_weight=False, cosines=True)
        found = context.fold(f"{stage}-{at}", reading, begun.task.source())
        lengths = asked.squared_norms.cpu()[:, None] * found["squared_norm"]
        dot = torch.nan_to_num(found["cosines"]) * lengths.sqrt()
        parts.append(_Scores(found["scores"], found["cosines"], dot))
    return _Scores(*(torch.cat(one) for one in zip(*parts, strict=True)))


def _chosen(context: JobContext, params: ValidateParams, scores: torch.Tensor) -> tuple[list[int], list[bool]]:
    """Rows to be removed: half of them those of the highest mean |score| over the queries, the others drawn from the rest."""
    size = scores.abs().mean(0)
    known = size.isfinite().nonzero()[:, 0]
    if len(known) < 4:
        raise BadInput(f"{params.train}: {len(known)} rows have scores, and at least 4 are needed to compare anything")
    count = min(params.removals, len(known))
    order = known[size[known].argsort(descending=True, stable=True)].tolist()
    highest, rest = order[: count // 2], sorted(order[count // 2 :])
    drawn = torch.randperm(len(rest), generator=context.generator("removals", "rows"))[: count - len(highest)]
    return highest + [rest[at] for at in sorted(drawn.tolist())], [True] * len(highest) + [False] * (count - len(highest))


def _rankings(context: JobContext, params: ValidateParams, begun: Started, queries: Task, scored: _Scores) -> dict[str, torch.Tensor]:
    """(query, row) of what has no scale, signed as a change of the measure when the row is removed."""
    found = {"gradient_cosine": scored.cosine}
    if isinstance(begun.task, LanguageTask) and isinstance(queries, LanguageTask):
        words = Words(begun.task.examples, queries.examples)
        sign = 1 if params.measure == "loss" else -1
        found["bm25"] = sign * words.all_scores()
    return found


class _Part:
    """A task of which only some rows are read."""

    def __init__(self, task: Task, ids: Sequence[int]) -> None:
        self._task, self._ids = task, ids
        self.ids = task.ids

    def source(self, ids: Sequence[int] | None = None) -> Source[Any]:
        return self._task.source(self._ids if ids is None else ids)

    def forward(self, batch: Any) -> Scored:
        return self._task.forward(batch)

    def positions(self, id: int) -> int:
        return self._task.positions(id)


def _stability(
    context: JobContext,
    params: ValidateParams,
    begun: Started,
    queries: Task,
    solver: Solver,
    fitted: Fitted,
    scores: torch.Tensor,
    removed: Sequence[int],
    pbrf: torch.Tensor,
) -> list[dict[str, Any]]:
    """One row per variation of how scores are made, against the scores as they are."""
    count = len(begun.task.ids)
    rows = []

    def compared(what: str, variation: str, one: torch.Tensor, other: torch.Tensor, measured: torch.Tensor | None) -> None:
        row = {"what": what, "variation": variation, "r": math.nan, "slope": math.nan}
        row |= {"spearman": validate_report.rank_correlation(one, other), "top_20": validate_report.top_overlap(one, other)}
        if measured is not None:
            found = validate_report.median_agreement(other.T[removed] / count, measured)
            row |= {"r": found.r, "slope": found.slope}
        rows.append(row)

    for factor in _SWEPT if params.damping_sweep else ():
        name, fraction = f"damping-{factor:g}", params.damping * factor
        other = _scored(context, params, begun, queries, fitted.curvatures, fraction, f"scores-{name}").scores
        measured_there = None
        if params.sweep_responses:
            measured_there = responses(context, solver, fitted, removed, fraction, 1, f"responses-{name}")["changes"]
        compared("damping", f"{fraction:g} ({factor:g} times)", scores, other, measured_there)
    seeds = params.label_seeds if params.fisher == "true" else 0
    for seed in range(seeds):
        other = _scored_again(context, params, begun, queries, begun.task, f"labels-{seed}")
        compared("labels", f"drawn again, {seed + 1}", scores, other, pbrf)
    if params.halves and count >= 2:
        order = torch.randperm(count, generator=context.generator("halves", "rows")).tolist()
        halves = [
            _scored_again(context, params, begun, queries, _Part(begun.task, sorted(part)), f"half-{at}")
            for at, part in enumerate((order[: count // 2], order[count // 2 :]))
        ]
        for at, other in enumerate(halves):
            compared("half of the rows", f"half {at + 1}", scores, other, pbrf)
        compared("halves", "one half against the other", halves[0], halves[1], None)
    return rows


def _scored_again(context: JobContext, params: ValidateParams, begun: Started, queries: Task, task: Task, name: str) -> torch.Tensor:
    """(query, row): scores with curvature that was fitted once more."""
    fitted = fit(context, task, begun.weights, begun.settings, params.train, variant=name)
    return _scored(context, params, begun, queries, fitted.curvatures, params.damping, f"scores-{name}").scores


def _epsilons(
    context: JobContext,
    params: ValidateParams,
    solver: Solver,
    fitted: Fitted,
    removed: Sequence[int],
    changes: Mapping[str, torch.Tensor],
) -> list[dict[str, Any]]:
    """Agreement with the PBRF when only a part of each row's weight is removed, its changes scaled up to a whole row."""
    if not params.epsilon_sweep:
        return []
    rows = []
    for divisor in (1, *_EPSILONS):
        measured = changes["pbrf"]
        if divisor > 1:
            stage = f"responses-epsilon-{divisor}"
            measured = responses(context, solver, fitted, removed, params.damping, divisor, stage)["changes"]
        for method in ("curvature", "exact"):
            if method in changes:
                found = validate_report.median_agreement(changes[method], measured)
                name = params.curvature if method == "curvature" else method
                rows.append({"method": name, "epsilon": -1 / len(solver.rows.task.ids) / divisor, **found._asdict()})
    return rows
