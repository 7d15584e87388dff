"""Rankings that cost nothing, to hold influence against: words in common (BM25)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def bm25(train: Sequence[Sequence[int]], queries: Sequence[Sequence[int]]) -> torch.Tensor:
    """(query, example) float64: Okapi BM25 (Lucene's variant) of each example for each query's tokens."""
    import bm25s  # type: ignore[import-untyped]

    index = bm25s.BM25()
    index.index([[str(token) for token in tokens] for tokens in train], show_progress=False)
    return torch.stack([torch.from_numpy(index.get_scores([str(token) for token in tokens])).double() for tokens in queries])
