"""What a real model is expected to need, told from its headers, beside what it takes when it is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.jobs.preparing.need import model_bytes
from modelscope_app.models import build_model

pytestmark = pytest.mark.real

UNSTORED_BYTES = 4096
"""Rotary frequencies of SmolLM2 (256 bytes), position ids of MiniLM (4 KiB)."""


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("model", ["smollm2_folder", "minilm_folder"])
def test_the_memory_of_a_real_model_is_told_from_its_headers(request: pytest.FixtureRequest, model: str, dtype: str) -> None:
    folder: Path = request.getfixturevalue(model)
    checkpoint = open_checkpoint(folder)
    built = build_model(checkpoint, "cpu", dtype).memory_bytes
    assert built - UNSTORED_BYTES <= model_bytes(checkpoint, dtype) <= built
