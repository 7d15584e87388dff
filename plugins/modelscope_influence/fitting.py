"""Fitting curvature: passes over the training data, eigendecompositions between them, and the cache both are kept in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from modelscope_app.api import BadInput, JobContext
from modelscope_influence.contractions import Basis
from modelscope_influence.ekfac import Curvature, Method, eigendecomposition, kfac_eigenvalues
from modelscope_influence.factor_passes import CovariancePass, EigenvaluePass, Labels
from modelscope_influence.objectives import MOST_CLASSES, Fisher, Task
from modelscope_influence.precision import contraction_dtype
from modelscope_influence.weights import Weight

_CACHE_VERSION = 1


class Settings(NamedTuple):
    """What curvature depends on beside checkpoint and data."""

    method: Method
    fisher: Fisher
    draws: int


class Fitted(NamedTuple):
    """Curvature by weight."""

    curvatures: Mapping[str, Curvature]
    aside: Sequence[int]
    """Training rows that were left out: their loss is not finite."""


def fit(context: JobContext, task: Task, weights: Sequence[Weight], settings: Settings, path: str, variant: str = "") -> Fitted:
    """Curvature of these weights over these rows, found in the cache or fitted and kept there.

    A variant is fitted once more, in stages and with labels of its own.
    """
    if settings.method == "identity":
        rows = len(task.ids)
        return Fitted({weight.name: Curvature(None, None, rows, _positions(task)) for weight in weights}, [])
    key = cache_key(context, weights, settings, path)
    if variant:
        key["variant"] = [variant, context.seed]
    found = context.cached(key, lambda: {"factors": _fitted(context, task, weights, settings, variant)})["factors"]
    aside = found["is_aside"].nonzero()[:, 0].tolist()
    dtype = _sum_dtype(context, weights)
    return Fitted({weight.name: _curvature(found, weight.name, dtype) for weight in weights}, aside)


def kept_in(context: JobContext, weights: Sequence[Weight], settings: Settings, reference: str, path: str) -> Fitted:
    """Curvature an earlier run left behind. Raises BadInput for one of another checkpoint, other modules or another curvature."""
    run = context.run(reference)
    if "curvature" not in run.artifacts or not run.analysis.endswith(".factors"):
        raise BadInput(f"--factors {reference}: run {run.id} of {run.analysis} ({run.status}) holds no fitted curvature")
    about = run.json("fitted_on")
    if about.get("checkpoint") != context.checkpoints[0].fingerprint:
        raise BadInput(f"--factors {reference}: its curvature is of another checkpoint ({about.get('name')}); fit this one's")
    if about.get("settings") != [settings.method, settings.fisher, settings.draws]:
        raise BadInput(f"--factors {reference}: it was fitted with {about.get('settings')}, and this run asks for {list(settings)}")
    found = run.tensors("curvature")
    needed = "positions" if settings.method == "identity" else "eigenvalues"
    missing = [weight.name for weight in weights if f"{needed} {weight.name}" not in found]
    if missing:
        raise BadInput(f"--factors {reference}: it has no curvature of {missing[0]} ({len(missing)} modules are missing)")
    is_of_these_rows = about.get("data") == _hash(path)
    aside = found["is_aside"].nonzero()[:, 0].tolist() if is_of_these_rows else []
    dtype = _sum_dtype(context, weights)
    return Fitted({weight.name: _curvature(found, weight.name, dtype) for weight in weights}, aside)


def keep(context: JobContext, fitted: Fitted, settings: Settings, rows: int, path: str) -> None:
    """Leave curvature behind for other runs: artifact `curvature`, and `fitted_on`, which says of what."""
    aside = torch.zeros(rows, dtype=torch.bool)
    aside[list(fitted.aside)] = True
    tensors: dict[str, torch.Tensor] = {"is_aside": aside}
    for name, curvature in fitted.curvatures.items():
        if curvature.basis is not None:
            tensors |= {f"inputs {name}": curvature.basis.inputs, f"outputs {name}": curvature.basis.outputs}
        if curvature.eigenvalues is not None:
            tensors[f"eigenvalues {name}"] = curvature.eigenvalues
        tensors |= {f"positions {name}": torch.tensor(curvature.positions), "rows": torch.tensor(curvature.rows)}
    context.tensors("curvature", tensors)
    checkpoint = context.checkpoints[0]
    context.json(
        "fitted_on",
        {
            "checkpoint": checkpoint.fingerprint,
            "name": checkpoint.name,
            "data": _hash(path),
            "settings": list(settings),
            "seed": context.seed,
        },
    )


def cache_key(context: JobContext, weights: Sequence[Weight], settings: Settings, path: str) -> dict[str, Any]:
    """Everything fitted curvature depends on."""
    return {
        "analysis": "influence",
        "version": _CACHE_VERSION,
        "what": "curvature",
        "checkpoint": context.checkpoints[0].fingerprint,
        "data": _hash(path),
        "weights": [[weight.name, weight.outputs, weight.inputs, len(weight.uses)] for weight in weights],
        "settings": list(settings) if settings.fisher == "true" else [settings.method, settings.fisher, 1],
        "seed": context.seed if settings.fisher == "true" else None,
        "dtype": str(context.dtype),
        "contracted_in": str(weights[0].contracted_in),
        "device": context.device.type,
    }


def _hash(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fitted(context: JobContext, task: Task, weights: Sequence[Weight], settings: Settings, variant: str) -> dict[str, torch.Tensor]:
    of_variant = f"-{variant}" if variant else ""
    labels = Labels(settings.fisher, settings.draws, lambda stage, key: context.generator(f"{stage} {variant}".rstrip(), key))
    dtype = _sum_dtype(context, weights)
    found: dict[str, torch.Tensor] = {}
    bases: dict[str, Basis] | None = None
    if settings.method in ("ekfac", "kfac"):
        sums = context.fold(f"covariances{of_variant}", CovariancePass(task, weights, labels, dtype), task.source())
        each = settings.draws if settings.fisher != "exact" else MOST_CLASSES
        is_whole = settings.method == "kfac"
        found = context.once(f"eigenvectors{of_variant}", lambda: _eigenvectors(context, weights, sums, dtype, each, is_whole))
        found |= {"is_aside": sums["is_aside"], "rows": sums["rows"]}
        found |= {f"positions {weight.name}": sums[f"positions {weight.name}"] for weight in weights}
        sums.clear()  # as large as the bases
        bases = {weight.name: Basis(found[f"inputs {weight.name}"], found[f"outputs {weight.name}"]) for weight in weights}
    if settings.method in ("ekfac", "diagonal"):
        reading = EigenvaluePass(task, weights, labels, _on(context, bases), dtype)
        squares = context.fold(f"eigenvalues{of_variant}", reading, task.source())
        rows = _some(int(squares["rows"]))
        found |= {"is_aside": squares["is_aside"], "rows": squares["rows"]}
        found |= {f"eigenvalues {weight.name}": squares.pop(f"squares {weight.name}").div_(rows) for weight in weights}
    return found


def _eigenvectors(
    context: JobContext, weights: Sequence[Weight], sums: dict[str, torch.Tensor], dtype: torch.dtype, gradients_each: int, is_whole: bool
) -> dict[str, torch.Tensor]:
    """Bases, and K-FAC's eigenvalues where they are the `whole` of the curvature; each position has `gradients_each` gradients.

    Equal covariances are decomposed once: a gate and an up projection read the same inputs. Covariances are let go as they are used.
    """
    _some(int(sums["rows"]))
    found: dict[str, torch.Tensor] = {}
    total = sum(weight.inputs**3 + weight.outputs**3 for weight in weights)
    done = 0
    before: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] | None = None
    for weight in weights:
        positions = int(sums[f"positions {weight.name}"])
        inputs = sums.pop(f"inputs {weight.name}").div_(positions)
        if before is None or not torch.equal(inputs, before[0]):
            before = inputs, eigendecomposition(inputs, positions)
        of_inputs = before[1]
        context.check_cancelled()
        of_outputs = eigendecomposition(sums.pop(f"outputs {weight.name}").div_(positions), positions * gradients_each)
        found[f"inputs {weight.name}"] = of_inputs[1].to(dtype)
        found[f"outputs {weight.name}"] = of_outputs[1].to(dtype)
        if is_whole:
            found[f"eigenvalues {weight.name}"] = kfac_eigenvalues(of_outputs[0], of_inputs[0]).to(dtype)
        done += weight.inputs**3 + weight.outputs**3
        context.progress(done / total * 100, 100, "percent of the eigendecompositions")
        context.check_cancelled()
    return found


def _curvature(found: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> Curvature:
    """In `dtype`, which an earlier run may not have kept it in."""
    basis = Basis(found[f"inputs {name}"].to(dtype), found[f"outputs {name}"].to(dtype)) if f"inputs {name}" in found else None
    positions = int(found[f"positions {name}"]) if f"positions {name}" in found else 0
    eigenvalues = found[f"eigenvalues {name}"].to(dtype) if f"eigenvalues {name}" in found else None
    return Curvature(basis, eigenvalues, int(found["rows"]), positions)


def _sum_dtype(context: JobContext, weights: Sequence[Weight]) -> torch.dtype:
    """Of sums, bases and eigenvalues."""
    return contraction_dtype(weights, next(context.model().module.parameters()).dtype)


def _on(context: JobContext, bases: Mapping[str, Basis] | None) -> dict[str, Basis] | None:
    if bases is None:
        return None
    return {name: Basis(basis.inputs.to(context.device), basis.outputs.to(context.device)) for name, basis in bases.items()}


def _positions(task: Task) -> int:
    return sum(map(task.positions, task.ids))


def _some(rows: int) -> int:
    if not rows:
        raise BadInput("no training row has a finite loss: every one was set aside; are the checkpoint's weights finite?")
    return rows
