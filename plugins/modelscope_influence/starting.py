"""What every analysis begins with: the rows as a task of this model, the weights in question, and their curvature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch

from modelscope_app.api import BadInput, JobContext
from modelscope_influence.ekfac import Method
from modelscope_influence.fitting import Fitted, Settings, fit, kept_in
from modelscope_influence.objectives import ClassifierTask, LanguageTask, Task
from modelscope_influence.params import _Fitting
from modelscope_influence.precision import contracted_in
from modelscope_influence.weights import Weight, chosen_weights, total_size

_SMALL = 10_000_000
"""Parameters below which a model is small."""


class Started(NamedTuple):
    """The training rows and what of the model they are scored on."""

    task: Task
    weights: Sequence[Weight]
    settings: Settings


def started(context: JobContext, params: _Fitting) -> Started:
    """Read the training rows and find the weights. Raises BadInput."""
    task = task_of(context, params.train, params.batch_size)
    weights = contracted_in(chosen_weights(context.model(), params.modules), params.precision)
    context.log(f"{len(weights)} weights, {total_size(weights):,} parameters, {len(task.ids):,} training rows")
    method: Method = "ekfac" if str(params.curvature) == "ggn" else params.curvature  # which preconditions the other
    return Started(task, weights, Settings(method, params.fisher, params.label_draws if params.fisher == "true" else 1))


def task_of(context: JobContext, path: str, batch_size: int | None) -> Task:
    """Rows of a file as this checkpoint reads them."""
    if (context.checkpoints[0].config or {}).get("model_type") == "mlp":
        return ClassifierTask(context, context.model(), path, batch_size or 1024)
    return LanguageTask(context, context.model(), path, batch_size or _tokens_at_once(context))


def _tokens_at_once(context: JobContext) -> int:
    """On a processor, more for small models: what a batch costs beside its arithmetic is a sixth of their time at 256 tokens."""
    if context.device.type != "cpu":
        return 4096
    return 1024 if sum(parameter.numel() for parameter in context.model().module.parameters()) < _SMALL else 256


def curvature_of(context: JobContext, begun: Started, path: str, factors: str = "") -> Fitted:
    """Fitted on the training rows, or taken from an earlier run. Raises BadInput for a run of another checkpoint."""
    fitted = (
        kept_in(context, begun.weights, begun.settings, factors, path)
        if factors
        else fit(context, begun.task, begun.weights, begun.settings, path)
    )
    for id in list(fitted.aside)[:3]:
        context.warn(f"training row {id} is set aside: its loss or its gradient is not finite")
    if len(fitted.aside) > 3:
        context.warn(f"{len(fitted.aside)} training rows are set aside, their losses or gradients are not finite")
    return fitted


def flagged(context: JobContext, path: str, flag: str) -> torch.Tensor | None:
    """(row,) bool: rows whose column `flag` is true. Without a flag, `poisoned` where it says something of every row, else None.

    Raises BadInput for a flag that was asked for and is not true or false in a row, or the same in all of them.
    """
    rows = context.rows(path)
    name = flag or "poisoned"
    values = [row.get(name) for row in rows.rows]
    unclear = next((id for id, value in enumerate(values) if value not in (True, False)), None)
    is_constant = len(set(map(bool, values))) < 2
    if not flag and (unclear is not None or is_constant):
        return None
    if all(name not in row for row in rows.rows):
        raise BadInput(f"--flag {name}: {path} has no such column; there are {', '.join(map(repr, list(rows.rows[0])[:20]))}")
    if unclear is not None:
        said = json.dumps(values[unclear], default=str)[:40]
        raise rows.bad_row(unclear, f"{name} is {said}, and --flag needs true or false in every row")
    if is_constant:
        raise BadInput(f"{path}: {name} is {json.dumps(bool(values[0]))} in every row, so no ranking can be measured against it")
    return torch.tensor(list(map(bool, values)))
