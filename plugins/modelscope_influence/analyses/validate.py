"""What `influence.validate` does, in the order it happens: scores, then what they are held against.

Each removal is a step of a fold, so that a killed run goes on with the removal it was at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch.func import jvp

from modelscope_app.api import BadInput, JobContext, Source
from modelscope_influence import validate_report
from modelscope_influence.baselines import bm25
from modelscope_influence.ekfac import Curvature
from modelscope_influence.fitting import Fitted, fit
from modelscope_influence.objectives import ClassifierTask, LanguageTask, Measure, Scored, Task, measured
from modelscope_influence.proximal import (
    Coordinates,
    Matrices,
    Replaced,
    Rows,
    ValueAndGradient,
    exact_preconditioned,
    measures,
    minimised,
    proximal_objective,
    trained_anew,
    training_objective,
    untrained,
)
from modelscope_influence.score_passes import ScorePass, batched, blocks, query_gradients
from modelscope_influence.starting import Started, curvature_of, started, task_of
from modelscope_influence.validate_estimate import MOST_DOUBLE
from modelscope_influence.validate_params import ValidateParams
from modelscope_influence.validate_report import Compared, Solving
from modelscope_influence.weights import total_size

MOST_EXACT = 20_000
"""Parameters up to which the whole Gauss-Newton matrix is solved with."""
_EXACT_STEPS, _EXACT_TOLERANCE = 5000, 1e-6
_QUERY_BYTES = 2 * 2**30
_SWEPT = (0.1, 10.0)
_EPSILONS = (10, 100)
State = dict[str, torch.Tensor]


class _Solver(NamedTuple):
    """What every removal is solved with."""

    replaced: Replaced
    rows: Rows
    queries: Task
    measure: Measure
    most_steps: int
    tolerance: float

    def measures(self, change: Matrices) -> torch.Tensor:
        """(query,) with changed weights."""
        return measures(self.replaced, self.queries, self.measure, change)


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
    solver = _solver(context, params, begun, queries, fitted)
    solved = _responses(context, solver, fitted, removed, params.damping, 1, "responses")
    count = len(begun.task.ids)
    changes = {
        "pbrf": solved["changes"],
        "curvature": scored.scores.T[removed] / count,
        "gradient_dot": scored.dot.T[removed] / count,
    }
    exact = _exact(context, params, begun, solver, fitted, removed)
    if exact is not None:
        changes["exact"] = exact["changes"]
    changes |= _retrained(context, params, begun, solver, fitted, removed)
    rankings = _rankings(context, params, begun, queries, scored)
    found = Compared(
        removed=removed,
        by_score=by_score,
        solving=Solving(solved["steps"], solved["first_norm"], solved["last_norm"], solved["has_converged"]),
        changes=changes,
        rankings={name: values.T[removed] for name, values in rankings.items()},
        stability=_stability(context, params, begun, queries, solver, fitted, scored.scores, removed, changes["pbrf"]),
        epsilons=_epsilons(context, params, solver, fitted, removed, changes),
        lds=_lds(context, params, begun, solver, {"curvature": scored.scores, **rankings}),
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


def _solver(context: JobContext, params: ValidateParams, begun: Started, queries: Task, fitted: Fitted) -> _Solver:
    replaced = Replaced(context.model(), begun.weights, _dtype(context))
    is_kept = torch.ones(len(begun.task.ids), dtype=torch.bool)
    is_kept[list(fitted.aside)] = False
    rows = Rows(replaced, begun.task, is_kept, context.check_cancelled)
    return _Solver(replaced, rows, queries, params.measure, params.max_steps, params.tolerance)


def _dtype(context: JobContext) -> torch.dtype:
    """Float64 where the model is small enough to be held in it once more and the device has it."""
    parameters = list(context.model().module.parameters())
    if parameters[0].dtype == torch.float64:
        return torch.float64
    is_small = sum(parameter.numel() for parameter in parameters) <= MOST_DOUBLE
    return torch.float64 if is_small and context.device.type != "mps" else torch.float32


class _RemovalPass:
    """Changes of the queries' measures by removal, one removal a step."""

    def __init__(self, solver: _Solver, removed: Sequence[int], solve: Callable[[int], tuple[Matrices, Mapping[str, float]]]) -> None:
        """`solve` gives the change of the weights when a row is removed, and numbers about how it was found."""
        self._solver, self._removed, self._solve = solver, removed, solve
        self._before: torch.Tensor | None = None

    numbers: Sequence[str] = ("steps", "first_norm", "last_norm", "has_converged")

    def start(self) -> State:
        shape = (len(self._removed), len(self._solver.queries.ids))
        state = {"changes": torch.full(shape, math.nan, dtype=torch.float64), "is_done": torch.zeros(shape[0], dtype=torch.bool)}
        return {**state, **{name: torch.zeros(shape[0], dtype=torch.float64) for name in self.numbers}}

    def step(self, state: State, batch: Sequence[int]) -> State:
        for at in batch:
            change, numbers = self._solve(self._removed[at])
            if numbers.get("last_norm") != math.inf:  # unknown where the weights left the neighbourhood of the checkpoint
                state["changes"][at] = self._measured(change)
            for name, value in numbers.items():
                state[name][at] = value
            state["is_done"][at] = True
        return state

    def merge(self, a: State, b: State) -> State:
        """Each removal from the state that has it."""
        is_done = b["is_done"]
        return {
            name: values | is_done if name == "is_done" else torch.where(is_done if values.ndim == 1 else is_done[:, None], b[name], values)
            for name, values in a.items()
        }

    def finish(self, state: State) -> State:
        """By name, removals first."""
        if "has_converged" in state:
            state["has_converged"] = state["has_converged"] > 0
        return state

    def _measured(self, change: Matrices) -> torch.Tensor:
        if self._before is None:
            self._before = self._solver.measures(self._solver.replaced.unmoved())
        return self._solver.measures(change) - self._before


class _ExactPass(_RemovalPass):
    """The same to first order, with the whole Gauss-Newton matrix: no step is taken, the measures are differentiated along it."""

    numbers = ("steps", "residual")

    def _measured(self, change: Matrices) -> torch.Tensor:
        replaced, queries = self._solver.replaced, self._solver.queries
        source = queries.source()
        found = torch.full((len(queries.ids),), math.nan, dtype=torch.float64)
        for batch in source.plan:
            loaded = source.load(batch)

            def measure(matrices: Matrices, loaded: Any = loaded) -> torch.Tensor:
                return measured(replaced.call(matrices, lambda: queries.forward(loaded)), self._solver.measure)

            found[torch.tensor(list(batch))] = jvp(measure, (replaced.start,), (change,))[1].double().cpu()
        return found


def _solved_by(
    solver: _Solver, coordinates: Coordinates, objective: Callable[[int], ValueAndGradient]
) -> Callable[[int], tuple[Matrices, Mapping[str, float]]]:
    def solve(removed: int) -> tuple[Matrices, Mapping[str, float]]:
        found = minimised(objective(removed), coordinates, solver.replaced.unmoved(), solver.most_steps, solver.tolerance)
        return found.change, {name: float(getattr(found, name)) for name in _RemovalPass.numbers}

    return solve


def _removals(context: JobContext, stage: str, reading: _RemovalPass, count: int) -> State:
    return context.fold(stage, reading, context.items(range(count), 1, "removals"))


def _dampings(fitted: Fitted, fraction: float) -> dict[str, float]:
    return {name: fraction * curvature.mean_eigenvalue for name, curvature in fitted.curvatures.items()}


def _responses(
    context: JobContext,
    solver: _Solver,
    fitted: Fitted,
    removed: Sequence[int],
    fraction: float,
    divisor: int,
    stage: str,
) -> State:
    """The PBRF of every removal; with a divisor, of a part of each row's weight, its changes scaled up to the whole."""
    epsilon, dampings = -1 / len(solver.rows.task.ids) / divisor, _dampings(fitted, fraction)
    coordinates = Coordinates(fitted.curvatures, fraction, solver.replaced.start)
    solve = _solved_by(solver, coordinates, lambda row: proximal_objective(solver.rows, dampings, row, epsilon))
    found = _removals(context, stage, _RemovalPass(solver, removed, solve), len(removed))
    return {**found, "changes": found["changes"] * divisor}


def _exact(
    context: JobContext, params: ValidateParams, begun: Started, solver: _Solver, fitted: Fitted, removed: Sequence[int]
) -> State | None:
    size = total_size(begun.weights)
    if not params.exact or not isinstance(begun.task, ClassifierTask) or size > MOST_EXACT:
        if params.exact:
            context.log(f"no exact solve: it is for mlp checkpoints of up to {MOST_EXACT:,} parameters, and these are {size:,}")
        return None
    coordinates, dampings = Coordinates(fitted.curvatures, params.damping, solver.replaced.start), _dampings(fitted, params.damping)

    def solve(row: int) -> tuple[Matrices, Mapping[str, float]]:
        gradient = _row_gradient(solver, row)
        found, solved = exact_preconditioned(solver.rows, coordinates, dampings, gradient, _EXACT_STEPS, _EXACT_TOLERANCE)
        change = {name: matrix / len(begun.task.ids) for name, matrix in found.items()}
        return change, {"steps": solved.steps, "residual": solved.residual}

    return _removals(context, "exact", _ExactPass(solver, removed, solve), len(removed))


def _row_gradient(solver: _Solver, row: int) -> Matrices:
    def its_loss(scored: Scored, before: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return scored.losses()[ids == row].sum()

    return solver.rows.value_and_gradient(solver.replaced.unmoved(), its_loss)[1]


def _rankings(context: JobContext, params: ValidateParams, begun: Started, queries: Task, scored: _Scores) -> dict[str, torch.Tensor]:
    """(query, row) of what has no scale, signed as a change of the measure when the row is removed."""
    found = {"gradient_cosine": scored.cosine}
    if isinstance(begun.task, LanguageTask) and isinstance(queries, LanguageTask):
        train_tokens = [example.input_ids for example in begun.task.examples]
        query_tokens = [example.input_ids for example in queries.examples]
        sign = 1 if params.measure == "loss" else -1
        found["bm25"] = sign * context.once("bm25", lambda: bm25(train_tokens, query_tokens))
    return found


class _Variant:
    """The job's context with stages, labels and cached curvature of its own, to fit the same once more."""

    def __init__(self, context: JobContext, name: str) -> None:
        self._context, self._name = context, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def fold(self, name: str, fold: Any, source: Any) -> Any:
        return self._context.fold(f"{name}-{self._name}", fold, source)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        return self._context.once(f"{name}-{self._name}", compute)

    def cached(self, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        return self._context.cached({**key, "variant": [self._name, self._context.seed]}, compute)

    def generator(self, stage: str, key: int | str) -> torch.Generator:
        return self._context.generator(f"{stage} {self._name}", key)


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
    solver: _Solver,
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
            measured_there = _responses(context, solver, fitted, removed, fraction, 1, f"responses-{name}")["changes"]
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
    variant = cast("JobContext", _Variant(context, name))
    fitted = fit(variant, task, begun.weights, begun.settings, params.train)
    return _scored(context, params, begun, queries, fitted.curvatures, params.damping, f"scores-{name}").scores


def _epsilons(
    context: JobContext,
    params: ValidateParams,
    solver: _Solver,
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
            measured = _responses(context, solver, fitted, removed, params.damping, divisor, stage)["changes"]
        for method in ("curvature", "exact"):
            if method in changes:
                found = validate_report.median_agreement(changes[method], measured)
                name = params.curvature if method == "curvature" else method
                rows.append({"method": name, "epsilon": -1 / len(solver.rows.task.ids) / divisor, **found._asdict()})
    return rows


def _retrained(
    context: JobContext, params: ValidateParams, begun: Started, solver: _Solver, fitted: Fitted, removed: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Changes when training goes on, or begins anew, without each row; as far as the recipe is given."""
    decay = params.weight_decay
    if decay is None:
        context.log("gaps before the PBRF are unknown: they need the recipe, --weight-decay, --epochs and --learning-rate")
        return {}
    if not _covers_the_model(context, begun):
        context.warn("the recipe is not used: it is of a whole mlp, and --modules names a part of it")
        return {}
    coordinates = Coordinates(fitted.curvatures, params.damping, solver.replaced.start)
    found = {}
    for name, dampings in (("warm_start", {}), ("warm_start_near", _dampings(fitted, params.damping))):
        solve = _solved_by(solver, coordinates, lambda row, near=dampings: _training(solver, _without(begun, row), decay, near))  # type: ignore[misc]
        going_on = _removals(context, name.replace("_", "-"), _RemovalPass(solver, removed, solve), len(removed))
        found[name] = going_on["changes"]
        unsolved = len(removed) - int(going_on["has_converged"].sum())
        if unsolved:
            context.warn(f"{name.replace('_', ' ')}: {unsolved} of {len(removed)} trainings did not end within --max-steps")
    if params.epochs is not None:
        weightings = torch.stack([_without(begun, row) for row in (None, *removed)])
        anew = _trained_on(context, params, begun, solver, weightings, "trained-anew")
        found["trained_anew"] = anew[1:] - anew[0]
    return found


def _covers_the_model(context: JobContext, begun: Started) -> bool:
    return total_size(begun.weights) == sum(parameter.numel() for parameter in context.model().module.parameters())


def _without(begun: Started, row: int | None) -> torch.Tensor:
    """(row,): 1/N for each, 0 for one that is removed."""
    weighting = torch.full((len(begun.task.ids),), 1 / len(begun.task.ids), dtype=torch.float64)
    if row is not None:
        weighting[row] = 0
    return weighting


def _training(solver: _Solver, weighting: torch.Tensor, decay: float, dampings: Mapping[str, float]) -> ValueAndGradient:
    return training_objective(solver.rows, solver.replaced.start, weighting, decay, dampings)


def _trained_on(
    context: JobContext, params: ValidateParams, begun: Started, solver: _Solver, weightings: torch.Tensor, stage: str
) -> torch.Tensor:
    """(weighting, query): measures after training anew under each weighting of the rows, always from the same first weights."""
    epochs, rate, decay = params.epochs, params.learning_rate, params.weight_decay
    assert epochs is not None and rate is not None and decay is not None
    first = untrained(solver.replaced.start, begun.weights, torch.Generator().manual_seed(params.retrain_seed))

    def train(at: int) -> tuple[Matrices, Mapping[str, float]]:
        objective = _training(solver, weightings[at], decay, {})
        return trained_anew(objective, first, solver.replaced.start, epochs, rate), {"steps": epochs}

    reading = _RemovalPass(solver, range(len(weightings)), train)
    found = context.fold(stage, reading, context.items(range(len(weightings)), 1, "trainings"))
    return found["changes"]


def _lds(
    context: JobContext, params: ValidateParams, begun: Started, solver: _Solver, scores: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """(query,) by method: the linear datamodeling score over random halves of the rows."""
    if not params.lds_subsets or not _covers_the_model(context, begun):
        return {}
    rows = len(begun.task.ids)
    kept = torch.zeros(params.lds_subsets, rows, dtype=torch.float64)
    for subset in range(params.lds_subsets):
        kept[subset, torch.randperm(rows, generator=context.generator("lds", subset))[: rows // 2]] = 1
    trained = _trained_on(context, params, begun, solver, kept / kept.sum(1, keepdim=True), "trained-on-halves")
    return {name: validate_report.lds(kept, values, trained) for name, values in scores.items()}
