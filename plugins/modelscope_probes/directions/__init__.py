"""Directions that separate two kinds of rows: each method a module, all of them linear, score = x . direction + bias."""

from __future__ import annotations

from collections.abc import Callable

from modelscope_probes.directions.difference_of_means import difference_of_means
from modelscope_probes.directions.lda import lda
from modelscope_probes.directions.linear_probe import LinearProbe
from modelscope_probes.directions.logistic import logistic

METHODS: dict[str, Callable[..., LinearProbe]] = {
    "difference-of-means": difference_of_means,
    "lda": lda,
    "logistic": logistic,
}
"""The supervised methods, each called as fit(x (..., n, d), y (n,) bool). CCS and CRC-TPC are fitted on pairs, without labels."""
