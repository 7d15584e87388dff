"""The fold that docs/plugins.md shows is a fold: it merges, and computes a mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from modelscope_app.testing import assert_fold_merges, items_source

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"


def test_the_guides_fold_merges_and_is_a_mean() -> None:
    (source,) = re.findall(r"```python\n(class Mean:.*?)```", GUIDE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(source, names)
    rows = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fold = names["Mean"](width=3)
    assert_fold_merges(fold, items_source(rows, per_batch=2))
    state = fold.start()
    for row in rows:
        state = fold.step(state, [row])
    torch.testing.assert_close(fold.finish(state), rows.mean(0))
