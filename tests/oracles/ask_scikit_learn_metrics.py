"""Ask scikit-learn, in an environment of its own, for ROC curves and areas of scores with and without ties.

`make oracles` runs this and rewrites `scikit_learn_metrics_answers.json`, which holds the scores as well;
`tests/plugins/probes/statistics/test_probe_scikit_learn_agrees.py` compares. Nothing of this project is imported here.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

ANSWERS = Path(__file__).resolve().with_name("scikit_learn_metrics_answers.json")
MOST_FPRS = (0.01, 0.05, 0.1, 0.3, 0.777)


def main() -> None:
    """Write the answers beside this file."""
    rng = np.random.default_rng(0)
    cases = [case(rng, count, decimals) for count, decimals in ((120, 3), (120, 1), (120, 0), (30, 1))]
    asked = {name: metadata.version(name) for name in ("numpy", "scikit-learn")}
    ANSWERS.write_text(json.dumps({"asked": asked, "cases": cases}) + "\n")


def case(rng: np.random.Generator, count: int, decimals: int) -> dict[str, Any]:
    """Scores rounded to some decimals, and what scikit-learn says of them."""
    labels = rng.random(count) < 0.4
    scores = np.round(rng.normal(size=count) + labels, decimals) + 0.0
    false, true, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    return {
        "scores": scores.tolist(),
        "labels": labels.tolist(),
        "auroc": float(roc_auc_score(labels, scores)),
        "thresholds": thresholds[1:].tolist(),  # the first one, infinity, is not JSON
        "false_positive_rates": false.tolist(),
        "true_positive_rates": true.tolist(),
        "partial": {str(most): float(roc_auc_score(labels, scores, max_fpr=most)) for most in MOST_FPRS},
    }


if __name__ == "__main__":
    main()
