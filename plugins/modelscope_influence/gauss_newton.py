"""Queries divided by the whole Gauss-Newton matrix, products between weights and all: what EK-FAC stands in for.

With J the Jacobian of logits with respect to all weights in question together, and p what the model predicts,

    G = 1/N sum_rows sum_positions J^T (diag(p) - p p^T) J

is the Hessian of the training loss without the second derivatives of the model. It is never made: a product with it is a tangent of the
logits, J v, and a gradient of them, J^T u. (G + damping) v = grad f is solved by conjugate gradients (Hestenes and Stiefel 1952) in
the coordinates x of v = H^-1/2 x, with H EK-FAC under the same damping, where the matrix is near the identity:

    H^-1/2 (G + damping) H^-1/2 x = H^-1/2 grad f

The residual is told as a share of the right side there. An error e of v = (G + damping)^-1 (grad f - r) changes a score by at most
|r| |grad L| in the norm of (G + damping)^-1, which is nearly that of H^-1: a residual of 0.01 is an error of at most about a
hundredth of the root of both rows' self-influences.

All vectors are taken through a pass over the rows at once. They are float64 where `proximal.solving_dtype` says so; in float32, where
residuals below about 1e-5 are rounding, less is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.func import jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from modelscope_app.api import JobContext, JobFailed, Model
from modelscope_influence.fitting import Fitted
from modelscope_influence.objectives import Task
from modelscope_influence.proximal import Coordinates, Matrices, Replaced, Rows, damping_by_weight, solving_dtype
from modelscope_influence.weights import Weight

State = dict[str, torch.Tensor]
Product = Callable[[torch.Tensor], torch.Tensor]
"""A matrix times each of several vectors, (vector, parameter) both."""

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
"""What residuals are brought to, as shares of the right side."""
MOST_STEPS = 1000
_MOST_NUMBERS = 2**26
"""Of tangents and gradients of activations at once: 512 MB in float64."""
_COPIES = 8
"""How many tensors of the width of a position are alive at once, roughly."""
_NAMED = 3
"""Queries without a solution that are warned of by name."""


class Solution(NamedTuple):
    """(G + damping)^-1 times gradients."""

    directions: Matrices
    """(query, out, in) by weight, in the parameters' own basis, where and as the gradients were."""
    steps: list[int]
    """By query."""
    residuals: list[float]
    """By query, computed anew from the solution."""
    tolerance: float
    dtype: torch.dtype
    """What was computed in."""

    @property
    def has_converged(self) -> list[bool]:
        """By query."""
        return [residual <= self.tolerance for residual in self.residuals]


def gauss_newton_directions(
    context: JobContext,
    task: Task,
    model: Model,
    weights: Sequence[Weight],
    fitted: Fitted,
    fraction: float,
    ids: Sequence[int],
    gradients: Matrices,
    stage: str = "gauss-newton",
    most_steps: int = MOST_STEPS,
    tolerance: float | None = None,
) -> Solution:
    """(G + damping)^-1 times the gradients (query, out, in), by weight and in the parameters' own basis, of the queries `ids`.

    G is over the rows of `task`, without those that fitting set aside; damping is a fraction of each weight's mean eigenvalue in the
    fitted curvature, which is also what is preconditioned with. It is a stage of the run, saved between steps. A query that did not
    reach the tolerance is warned of with its residual.

    Takes about eight vectors of all weights for each query and the model once more, in float64 for small models, and what
    activations need (512 MB at most, but for a single vector's).
    """
    replaced = Replaced(model, weights, solving_dtype(model))
    is_kept = torch.ones(len(task.ids), dtype=torch.bool)
    is_kept[list(fitted.aside)] = False
    rows = Rows(replaced, task, is_kept, context.check_cancelled)
    coordinates = Coordinates(fitted.curvatures, fraction, replaced.start)
    product = _damped_product(rows, replaced.start, coordinates, damping_by_weight(fitted.curvatures, fraction))
    like = next(iter(replaced.start.values()))
    right = coordinates.gradient({name: gradient.to(like) for name, gradient in gradients.items()})
    tolerance = TOLERANCES[like.dtype] if tolerance is None else tolerance
    found = context.fold(stage, _Solving(product, right, tolerance), context.items(range(most_steps), 1, "steps, at most"))
    directions = {name: matrix.to(gradients[name]) for name, matrix in coordinates.change(found["x"].to(like)).items()}
    solution = Solution(directions, found["steps"].tolist(), found["residual"].tolist(), tolerance, like.dtype)
    _warn_of_unsolved(context, solution, ids)
    return solution


def _warn_of_unsolved(context: JobContext, solution: Solution, ids: Sequence[int]) -> None:
    unsolved = [at for at, is_solved in enumerate(solution.has_converged) if not is_solved]
    for at in unsolved[:_NAMED]:
        context.warn(
            f"query {ids[at]}: the residual is {solution.residuals[at]:.1e} of the right side after {solution.steps[at]} steps, and "
            f"{solution.tolerance:.0e} was asked for; its scores are that rough. A higher --damping takes fewer steps"
        )
    if len(unsolved) > _NAMED:
        context.warn(f"{len(unsolved)} of {len(ids)} queries were not solved to {solution.tolerance:.0e}")


def gauss_newton_products(rows: Rows, start: Matrices, directions: Matrices) -> Matrices:
    """G times each direction, (direction, out, in) by weight, at the weights `start`, in one pass over the rows."""
    count = len(next(iter(directions.values())))
    total = {name: torch.zeros_like(direction) for name, direction in directions.items()}
    widest = max(max(matrix.shape) for matrix in start.values())
    for logits, positions in rows.logits():
        # The other kernels of attention have no forward derivative.
        with sdpa_kernel(SDPBackend.MATH):
            before, gradient_of = vjp(logits, start)[:2]
            chances = before.softmax(-1)

            def curved(
                direction: Matrices,
                logits: Callable[[Matrices], torch.Tensor] = logits,
                chances: torch.Tensor = chances,
                gradient_of: Callable[[torch.Tensor], tuple[Matrices]] = gradient_of,
            ) -> Matrices:
                weighted = chances * jvp(logits, (start,), (direction,))[1]
                return gradient_of(weighted - chances * weighted.sum(-1, keepdim=True))[0]

            at_once = max(1, _MOST_NUMBERS // (_COPIES * max(before.numel(), positions * widest, 1)))
            found = vmap(curved, chunk_size=min(at_once, count))(directions)
        for name, part in found.items():
            total[name] += part / rows.count
    return total


class Solved(NamedTuple):
    """Systems of equations, solved."""

    x: torch.Tensor
    """(system, unknown)."""
    steps: torch.Tensor
    """(system,) int64."""
    residual: torch.Tensor
    """(system,) float64: its length, as a share of the right side's, computed anew from x."""


def exact_preconditioned(
    rows: Rows,
    start: Matrices,
    coordinates: Coordinates,
    dampings: dict[str, float],
    gradients: Matrices,
    most_steps: int,
    tolerance: float,
) -> tuple[Matrices, Solved]:
    """(G + damping)^-1 times each gradient, (gradient, out, in) by weight, at the weights `start`."""
    product = _damped_product(rows, start, coordinates, dampings)
    solved = conjugate_gradients(product, coordinates.gradient(gradients), most_steps, tolerance)
    return coordinates.change(solved.x), solved


def _damped_product(rows: Rows, start: Matrices, coordinates: Coordinates, dampings: dict[str, float]) -> Product:
    """H^-1/2 (G + damping) H^-1/2 times each of several vectors."""

    def product(x: torch.Tensor) -> torch.Tensor:
        changes = coordinates.change(x)
        curved = gauss_newton_products(rows, start, changes)
        return coordinates.gradient({name: curved[name] + damping * changes[name] for name, damping in dampings.items()})

    return product


def conjugate_gradients(product: Product, right: torch.Tensor, most_steps: int, tolerance: float) -> Solved:
    """x with product(x) = right, for a symmetric positive definite product and each right side (system, unknown) by itself."""
    solving = _Solving(product, right, tolerance)
    state = solving.start()
    for at in range(most_steps):
        state = solving.step(state, [at])
    found = solving.finish(state)
    return Solved(found["x"], found["steps"], found["residual"])


class _Solving:
    """Conjugate gradients for several right sides, a step at a time; a system that is solved is left alone.

    Solved means half the tolerance: the residual that is carried along drifts from the one that is computed anew.
    """

    def __init__(self, product: Product, right: torch.Tensor, tolerance: float) -> None:
        self._product, self._right, self._tolerance = product, right, tolerance
        self._lengths = right.norm(dim=-1)

    def start(self) -> State:
        return {
            "x": torch.zeros_like(self._right),
            "residual": self._right.clone(),
            "direction": self._right.clone(),
            "steps": torch.zeros(len(self._right), dtype=torch.int64),
        }

    def step(self, state: State, batch: Sequence[int]) -> State:
        norms = state["residual"].norm(dim=-1)
        going = (norms > self._tolerance / 2 * self._lengths).nonzero()[:, 0]
        if not len(going):
            return state
        direction, squared = state["direction"][going], norms[going].square()[:, None]
        along = self._product(direction)
        curved = (direction * along).sum(-1, keepdim=True)
        if not bool(curved.isfinite().all()):
            raise JobFailed(
                "a product with the Gauss-Newton matrix is not finite: some training row's loss or gradient is not, and the curvature was "
                "fitted on other rows, so that it was not set aside; or --damping is too small for a singular matrix"
            )
        length = torch.where(curved > 0, squared / curved, 0)
        residual = state["residual"][going] - length * along
        state["x"][going] += length * direction
        state["residual"][going] = residual
        state["direction"][going] = residual + residual.square().sum(-1, keepdim=True) / squared * direction
        state["steps"][going.cpu()] += 1
        return state

    def finish(self, state: State) -> State:
        """Solutions, steps and residuals."""
        norms = (self._right - self._product(state["x"])).norm(dim=-1)
        shares = torch.where(self._lengths > 0, norms / self._lengths, 0).double()
        return {"x": state["x"], "steps": state["steps"], "residual": shares}
