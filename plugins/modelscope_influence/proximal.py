"""How a model answers to one training row's loss of weight, solved for and not estimated: what influence scores are held against.

With theta_s the checkpoint, p_s what it predicts, and N training rows, the proximal Bregman response to row m (Bae et al. 2022) is

    theta(epsilon) = argmin  1/N sum_rows sum_positions KL(p_s || p)  +  epsilon L(z_m)  +  sum_modules damping/2 |theta - theta_s|^2

with epsilon = -1/N for a removal. The first term is the Bregman divergence of cross-entropy: its gradient is zero at theta_s, trained to
the end or not. Its Hessian there is the Gauss-Newton matrix G, so that to first order

    theta(epsilon) - theta_s = -epsilon (G + damping)^-1 grad L(z_m)

which is what an influence score says with EK-FAC in the place of G. Everything is solved in the coordinates x of
theta - theta_s = H^-1/2 x, H being EK-FAC with its damping, in which the Hessian is near the identity.

The resident model is never written to: forward passes are given other tensors in the place of its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from modelscope_app.api import Model
from modelscope_influence.contractions import Basis
from modelscope_influence.ekfac import Curvature
from modelscope_influence.objectives import Measure, Scored, Task, measured
from modelscope_influence.validate_estimate import MOST_DOUBLE
from modelscope_influence.weights import Weight

Matrices = dict[str, torch.Tensor]
"""(out, in) by weight, the bias as last column where it has one."""
ValueAndGradient = Callable[[Matrices], tuple[float, Matrices]]
"""An objective and its gradient at a change of the weights."""
Result = TypeVar("Result")

_MOST_KEPT_NUMBERS = 2**25
"""Logits of the checkpoint that are kept rather than computed again: 256 MB in float64."""
_HISTORY = 20
_STEEPER = 1e4
"""What the objective is multiplied by for torch's L-BFGS, which takes no notice of curvature along a step below 1e-10."""
_FAR = 1e4
"""How many times farther than the linear response an objective is followed: without a row's loss there may be no minimum at all."""
_ROUNDING = 1e-14
"""A gradient this short is rounding, in float64: there is nothing to solve for."""


def solving_dtype(model: Model) -> torch.dtype:
    """Float64 where the model is small enough to be held in it once more and its device has it."""
    parameters = list(model.module.parameters())
    if parameters[0].dtype == torch.float64:
        return torch.float64
    is_small = sum(parameter.numel() for parameter in parameters) <= MOST_DOUBLE
    return torch.float64 if is_small and parameters[0].device.type != "mps" else torch.float32


class Replaced:
    """The model with other tensors in the place of some of its parameters, for the length of a call."""

    def __init__(self, model: Model, weights: Sequence[Weight], dtype: torch.dtype) -> None:
        """The weights may change; all other parameters stay as they are, in `dtype` too."""
        self._caller, self._is_double = _Caller(model.module), dtype == torch.float64
        names = {id(parameter): f"inner.{name}" for name, parameter in model.module.named_parameters()}
        self._places = {weight.name: _place(weight, names) for weight in weights}
        own = {name for place in self._places.values() for name in (place.weight, place.bias)}
        parameters = dict(self._caller.named_parameters())
        self._others = {
            name: parameter.detach().to(dtype)
            for name, parameter in parameters.items()
            if name not in own and parameter.is_floating_point() and parameter.dtype != dtype
        }
        self.start: Matrices = {name: _matrix(place, parameters, dtype) for name, place in self._places.items()}
        """The weights of the checkpoint."""

    def call(self, matrices: Matrices, function: Callable[[], Result]) -> Result:
        """What the function, which asks the model, returns with these weights in it."""
        tensors = dict(self._others)
        for name, place in self._places.items():
            matrix = matrices[name]
            if place.bias:
                tensors[place.bias], matrix = matrix[:, -1], matrix[:, :-1]
            tensors[place.weight] = matrix.T if place.is_transposed else matrix
        with _KeepsDouble() if self._is_double else nullcontext():
            found: Result = functional_call(self._caller, tensors, (function,))
        return found

    def moved(self, change: Matrices) -> Matrices:
        """The weights of the checkpoint and a change of them."""
        return {name: start + change[name] for name, start in self.start.items()}

    def unmoved(self) -> Matrices:
        """No change."""
        return {name: torch.zeros_like(start) for name, start in self.start.items()}


class _Place(NamedTuple):
    """Where a weight's matrix goes."""

    weight: str
    bias: str
    """Empty without one."""
    is_transposed: bool


class _Caller(nn.Module):
    """Calls any function while the parameters of the module inside are replaced."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class _KeepsDouble(TorchFunctionMode):
    """Makes nothing of casts from float64 to float32, which norms and softmaxes of transformers' models bring with them.

    Their rounding would be most of what a change of 1/N of one row's loss does.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        is_double = bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64
        if is_double and func is torch.Tensor.float:
            return args[0]
        if is_double and kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        if is_double and func is torch.Tensor.to:
            args = (args[0], *(torch.float64 if arg is torch.float32 else arg for arg in args[1:]))
        return func(*args, **kwargs)


def _place(weight: Weight, names: Mapping[int, str]) -> _Place:
    use = next((use for use in weight.uses if use.kind == "linear"), weight.uses[0])
    bias = names[id(use.module.bias)] if weight.has_bias else ""
    return _Place(names[id(use.module.weight)], bias, use.kind != "linear")


def _matrix(place: _Place, parameters: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    matrix = parameters[place.weight].detach().to(dtype)
    matrix = matrix.T if place.is_transposed else matrix
    return torch.cat([matrix, parameters[place.bias].detach().to(dtype)[:, None]], dim=1) if place.bias else matrix


class Coordinates:
    """x of theta - theta_s = H^-1/2 x, all weights in one vector, or in several that are stacked."""

    def __init__(self, curvatures: Mapping[str, Curvature], fraction: float, like: Matrices) -> None:
        """H is each weight's curvature, damped by a fraction of its mean eigenvalue."""
        self._roots: Matrices = {}
        self._bases: dict[str, Basis | None] = {}
        for name, start in like.items():
            curvature = curvatures[name]
            inverse, basis = curvature.inverse(fraction), curvature.basis
            self._roots[name] = torch.ones_like(start) if inverse is None else inverse.sqrt_().to(start)
            self._bases[name] = None if basis is None else Basis(basis.inputs.to(start), basis.outputs.to(start))

    def change(self, x: torch.Tensor) -> Matrices:
        """H^-1/2 x of (..., parameter) by weight, (..., out, in)."""
        found, begin = {}, 0
        for name, root in self._roots.items():
            part = x[..., begin : begin + root.numel()].to(root).reshape(*x.shape[:-1], *root.shape) * root
            basis = self._bases[name]
            found[name] = part if basis is None else basis.rotate_back(part)
            begin += root.numel()
        return found

    def gradient(self, by_weight: Matrices) -> torch.Tensor:
        """(..., parameter): the gradient with respect to x of what has this gradient (..., out, in) with respect to the weights."""
        parts = []
        for name, root in self._roots.items():
            basis = self._bases[name]
            parts.append(((by_weight[name] if basis is None else basis.rotate(by_weight[name])) * root).flatten(-2))
        return torch.cat(parts, dim=-1)


def damping_by_weight(curvatures: Mapping[str, Curvature], fraction: float) -> dict[str, float]:
    """What is added to each weight's block: a fraction of its mean eigenvalue."""
    return {name: fraction * curvature.mean_eigenvalue for name, curvature in curvatures.items()}


class Rows:
    """Training rows, and sums over their scored positions at changed weights."""

    def __init__(self, replaced: Replaced, task: Task, is_kept: torch.Tensor, check_cancelled: Callable[[], None]) -> None:
        """`is_kept` (row,) bool leaves out rows whose loss is not finite."""
        self.task = task
        self._replaced, self._is_kept, self._check_cancelled = replaced, is_kept, check_cancelled
        self.count = int(is_kept.sum())
        self._source = task.source()
        self._kept: dict[int, torch.Tensor] = {}
        self._room = _MOST_KEPT_NUMBERS

    def value_and_gradient(
        self, change: Matrices, part: Callable[[Scored, torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> tuple[float, Matrices]:
        """Sum over batches of `part(scored, logits of the checkpoint, row id of each position)` with its gradient.

        Positions of rows that are left out do not reach `part`.
        """
        leaves = {name: matrix.detach().requires_grad_() for name, matrix in self._replaced.moved(change).items()}
        value, gradients = 0.0, self._replaced.unmoved()
        for scored, before, ids in self._batches(leaves):
            self._check_cancelled()
            total = part(scored, before, ids)
            value += float(total.detach())
            for name, gradient in zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True):
                gradients[name] += gradient
        return value, gradients

    def logits(self) -> Iterator[tuple[Callable[[Matrices], torch.Tensor], int]]:
        """Batch by batch, what gives the logits (scored position, class) of weights, and how many real positions the batch has."""
        for batch in self._source.plan:
            self._check_cancelled()
            loaded = self._source.load(batch)

            def of(matrices: Matrices, loaded: Any = loaded) -> torch.Tensor:
                scored = self._replaced.call(matrices, lambda: self.task.forward(loaded))
                return self._without_aside(scored)[0].logits

            yield of, sum(map(self.task.positions, batch))

    def _batches(self, matrices: Matrices) -> Iterator[tuple[Scored, torch.Tensor, torch.Tensor]]:
        for at, batch in enumerate(self._source.plan):
            loaded = self._source.load(batch)
            with torch.enable_grad():
                scored, ids = self._without_aside(self._replaced.call(matrices, lambda loaded=loaded: self.task.forward(loaded)))  # type: ignore[misc]
            yield scored, self._before(at, loaded), ids

    def _before(self, at: int, loaded: Any) -> torch.Tensor:
        """(scored position, class): the checkpoint's logits for a batch, kept from the first time on where there is room."""
        if at in self._kept:
            return self._kept[at]
        with torch.no_grad():
            scored, _ = self._without_aside(self._replaced.call(self._replaced.start, lambda: self.task.forward(loaded)))
        if scored.logits.numel() <= self._room:
            self._kept[at] = scored.logits
            self._room -= scored.logits.numel()
        return scored.logits

    def _without_aside(self, scored: Scored) -> tuple[Scored, torch.Tensor]:
        """Scored positions of rows that are not left out, and the row id of each."""
        ids = torch.tensor(scored.ids, device=scored.row.device)[scored.row]
        good = self._is_kept.to(ids.device)[ids]
        if bool(good.all()):
            return scored, ids
        return scored._replace(logits=scored.logits[good], targets=scored.targets[good], row=scored.row[good]), ids[good]


def divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """(position,): KL(p_before || p_after) of (position, class) logits.

    With c = after - before less its mean under p_before, KL = log E[e^c] = log(1 + E[e^c - 1 - c]): the second form keeps its digits
    where predictions hardly differ, and the first is for those that differ much.

    >>> divergence(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 3.0]])).tolist()
    [0.0]
    """
    chances = before.softmax(-1)
    difference = after - before
    centred = difference - (chances * difference).sum(-1, keepdim=True)
    is_near = centred.detach().abs().amax(-1) < 1
    near = torch.where(is_near[:, None], centred, 0.0)
    close = torch.log1p((chances * (torch.expm1(near) - near)).sum(-1))
    return torch.where(is_near, close, torch.logsumexp(before.log_softmax(-1) + centred, dim=-1))


def proximal_objective(rows: Rows, dampings: Mapping[str, float], removed: int, epsilon: float) -> ValueAndGradient:
    """The objective above, less its value at the checkpoint's weights."""

    def part(scored: Scored, before: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        its_own = ids == removed
        gain = nn.functional.cross_entropy(scored.logits[its_own], scored.targets[its_own], reduction="sum")
        past = nn.functional.cross_entropy(before[its_own], scored.targets[its_own], reduction="sum")
        return divergence(before, scored.logits).sum() / rows.count + epsilon * (gain - past)

    return lambda change: _plus_proximity(*rows.value_and_gradient(change, part), change, dampings)


def training_objective(
    rows: Rows, start: Matrices, weighting: torch.Tensor, weight_decay: float, dampings: Mapping[str, float] | None = None
) -> ValueAndGradient:
    """What training minimises: weighted losses and weight_decay/2 |theta|^2; with `dampings`, proximity to the checkpoint too.

    `weighting` (row,) float64.
    """

    def part(scored: Scored, before: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return (scored.losses() * weighting.to(scored.logits)[ids]).sum()

    def evaluated(change: Matrices) -> tuple[float, Matrices]:
        value, gradient = rows.value_and_gradient(change, part)
        for name, begin in start.items():
            weight = begin + change[name]
            value += weight_decay / 2 * float(weight.double().square().sum())
            gradient[name] += weight_decay * weight
        return _plus_proximity(value, gradient, change, dampings or {})

    return evaluated


def _plus_proximity(value: float, gradient: Matrices, change: Matrices, dampings: Mapping[str, float]) -> tuple[float, Matrices]:
    for name, damping in dampings.items():
        value += damping / 2 * float(change[name].double().square().sum())
        gradient[name] += damping * change[name]
    return value, gradient


class Response(NamedTuple):
    """Where an objective is smallest."""

    change: Matrices
    steps: int
    first_norm: float
    """Of the gradient, in the coordinates it was solved in: the root of g^T H^-1 g."""
    last_norm: float
    """Infinite where there is no minimum near the checkpoint."""
    has_converged: bool


def minimised(objective: ValueAndGradient, coordinates: Coordinates, unmoved: Matrices, most_steps: int, tolerance: float) -> Response:
    """The minimum near the checkpoint, by L-BFGS with strong Wolfe steps, until the gradient is `tolerance` times what it was at first.

    Scaled so that the linear response has about length 1: 1/N-th of a row's loss is little for a stopping rule to see.
    """
    _, first = objective(unmoved)
    gradient = coordinates.gradient(first)
    scale = float(gradient.norm())
    if not _ROUNDING < scale < float("inf"):
        return Response(unmoved, 0, scale, scale if scale <= _ROUNDING else float("inf"), scale <= _ROUNDING)
    enough = max(tolerance, _ROUNDING / scale)
    x = torch.zeros_like(gradient)
    last = x.clone()  # where the newest gradient was taken
    norm = 1.0

    def evaluated() -> float:
        nonlocal norm
        if not float(x.norm()) < _FAR:  # NaN too
            norm = float("inf")
            raise _Ended
        last.copy_(x)
        value, by_weight = objective(coordinates.change(scale * x))
        x.grad = coordinates.gradient(by_weight) * (_STEEPER / scale)
        norm = float(x.grad.norm()) / _STEEPER
        if norm <= enough:
            raise _Ended
        return value * (_STEEPER / scale**2)

    most = 2 * most_steps + 50
    optimiser = torch.optim.LBFGS(
        [x],
        max_iter=most_steps,
        max_eval=most,
        tolerance_grad=0,
        tolerance_change=1e-15,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )
    try:
        optimiser.step(evaluated)  # type: ignore[no-untyped-call]
        evaluated()
    except _Ended:
        pass
    steps = int(optimiser.state[x]["n_iter"])
    if not norm < float("inf"):
        return Response(unmoved, steps, scale, float("inf"), False)
    return Response(coordinates.change(scale * last), steps, scale, norm * scale, norm <= enough)


class _Ended(Exception):
    """Raised in the middle of a line search: this point will do, or the search has left the neighbourhood of the checkpoint."""


def measures(replaced: Replaced, queries: Task, measure: Measure, change: Matrices) -> torch.Tensor:
    """(query,) float64: the measure of each query with changed weights."""
    found = torch.full((len(queries.ids),), torch.nan, dtype=torch.float64)
    source, matrices = queries.source(), replaced.moved(change)
    with torch.no_grad():
        for batch in source.plan:
            loaded = source.load(batch)
            scored = replaced.call(matrices, lambda loaded=loaded: queries.forward(loaded))  # type: ignore[misc]
            found[torch.tensor(scored.ids)] = measured(scored, measure).double().cpu()
    return found


def trained_anew(objective: ValueAndGradient, first: Matrices, start: Matrices, steps: int, learning_rate: float) -> Matrices:
    """The change from the checkpoint to where Adam, over all rows at once and with a rate that falls linearly to 0, gets from `first`."""
    leaves = {name: matrix.clone().requires_grad_() for name, matrix in first.items()}
    optimiser = torch.optim.Adam(list(leaves.values()), lr=learning_rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        _, gradient = objective({name: leaf.detach() - start[name] for name, leaf in leaves.items()})
        for name, leaf in leaves.items():
            leaf.grad = gradient[name]
        optimiser.step()
    return {name: leaf.detach() - start[name] for name, leaf in leaves.items()}


def untrained(start: Matrices, weights: Sequence[Weight], generator: torch.Generator) -> Matrices:
    """Weights as torch begins a linear layer: uniform within 1 / sqrt(inputs), biases too."""
    found = {}
    for weight in weights:
        bound = (weight.inputs - weight.has_bias) ** -0.5
        like = start[weight.name]
        found[weight.name] = ((2 * torch.rand(like.shape, generator=generator, dtype=torch.float64) - 1) * bound).to(like)
    return found
