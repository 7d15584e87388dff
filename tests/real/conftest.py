"""Folders of real weights; tests skip, and say why, where neither cache nor registry has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from real import weights


def _folder(fetch: Callable[[], Path]) -> Path:
    try:
        return fetch()
    except weights.WeightsUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct in bfloat16."""
    return _folder(weights.smollm2)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 in float32."""
    return _folder(weights.minilm)
