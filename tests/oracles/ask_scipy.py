"""Ask numpy, scipy and the safetensors library, in an environment of their own, about the sample checkpoints.

`make oracles` runs this and rewrites `scipy_answers.json`; `test_scipy_agrees.py` holds the answers against `mscope run`. Nothing of
this project is imported here.
"""

from __future__ import annotations

import itertools
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from scipy import linalg, stats

HERE = Path(__file__).resolve().parent
SAMPLES = HERE.parents[1] / "sample_checkpoints"


def main() -> None:
    """Write the answers beside this file."""
    before, after = (doubles(SAMPLES / name) for name in ("digits-mlp", "digits-mlp-b"))
    members = sorted((SAMPLES / "digits-mlp" / "series").iterdir(), key=lambda folder: int(folder.name.removeprefix("step_")))
    answers = {
        "asked": {name: metadata.version(name) for name in ("numpy", "scipy", "safetensors")},
        "stats": {name: statistics(values) for name, values in before.items()},
        "diff": {name: difference(before[name], after[name]) for name in before},
        "series": [update(doubles(one), doubles(other)) for one, other in itertools.pairwise(members)],
    }
    (HERE / "scipy_answers.json").write_text(json.dumps(answers, indent=1) + "\n")


def doubles(folder: Path) -> dict[str, np.ndarray]:
    """A checkpoint's tensors in float64."""
    return {name: values.astype(np.float64) for name, values in sorted(load_file(folder / "model.safetensors").items())}


def statistics(values: np.ndarray) -> dict[str, Any]:
    """Moments and a histogram of 16 bins."""
    flat = values.ravel()
    counts, _ = np.histogram(flat, bins=16, range=(flat.min(), flat.max()))
    return {
        "min": flat.min(),
        "max": flat.max(),
        "mean": flat.mean(),
        "std": flat.std(),
        "norm": float(linalg.norm(flat)),
        "kurtosis": float(stats.kurtosis(flat, fisher=False)),
        "zeros": int((flat == 0).sum()),
        "counts": counts.tolist(),
    }


def difference(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Size of the change and, for a matrix, what its singular values say."""
    change = after - before
    answer: dict[str, Any] = {
        "relative_change": float(linalg.norm(change.ravel()) / linalg.norm(before.ravel())),
        "max_abs_change": float(np.abs(change).max()),
        "cosine": float(before.ravel() @ after.ravel() / linalg.norm(before.ravel()) / linalg.norm(after.ravel())),
    }
    if change.ndim == 2:
        singular_values = linalg.svdvals(change)
        energy = float((singular_values**2).sum())
        answer["sigma_max"] = float(singular_values[0])
        answer["stable_rank"] = energy / float(singular_values[0] ** 2)
        answer["top16_energy"] = float((singular_values[:16] ** 2).sum()) / energy
    return answer


def update(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, float]:
    """Of all tensors together: norm after, update norm, update ratio."""
    whole_before, whole_after = (np.concatenate([values.ravel() for values in tensors.values()]) for tensors in (before, after))
    norm = float(linalg.norm(whole_after - whole_before))
    return {"norm": float(linalg.norm(whole_after)), "update_norm": norm, "update_ratio": norm / float(linalg.norm(whole_before))}


if __name__ == "__main__":
    main()
