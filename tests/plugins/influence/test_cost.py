"""How long influence is said to take, against what it takes: processor time on one thread, which other processes do not change."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from modelscope_influence.analyses import scores
from modelscope_influence.cost import Sizes, fitting_seconds, scoring_seconds, speed
from modelscope_influence.estimates import factors_estimate, scores_estimate, self_estimate
from modelscope_influence.params import FactorsParams, ScoresParams, SelfParams
from plugins.probes.score.in_process import run_in_process, saved_llama, written_rows
from safetensors.torch import save_file

from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.jobs.stages import Stages

pytest_plugins = ["modelscope_app.testing"]

WITHIN = 3


@pytest.fixture
def took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str, str], float]:
    """Seconds of processor time that the stages of a run took."""
    monkeypatch.setenv("MSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    seconds: list[float] = []

    def timed(stage: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            began = time.process_time()
            result = stage(*values)
            seconds.append(time.process_time() - began)
            return result

        return run

    monkeypatch.setattr(Stages, "fold", timed(Stages.fold))
    monkeypatch.setattr(Stages, "once", timed(Stages.once))

    def of(checkpoint: Path, train: str, queries: str) -> float:
        params = ScoresParams(train=train, queries=queries, fisher="empirical", baselines=False)
        run_in_process(scores.run, params, tmp_path / "run", [checkpoint])
        return sum(seconds)

    return of


def test_an_mlp(tmp_path: Path, took: Callable[[Path, str, str], float]) -> None:
    layers = [torch.nn.Linear(784, 256), torch.nn.Linear(256, 256), torch.nn.Linear(256, 10)]
    (tmp_path / "model").mkdir()
    tensors = {f"layers.{at}.{name}": tensor.detach() for at, layer in enumerate(layers) for name, tensor in layer.named_parameters()}
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    config = {"model_type": "mlp", "layer_sizes": [784, 256, 256, 10], "activation": "relu"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    train, queries = (
        written_rows(tmp_path / name, [{"features": torch.rand(784).tolist(), "label": at % 10} for at in range(count)])
        for name, count in (("train.jsonl", 1500), ("queries.jsonl", 40))
    )
    sizes = Sizes([(256, 785), (256, 257), (10, 257)], 269_322, 1500, 1500, 1024)
    assert_near(sizes, 40, took(tmp_path / "model", train, queries))


def test_a_tiny_llama(tmp_path: Path, took: Callable[[Path, str, str], float]) -> None:
    checkpoint = saved_llama(tmp_path / "model", width=128, layers=4)
    train, queries = (
        written_rows(tmp_path / name, [{"input_ids": torch.randint(3, 30, (48,)).tolist()} for _ in range(count)])
        for name, count in (("train.jsonl", 100), ("queries.jsonl", 4))
    )
    shapes = [(256, 128), (256, 128), (128, 256)] * 4
    parameters = 4 * (4 * 128**2 + 3 * 128 * 256) + 128 * 31
    assert_near(Sizes(shapes, parameters, 100, 4800, 1024), 4, took(checkpoint, train, queries))


def assert_near(sizes: Sizes, queries: int, seconds: float) -> None:
    at = speed("cpu", threads=1)
    said = fitting_seconds(sizes, "ekfac", 1, at) + scoring_seconds(sizes, queries, "ekfac", at)
    print(f"said {said:.2f} s, took {seconds:.2f} s")
    assert seconds / WITHIN < said < seconds * WITHIN


def test_more_of_anything_takes_longer() -> None:
    small, at = Sizes([(64, 32)], 10_000, 100, 2000, 256), speed("cpu", threads=2)
    for method in ("ekfac", "kfac", "diagonal"):
        assert fitting_seconds(small._replace(rows=200, positions=4000), method, 1, at) > fitting_seconds(small, method, 1, at)
        assert fitting_seconds(small, method, 4, at) > fitting_seconds(small, method, 1, at)
    assert fitting_seconds(small, "ekfac", 1, at) > fitting_seconds(small, "diagonal", 1, at)
    assert fitting_seconds(small, "identity", 1, at) == 0
    assert scoring_seconds(small, 10, "ekfac", at) > scoring_seconds(small, 0, "ekfac", at)
    assert scoring_seconds(small, 10, "ekfac", at, passes=2) > scoring_seconds(small, 10, "ekfac", at)
    assert speed("cuda").operations > speed("cpu", 2).operations > speed("cpu", 1).operations


def test_nothing_of_torch_is_imported() -> None:
    code = "import sys, modelscope_influence.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_estimate_of_a_run_says_how_long_and_how_much(tmp_path: Path) -> None:
    """From headers and the size of the file: longer for more rows and queries, unknown for a file that is not lines."""
    checkpoint = open_checkpoint(saved_llama(tmp_path / "model", width=64))
    few, many = (
        written_rows(tmp_path / f"{count}.jsonl", [{"input_ids": list(range(3, 25))} for _ in range(count)]) for count in (50, 500)
    )
    asked = {"queries": few, "modules": "mlp"}
    small, large = (scores_estimate([checkpoint], ScoresParams(train=train, **asked)) for train in (few, many))
    assert small.seconds and large.seconds and 3 < large.seconds / small.seconds < 30 and large.memory_bytes > small.memory_bytes
    fitting, alone = (
        of([checkpoint], params).seconds
        for of, params in ((factors_estimate, FactorsParams(train=few)), (self_estimate, SelfParams(train=few)))
    )
    assert fitting and alone and fitting < alone < small.seconds
    known = scores_estimate([checkpoint], ScoresParams(train=few, **asked, factors="run")).seconds
    assert known and known < small.seconds
    for params in (
        ScoresParams(train=few, **asked, prefilter=3),
        ScoresParams(train=few, **asked, curvature="ggn"),
        ScoresParams(train="x.parquet", **asked),
        ScoresParams(train=str(tmp_path / "missing.jsonl"), **asked),
    ):
        assert scores_estimate([checkpoint], params).seconds is None
    held, streamed = (
        scores_estimate([checkpoint], ScoresParams(train=many, queries=many, top_k=top_k)).memory_bytes for top_k in (None, 1)
    )
    assert streamed <= held
