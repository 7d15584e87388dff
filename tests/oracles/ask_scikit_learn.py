"""Ask scikit-learn and concept-erasure, in an environment of their own, for directions and projections.

They need `pip install scikit-learn concept-erasure torch`. This rewrites `scikit_learn_answers.json`, against which
`tests/plugins/probes/directions` holds `modelscope_probes`. Nothing of this project is imported here but the inputs.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from concept_erasure import LeaceEraser
from probe_inputs import SHAPES, Rows, classes, pairs, row_weights, rows
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).resolve().parent
STRENGTHS = (0.01, 1.0, 100.0)


def main() -> None:
    """Write the answers beside this file."""
    answers = {
        "asked": {name: metadata.version(name) for name in ("numpy", "scikit-learn", "concept-erasure", "torch")},
        "lda": lda(rows("tall")),
        "shrunk": {name: shrunk(rows(name)) for name in ("square", "wide")},
        "logistic": {name: {str(C): logistic(rows(name), C) for C in STRENGTHS} for name in SHAPES},
        "weighted": logistic(rows("tall"), 1.0, row_weights(SHAPES["tall"][0])),
        "pca": pca(*pairs()),
        "leace": {name: leace(rows(name).x, rows(name).y.astype(float)[:, None]) for name in ("tall", "square")},
        "leace_of_three": leace(rows("tall").x, np.eye(3)[classes(SHAPES["tall"][0])]),
        "leace_wide": leace_on_rows(rows("wide")),
    }
    (HERE / "scikit_learn_answers.json").write_text(json.dumps(answers, indent=1) + "\n")


def lda(given: Rows) -> dict[str, Any]:
    """Direction and bias without shrinkage."""
    fitted = LinearDiscriminantAnalysis(solver="lsqr").fit(given.x, given.y)
    return {"direction": fitted.coef_[0].tolist(), "bias": float(fitted.intercept_[0])}


def shrunk(given: Rows) -> dict[str, Any]:
    """Shrinkage of the rows less their class means, and the direction that it leads to."""
    low, high = given.x[~given.y].mean(0), given.x[given.y].mean(0)
    covariance, shrinkage = ledoit_wolf(given.x - np.where(given.y[:, None], high, low), assume_centered=True)
    return {"direction": np.linalg.solve(covariance, high - low).tolist(), "shrinkage": float(shrinkage)}


def logistic(given: Rows, C: float, weights: np.ndarray | None = None) -> dict[str, Any]:
    """Direction and bias, as exact as float64 allows."""
    fitted = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(given.x, given.y, sample_weight=weights)
    return {"direction": fitted.coef_[0].tolist(), "bias": float(fitted.intercept_[0])}


def pca(no: np.ndarray, yes: np.ndarray) -> dict[str, Any]:
    """The first component of the differences, each side standardised."""
    fitted = PCA(1).fit((yes - yes.mean(0)) / yes.std(0) - (no - no.mean(0)) / no.std(0))
    return {"direction": fitted.components_[0].tolist(), "share": float(fitted.explained_variance_ratio_[0])}


def eraser(x: np.ndarray, z: np.ndarray) -> LeaceEraser:
    return LeaceEraser.fit(torch.from_numpy(x), torch.from_numpy(z), shrinkage=False, constrain_cov_trace=False)


def leace(x: np.ndarray, z: np.ndarray) -> dict[str, Any]:
    """What is taken away, and the mean."""
    found = eraser(x, z)
    return {"projection": (torch.eye(x.shape[1]) - found.P).tolist(), "mean": found.bias.tolist()}


def leace_on_rows(given: Rows) -> list[list[float]]:
    """The first erased rows, of more features than rows."""
    return eraser(given.x, given.y.astype(float)[:, None])(torch.from_numpy(given.x))[:4].tolist()


if __name__ == "__main__":
    main()
