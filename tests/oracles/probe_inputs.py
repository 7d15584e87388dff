"""The rows that scikit-learn and concept-erasure were asked about, made anew wherever they are needed.

From numpy's RandomState, whose stream is frozen: the same numbers in any environment.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Labelled rows."""

    x: np.ndarray
    """(n, d), correlated features of unequal size, away from the origin."""
    y: np.ndarray
    """(n,) bool."""


SHAPES = {"tall": (60, 5), "square": (30, 24), "wide": (20, 40)}


def rows(name: str) -> Rows:
    """Two overlapping classes of unequal size; n > 2d, d < n <= 2d or d > n."""
    n, d = SHAPES[name]
    random = np.random.RandomState(sum(map(ord, name)))
    y = np.arange(n) < round(0.4 * n)
    random.shuffle(y)
    mixing = np.eye(d) + 0.4 * random.standard_normal((d, d)) / np.sqrt(d)
    x = random.standard_normal((n, d)) @ mixing * np.linspace(0.5, 2.0, d) + 3.0
    x[:, : max(2, d // 8)] += 0.9 * y[:, None]
    return Rows(x, y)


def row_weights(n: int) -> np.ndarray:
    """(n,) weights, every fifth of them 0."""
    weights = np.random.RandomState(5).uniform(0.2, 2.0, n)
    weights[::5] = 0
    return weights


def classes(n: int) -> np.ndarray:
    """(n,) labels 0, 1 and 2."""
    return np.random.RandomState(7).randint(0, 3, n)


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Two sides of 30 pairs, each (30, 6), neither of mean zero."""
    random = np.random.RandomState(11)
    scales = np.array([1.0, 0.4, 2.0, 0.8, 1.2, 0.6])
    return random.standard_normal((30, 6)) * scales, random.standard_normal((30, 6)) * scales + 1.5
