"""Logistic regression with an L2 penalty, fitted by Newton's method to a stated gradient norm, many problems at a time.

With labels s_i = +-1, row weights a_i and f_i = x_i . w + b,

    F(w, b) = |w|^2 / 2 + C sum_i a_i log(1 + exp(-s_i f_i))

C is that of scikit-learn's LogisticRegression; the intercept b is free. The rows are taken as they are: to standardise them is the
caller's choice, and C means something else afterwards. F is strictly convex in w, and with rows of both classes it has one minimum.

Moving the origin. As b is free, x_i - m for any m gives the same w, and b + w . m for b. The mean of all rows is taken for m:
activations with a large common part would otherwise cost all digits.

The span of the rows. At the minimum w = C sum_i a_i s_i p_i x_i with p_i = 1 / (1 + exp(s_i f_i)), a combination of rows. Where d > n,
X^T = Q R with orthonormal Q (d, n) gives w = Q u and f = R^T u + b with |w| = |u|: the same problem with n features.

Newton. With h_i = C a_i p_i (1 - p_i), their sum H, and xbar = sum_i h_i x_i / H, eliminating b from the Newton system leaves

    [ I + sum_i h_i (x_i - xbar)(x_i - xbar)^T ] dw = -(g_w - g_b xbar),    db = -g_b / H - xbar . dw

whose matrix is positive definite. The step is halved until F falls by 1e-4 of what its slope promises (Armijo), but for the rounding
of F itself. The start is the best constant, w = 0 and the log odds of all rows; where no direction lowers F, as after LEACE, the fit
ends there, and all scores are equal.

Each problem stops by itself when its gradient norm is at most `tolerance`. That norm is the 2-norm of (g_w, g_b) in the caller's
coordinates, or a little more: |g_w| + |m| |g_b| stands for |g_w + m g_b|. As F is 1-strongly convex in w, w is then no further than
that from the minimum. Where C sum_i |x_i| exceeds some 1e9, the rounding of the gradient's own sum can be above 1e-6, and the fit
fails.

Memory: x in float64 twice, and three arrays of `_ELEMENTS` numbers, or of one problem's size if that is more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import softplus

from modelscope_app.api import BadInput, JobFailed
from modelscope_probes.directions.linear_probe import checked_rows

_ELEMENTS = 2**25
_LEAST_DECREASE = 1e-4
_ROUNDING = 1e-12
_SHORTEST_STEP = 2.0**-40


class LogisticProbe(NamedTuple):
    """A linear probe whose score is the log odds of True, and how far its fit went."""

    direction: torch.Tensor
    """(..., d) float64, not normalised."""
    bias: torch.Tensor
    """(...) float64."""
    gradient_norm: torch.Tensor
    """(...) at most `tolerance`: 2-norm of the gradient of F in w and b, or a little more."""
    iterations: torch.Tensor
    """(...) int64: Newton steps taken."""


class _Problems(NamedTuple):
    """A stack of k problems of one size."""

    z: torch.Tensor
    """(k, n, r) centred rows in coordinates of their span."""
    signs: torch.Tensor
    """(k, n) the labels as +-1."""
    costs: torch.Tensor
    """(k, n) C a_i."""
    shift: torch.Tensor
    """(k,) |m|."""

    def take(self, which: torch.Tensor) -> _Problems:
        return _Problems(*(field[which] for field in self))


def logistic(
    x: torch.Tensor,
    y: torch.Tensor,
    C: float | torch.Tensor = 1.0,
    weights: torch.Tensor | None = None,
    *,
    tolerance: float = 1e-6,
    most_steps: int = 100,
) -> LogisticProbe:
    """Fitted on rows x (..., n, d) with labels y (n,) or (..., n) bool.

    `weights` (n,) or (..., n) multiply the rows' losses; 0 leaves a row out, so that the folds of a cross-validation are one call with
    weights (folds, 1, n) for x (layers, n, d). C is a number or (...). The leading dimensions of x, y, weights and C are broadcast.
    BadInput if a problem has rows of one class only, JobFailed if one does not converge.
    """
    x = checked_rows(x)
    n, d = x.shape[-2:]
    weights = torch.ones(n, dtype=torch.float64, device=x.device) if weights is None else weights.double()
    y = y.bool()
    strength = torch.as_tensor(C, dtype=torch.float64, device=x.device)
    if y.shape[-1:] != (n,) or weights.shape[-1:] != (n,):
        raise BadInput(f"{n} rows need as many labels and weights, not {tuple(y.shape)} and {tuple(weights.shape)}")
    if not (bool((strength > 0).all()) and bool((weights >= 0).all())):
        raise BadInput("C must be positive and row weights must not be negative")
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-1], weights.shape[:-1], strength.shape)  # type: ignore[no-untyped-call]
    if not bool((((weights > 0) & y).any(-1) & ((weights > 0) & ~y).any(-1)).all()):
        raise BadInput("a direction between two classes needs rows of both, with a weight above 0, in every problem")

    centre = x.mean(-2, keepdim=True)
    z = x - centre
    basis = None
    if d > n:
        basis, triangle = torch.linalg.qr(z.mT)  # (..., d, n), (..., n, n)
        z = triangle.mT
    stack = z.flatten(0, -3) if z.ndim > 2 else z[None]  # one entry for each x, however many problems share it
    shift = torch.linalg.vector_norm(centre[..., 0, :], dim=-1)
    owner = torch.arange(len(stack), device=x.device).reshape(x.shape[:-2]).expand(batch).reshape(-1)
    signs = (2 * y.double() - 1).expand(*batch, n).reshape(-1, n)
    costs = (strength[..., None] * weights).expand(*batch, n).reshape(-1, n)
    size = max(1, _ELEMENTS // stack[0].numel())
    parts = []
    for start in range(0, len(owner), size):
        own, at = owner[start : start + size], slice(start, start + size)
        parts.append(_newton(_Problems(stack[own], signs[at], costs[at], shift.reshape(-1)[own]), tolerance, most_steps))
    u, bias, norms, steps = (torch.cat(found) for found in zip(*parts, strict=True))
    if not bool((norms <= tolerance).all()):
        stuck = ~(norms <= tolerance)
        raise JobFailed(
            f"logistic regression did not converge: {int(stuck.sum())} of {len(norms)} fits had a gradient norm above {tolerance:g}, "
            f"at worst {float(norms[stuck].max()):.3g}, after up to {int(steps.max())} Newton steps; "
            "rescale the activations or take a smaller C"
        )
    u = u.reshape(*batch, -1)
    direction = u if basis is None else (basis @ u[..., None])[..., 0]
    bias = bias.reshape(batch) - (direction * centre[..., 0, :]).sum(-1)
    return LogisticProbe(direction, bias, norms.reshape(batch), steps.reshape(batch))


def _newton(problems: _Problems, tolerance: float, most_steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """w (k, r), b (k,), gradient norms (k,) and steps (k,) of a stack of problems."""
    k, _, r = problems.z.shape
    w = problems.z.new_zeros(k, r)
    true, false = ((problems.costs * (problems.signs == sign)).sum(-1) for sign in (1, -1))
    b = true.log() - false.log()
    norms, steps = torch.full_like(b, torch.inf), torch.zeros_like(b, dtype=torch.int64)
    open_ones, left = torch.arange(k, device=b.device), problems  # what has not converged yet
    for step in range(most_steps + 1):
        f = _scores(left.z, w[open_ones], b[open_ones])
        pull = left.costs * left.signs * torch.sigmoid(-left.signs * f)  # C a_i s_i p_i
        g_w, g_b = w[open_ones] - (pull[:, None, :] @ left.z)[:, 0], -pull.sum(-1)
        size = torch.linalg.vector_norm(g_w, dim=-1) + left.shift * g_b.abs()
        norms[open_ones], steps[open_ones] = torch.hypot(size, g_b), step
        goes_on = ~(norms[open_ones] <= tolerance)
        if step == most_steps or not bool(goes_on.any()):
            break
        if not bool(goes_on.all()):
            open_ones, left = open_ones[goes_on], left.take(goes_on)
            f, g_w, g_b = f[goes_on], g_w[goes_on], g_b[goes_on]
        dw, db = _newton_step(left, f, g_w, g_b)
        w[open_ones], b[open_ones] = _searched(left, w[open_ones], b[open_ones], f, dw, db, (g_w * dw).sum(-1) + g_b * db)
    return w, b, norms, steps


def _newton_step(left: _Problems, f: torch.Tensor, g_w: torch.Tensor, g_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """dw (k, r) and db (k,); see above."""
    p = torch.sigmoid(f)
    h = left.costs * p * torch.sigmoid(-f)
    total = h.sum(-1).clamp(min=torch.finfo(h.dtype).tiny)
    middle = (h[:, None, :] @ left.z)[:, 0] / total[:, None]  # (k, r)
    around = (left.z - middle[:, None, :]) * h.sqrt()[..., None]
    hessian = around.mT @ around
    del around
    hessian.diagonal(dim1=-2, dim2=-1).add_(1.0)
    target = g_w - g_b[:, None] * middle
    dw = -torch.cholesky_solve(target[..., None], torch.linalg.cholesky(hessian))[..., 0]
    return dw, -g_b / total - (middle * dw).sum(-1)


def _searched(
    left: _Problems, w: torch.Tensor, b: torch.Tensor, f: torch.Tensor, dw: torch.Tensor, db: torch.Tensor, slope: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """w and b after a step of 1, 1/2, 1/4 ..., as short as each problem needs."""
    df = _scores(left.z, dw, db)
    before = _objective(left, w, f)
    length = torch.ones_like(b)
    while True:
        after = _objective(left, w + length[:, None] * dw, f + length[:, None] * df)
        is_enough = after <= before + _LEAST_DECREASE * length * slope + _ROUNDING * before
        if bool((is_enough | (length <= _SHORTEST_STEP)).all()):
            return w + length[:, None] * dw, b + length * db
        length = torch.where(is_enough, length, length / 2)


def _scores(z: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (z @ w[..., None])[..., 0] + b[..., None]


def _objective(left: _Problems, w: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    return w.square().sum(-1) / 2 + (left.costs * softplus(-left.signs * f)).sum(-1)
