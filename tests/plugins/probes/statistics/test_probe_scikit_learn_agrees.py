"""ROC curves and AUROCs against the answers of scikit-learn (`tests/oracles/ask_scikit_learn_metrics.py`).

Counts and thresholds are the same; rates and areas may differ in the rounding of float64 sums.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from modelscope_probes.statistics.operating_points import roc_curve
from modelscope_probes.statistics.ranks import auroc

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).resolve().parents[3] / "oracles" / "scikit_learn_metrics_answers.json").read_text()
)["cases"]


@pytest.mark.parametrize("case", CASES)
def test_the_curve_and_its_area_agree(case: dict[str, Any]) -> None:
    scores, labels = torch.tensor(case["scores"], dtype=torch.float64), torch.tensor(case["labels"])
    curve = roc_curve(scores, labels)
    assert curve is not None
    assert curve.thresholds[1:].tolist() == case["thresholds"]
    assert curve.false_positive_rates.tolist() == pytest.approx(case["false_positive_rates"], rel=1e-12)
    assert curve.true_positive_rates.tolist() == pytest.approx(case["true_positive_rates"], rel=1e-12)
    assert auroc(scores, labels).item() == pytest.approx(case["auroc"], rel=1e-12)
