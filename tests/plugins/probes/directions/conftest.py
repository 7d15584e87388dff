"""What scikit-learn and concept-erasure answered, and rows to fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import probe_inputs


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of some dozens of rows take several times as long on two threads as on one, more so beside other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def answers() -> Any:
    """See `tests/oracles/ask_scikit_learn.py`."""
    return json.loads((Path(probe_inputs.__file__).parent / "scikit_learn_answers.json").read_text())


@pytest.fixture
def layers() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (3, 60, 8) of three layers and labels (60,): separated less, more, not at all; a feature of a huge mean in each."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 60, 8, dtype=torch.float64, generator=generator)
    y = torch.rand(60, generator=generator) < 0.4
    x[..., 0] += torch.tensor([0.8, 3.0, 0.0])[:, None] * y
    x[..., 5] += 500.0
    return x, y
