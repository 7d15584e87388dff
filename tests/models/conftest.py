"""Each family is saved once per session; tests that change a checkpoint copy it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from models.tiny_models import CAUSAL, ENCODERS, UNDESCRIBED, saved_model

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny model of that name."""
    root = tmp_path_factory.mktemp("tiny")

    @cache
    def folder(name: str) -> Path:
        model_type, config = {**CAUSAL, **UNDESCRIBED, **ENCODERS}[name]
        return saved_model(root / name, model_type, config, "encoder" if name in ENCODERS else "causal-lm")

    return folder
