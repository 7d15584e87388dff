"""What queries become when training rows are removed, by solving for it or by training.

Each removal is a step of a fold, so that a killed run goes on with the removal it was at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.func import jvp

from modelscope_app.api import JobContext
from modelscope_influence import validate_report
from modelscope_influence.fitting import Fitted
from modelscope_influence.gauss_newton import exact_preconditioned
from modelscope_influence.objectives import ClassifierTask, Measure, Scored, Task, measured
from modelscope_influence.proximal import (
    Coordinates,
    Matrices,
    Replaced,
    Rows,
    ValueAndGradient,
    damping_by_weight,
    measures,
    minimised,
    proximal_objective,
    solving_dtype,
    trained_anew,
    training_objective,
    untrained,
)
from modelscope_influence.starting import Started
from modelscope_influence.validate_params import ValidateParams
from modelscope_influence.weights import total_size

MOST_EXACT = 20_000
"""Parameters up to which the whole Gauss-Newton matrix is solved with."""
_EXACT_STEPS, _EXACT_TOLERANCE = 5000, 1e-6
State = dict[str, torch.Tensor]
Solve = Callable[[int], tuple[Matrices, Mapping[str, float]]]
"""The change of the weights when a row is removed, and numbers about how it was found."""


class Solver(NamedTuple):
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


def solver_of(context: JobContext, params: ValidateParams, begun: Started, queries: Task, fitted: Fitted) -> Solver:
    """For the rows that were begun with, less those that fitting set aside."""
    replaced = Replaced(context.model(), begun.weights, solving_dtype(context.model()))
    is_kept = torch.ones(len(begun.task.ids), dtype=torch.bool)
    is_kept[list(fitted.aside)] = False
    rows = Rows(replaced, begun.task, is_kept, context.check_cancelled)
    return Solver(replaced, rows, queries, params.measure, params.max_steps, params.tolerance)


def responses(
    context: JobContext,
    solver: Solver,
    fitted: Fitted,
    removed: Sequence[int],
    fraction: float,
    divisor: int,
    stage: str,
) -> State:
    """The PBRF of every removal; with a divisor, of a part of each row's weight, its changes scaled up to the whole."""
    epsilon, dampings = -1 / len(solver.rows.task.ids) / divisor, damping_by_weight(fitted.curvatures, fraction)
    coordinates = Coordinates(fitted.curvatures, fraction, solver.replaced.start)
    solve = _solved_by(solver, coordinates, lambda row: proximal_objective(solver.rows, dampings, row, epsilon))
    found = _removals(context, stage, _RemovalPass(solver, removed, solve), len(removed))
    return {**found, "changes": found["changes"] * divisor}


def solved_exactly(
    context: JobContext, params: ValidateParams, begun: Started, solver: Solver, fitted: Fitted, removed: Sequence[int]
) -> State | None:
    """The first-order change by the whole Gauss-Newton matrix; None where it is not asked for, or the model is not one for it."""
    size = total_size(begun.weights)
    if not params.exact or not isinstance(begun.task, ClassifierTask) or size > MOST_EXACT:
        if params.exact:
            context.log(f"no exact solve: it is for mlp checkpoints of up to {MOST_EXACT:,} parameters, and these are {size:,}")
        return None
    start = solver.replaced.start
    coordinates, dampings = Coordinates(fitted.curvatures, params.damping, start), damping_by_weight(fitted.curvatures, params.damping)

    def solve(row: int) -> tuple[Matrices, Mapping[str, float]]:
        gradient = {name: matrix[None] for name, matrix in _row_gradient(solver, row).items()}
        found, solved = exact_preconditioned(solver.rows, start, coordinates, dampings, gradient, _EXACT_STEPS, _EXACT_TOLERANCE)
        change = {name: matrix[0] / len(begun.task.ids) for name, matrix in found.items()}
        return change, {"steps": float(solved.steps), "residual": float(solved.residual)}

    return _removals(context, "exact", _ExactPass(solver, removed, solve), len(removed))


def _row_gradient(solver: Solver, row: int) -> Matrices:
    def its_loss(scored: Scored, before: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return scored.losses()[ids == row].sum()

    return solver.rows.value_and_gradient(solver.replaced.unmoved(), its_loss)[1]


def retrained(
    context: JobContext, params: ValidateParams, begun: Started, solver: Solver, fitted: Fitted, removed: Sequence[int]
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
    for name, dampings in (("warm_start", {}), ("warm_start_near", damping_by_weight(fitted.curvatures, params.damping))):
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


def datamodeling_scores(
    context: JobContext, params: ValidateParams, begun: Started, solver: Solver, scores: Mapping[str, torch.Tensor]
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


def _covers_the_model(context: JobContext, begun: Started) -> bool:
    return total_size(begun.weights) == sum(parameter.numel() for parameter in context.model().module.parameters())


def _without(begun: Started, row: int | None) -> torch.Tensor:
    """(row,): 1/N for each, 0 for one that is removed."""
    weighting = torch.full((len(begun.task.ids),), 1 / len(begun.task.ids), dtype=torch.float64)
    if row is not None:
        weighting[row] = 0
    return weighting


def _training(solver: Solver, weighting: torch.Tensor, decay: float, dampings: Mapping[str, float]) -> ValueAndGradient:
    return training_objective(solver.rows, solver.replaced.start, weighting, decay, dampings)


def _trained_on(
    context: JobContext, params: ValidateParams, begun: Started, solver: Solver, weightings: torch.Tensor, stage: str
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


def _removals(context: JobContext, stage: str, reading: _RemovalPass, count: int) -> State:
    return context.fold(stage, reading, context.items(range(count), 1, "removals"))


class _RemovalPass:
    """Changes of the queries' measures by removal, one removal a step."""

    def __init__(self, solver: Solver, removed: Sequence[int], solve: Solve) -> None:
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


def _solved_by(solver: Solver, coordinates: Coordinates, objective: Callable[[int], ValueAndGradient]) -> Solve:
    def solve(removed: int) -> tuple[Matrices, Mapping[str, float]]:
        found = minimised(objective(removed), coordinates, solver.replaced.unmoved(), solver.most_steps, solver.tolerance)
        return found.change, {name: float(getattr(found, name)) for name in _RemovalPass.numbers}

    return solve
