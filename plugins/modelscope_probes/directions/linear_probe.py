"""What every method returns, and what is done alike with all of them.

A probe scores a row x, (d,), with

    f(x) = x . w + b

where w is `direction`, not normalised, and b is `bias`. With b at the boundary between the classes, f > 0 says True. Leading
dimensions, (..., d) and (...), are probes fitted side by side, one for each layer for instance. Multiplying w and b by a positive
number changes no ranking; the negative of a probe turns its AUROC into 1 - AUROC.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

import torch

from modelscope_app.api import BadInput
from modelscope_probes.statistics.ranks import auroc


class LinearProbe(Protocol):
    """Anything with a direction and a bias. The results of all methods are NamedTuples that begin with these two."""

    @property
    def direction(self) -> torch.Tensor: ...  # (..., d)

    @property
    def bias(self) -> torch.Tensor: ...  # (...)


P = TypeVar("P", bound=LinearProbe)


class Probe(NamedTuple):
    """A linear probe and nothing else."""

    direction: torch.Tensor
    """(..., d) float64, not normalised."""
    bias: torch.Tensor
    """(...) float64: the score of the origin."""


def scores(probe: LinearProbe, x: torch.Tensor) -> torch.Tensor:
    """(..., n): x . direction + bias of rows x (..., n, d), in float64."""
    return (x.double() @ probe.direction[..., None])[..., 0] + probe.bias[..., None]


def oriented(probe: P, score: torch.Tensor, y: torch.Tensor) -> P:
    """The probe, negated wherever its `score` (..., n) ranks the rows of `y` (n,) bool the wrong way round (AUROC below 1/2).

    For methods fitted without labels, whose sign is arbitrary. The scores and labels must be those of training rows: a sign chosen
    on the rows it is judged on never gives an AUROC below 1/2. A chance AUROC of exactly 1/2 leaves the sign as it is.
    """
    sign = torch.where(auroc(score, y) < 0.5, -1.0, 1.0).to(probe.direction)
    return probe._replace(direction=probe.direction * sign[..., None], bias=probe.bias * sign)  # type: ignore[attr-defined, no-any-return]


def checked_rows(x: torch.Tensor, what: str = "activations") -> torch.Tensor:
    """Rows x (..., n, d) in float64. BadInput where one is infinite or NaN."""
    x = x.double()
    if not bool(x.isfinite().all()):
        bad = (~x.isfinite()).flatten(-2).any(-1).nonzero().tolist()
        where = f" at {', '.join(str(tuple(index)) for index in bad[:4])}" if x.ndim > 2 else ""
        raise BadInput(f"{what} of shape {tuple(x.shape)} hold infinite or NaN values{where}; no probe can be fitted to them")
    return x


def checked_labels(y: torch.Tensor, rows: int) -> torch.Tensor:
    """Labels y (n,) as bool. BadInput where there are not as many as rows, or all are the same."""
    if y.shape != (rows,):
        raise BadInput(f"{rows} rows need labels of shape ({rows},), not {tuple(y.shape)}")
    y = y.bool()
    true = int(y.sum())
    if true in (0, rows):
        raise BadInput(f"all {rows} labels are {true > 0}; a direction between two classes needs rows of both")
    return y


def class_means(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (..., d) of the rows labelled False and of those labelled True."""
    return x[..., ~y, :].mean(-2), x[..., y, :].mean(-2)
