"""The weights analyses as commands: whole processes on the sample checkpoints."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

SAMPLE = Path(__file__).resolve().parents[3] / "sample_checkpoints" / "digits-mlp"
OTHER = SAMPLE.with_name("digits-mlp-b")
MSCOPE = Path(sys.executable).with_name("mscope")


def mscope(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(MSCOPE), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def done(*arguments: object) -> dict[str, Any]:
    ended = mscope("run", *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout))


def test_stats_of_the_sample_checkpoint_are_those_of_its_values() -> None:
    found = done("weights.stats", SAMPLE, "--bins", 10)
    tensors = load_file(SAMPLE / "model.safetensors")
    assert found["facts"]["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert found["facts"]["all_finite"] is True
    table = pl.read_parquet(found["tables"]["tensors"])
    assert table["tensor"].to_list() == sorted(tensors)
    for name, norm, deviation in table.select("tensor", "norm", "std").iter_rows():
        wide = tensors[name].to(torch.float64)
        assert (norm, deviation) == pytest.approx((float(wide.norm()), float(wide.std(correction=0))), rel=1e-12)
    assert pl.read_parquet(found["tables"]["histograms"]).height == 10 * len(tensors)


def test_diff_of_the_sample_checkpoints_is_that_of_their_values() -> None:
    found = done("weights.diff", SAMPLE, OTHER)
    before, after = (load_file(folder / "model.safetensors") for folder in (SAMPLE, OTHER))
    change = torch.cat([(after[name].double() - before[name].double()).reshape(-1) for name in before])
    norm = torch.cat([tensor.double().reshape(-1) for tensor in before.values()]).norm()
    assert found["facts"]["relative_change"] == pytest.approx(float(change.norm() / norm), rel=1e-12)
    row = pl.read_parquet(found["tables"]["tensors"]).filter(tensor="layers.0.weight").row(0, named=True)
    sigma = torch.linalg.svdvals(after["layers.0.weight"].double() - before["layers.0.weight"].double())
    assert row["sigma_max"] == pytest.approx(float(sigma[0]), rel=1e-12)


def test_the_series_of_the_sample_checkpoint_moves_ever_less() -> None:
    found = done("weights.series", SAMPLE / "series")
    steps = pl.read_parquet(found["tables"]["steps"]).filter(module="(all)")
    assert steps["step"].to_list() == sorted(int(path.name.split("_")[1]) for path in (SAMPLE / "series").iterdir() if path.is_dir())
    assert found["facts"]["checkpoints"] == steps.height
    assert steps["norm"][-1] == pytest.approx(found["facts"]["last_norm"])
    assert steps["update_ratio"][1] > steps["update_ratio"][-1] > steps["rounding_ratio"][-1]


def test_checkpoints_of_other_shapes_end_with_a_sentence_and_exit_code_3(written: Any) -> None:
    smaller = written({name: tensor[:3] for name, tensor in load_file(SAMPLE / "model.safetensors").items()})
    ended = mscope("run", "weights.diff", SAMPLE, smaller.path)
    assert ended.returncode == 3
    assert "differ in shape: layers.0.bias [64] and [3]" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_checkpoint_with_nan_is_reported_and_fails_an_assertion(written: Any) -> None:
    spoilt = written({"good": torch.ones(3, 3), "bad\x1b[31m": torch.tensor([float("nan"), 1.0])})
    ended = mscope("run", "weights.stats", spoilt.path, "--assert", "nan == 0")
    assert ended.returncode == 5
    assert "NaN or infinity in 1 of 2 tensors" in ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr


_PEAK = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[1])
from conftest import MemoryContext, Steps
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.jobs.memory import mark_peak, peak_bytes, resident_bytes
from modelscope_weights import analyses, estimates, params

class StoringContext(MemoryContext):
    def table(self, name, frame):
        super().table(name, frame)
        frame.write_parquet(Path(sys.argv[3]) / name)

def run(checkpoints):
    series = [Steps(Path(), range(len(checkpoints)), checkpoints)] if name == "series" else ()
    getattr(analyses, name)(StoringContext(checkpoints, series), options)

name, paths = sys.argv[2], sys.argv[5:]
options = getattr(params, name.title() + "Params")(**{key: int(value) for key, _, value in [sys.argv[4].partition("=")] if key})
practice = []
for number in range(len(paths)):
    folder = Path(sys.argv[3]) / f"practice_{number}"
    folder.mkdir()
    save_file({"embed_tokens.weight": torch.randn(96, 64).bfloat16(), "wide": torch.randn(4, 2)}, folder / "model.safetensors")
    practice.append(open_checkpoint(folder))
run(practice)
checkpoints = [open_checkpoint(path) for path in paths]
mark_peak()
before = resident_bytes()
run(checkpoints)
print(peak_bytes() - before, getattr(estimates, name + "_estimate")(checkpoints, options).memory_bytes)
"""


def peak_and_estimate(analysis: str, folder: Path, options: str, *checkpoints: Any) -> tuple[int, int]:
    """Bytes that a whole analysis needs beside the code it runs, tables written, and what its estimate says.

    It practises on a small checkpoint first. Otherwise the pages of torch's and polars' own code that it is the first to use
    count as its own: 24 MB from libraries read from disk, 36 MB from libraries just installed (larger pages in the page cache).
    glibc is told to give large buffers back as they are freed. Left alone it learns, from the order in which threads happen to
    free them, to keep some, and the same work then peaks anywhere within a factor of 1.6.
    """
    command = [sys.executable, "-c", _PEAK, Path(__file__).parent, analysis, folder, options, *(each.path for each in checkpoints)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(256 << 10)}
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    peak, estimate = ended.stdout.split()
    return int(peak), int(estimate)


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="a high-water mark can be set on Linux alone")
@pytest.mark.parametrize(("analysis", "share"), [("stats", 0.08), ("diff", 0.25)])
def test_memory_stays_far_below_the_model(written: Any, analysis: str, share: float, tmp_path: Path) -> None:
    shapes = {"embed_tokens.weight": (120_000, 512), **{f"layers.{layer}.weight": (1536, 512) for layer in range(12)}}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}
    a, b = (written({name: tensor * factor for name, tensor in tensors.items()}, str(factor)) for factor in (1, 2))
    model_bytes = sum(header.bytes for header in a.tensors.values())
    peak, _ = peak_and_estimate(analysis, tmp_path, "", *((a,) if analysis == "stats" else (a, b)))
    assert peak < share * model_bytes


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="a high-water mark can be set on Linux alone")
def test_many_histograms_cost_what_the_estimate_says(written: Any, tmp_path: Path) -> None:
    tensors = {f"model.layers.{layer}.mlp.experts.{layer}.w1.weight": torch.randn(4, 2) for layer in range(5000)}
    peak, estimate = peak_and_estimate("stats", tmp_path, "bins=512", written(tensors))
    assert peak < estimate < 5000 * 512 * 80


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="a high-water mark can be set on Linux alone")
def test_a_series_of_long_rows_keeps_four_of_them_as_they_are_stored(written: Any, tmp_path: Path) -> None:
    members = [written({"experts": torch.full((1, 8, 1 << 20), float(step), dtype=torch.bfloat16)}, f"step_{step}") for step in range(6)]
    peak, estimate = peak_and_estimate("series", tmp_path, "", *members)
    row_bytes = 8 * (1 << 20) * 2
    assert peak < estimate
    assert peak < 4 * row_bytes + (24 << 20)  # in float64, the last three of a row alone would take 12 of it


REPOSITORY = SAMPLE.parents[1]
_EXAMPLES = [
    line for line in (REPOSITORY / "docs" / "analyses" / "weights.md").read_text().splitlines() if line.startswith("mscope run weights.")
]


@pytest.fixture
def shorthands(written: Any, tmp_path: Path) -> dict[str, str]:
    """What the capital words in the documentation's examples stand for."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed_tokens.weight": (60, 8), "layers.0.mlp.weight": (20, 8), "layers.0.mlp.bias": (20,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    model, other = written(tensors, "base"), written({name: tensor * 1.5 for name, tensor in tensors.items()}, "finetuned")
    paths = {"MODEL": model.path, "BASE": model.path, "FINETUNED": other.path, "RUN": tmp_path / "RUN"}
    return {word: str(path) for word, path in paths.items()}


@pytest.mark.parametrize("example", _EXAMPLES)
def test_the_examples_in_the_documentation_run(example: str, shorthands: dict[str, str]) -> None:
    words = [shorthands.get(word, word) for word in shlex.split(example)]
    ended = subprocess.run([str(MSCOPE), *words[1:]], capture_output=True, text=True, timeout=120, check=False, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stderr


def test_the_documentation_has_examples_of_all_three() -> None:
    assert {example.split()[2] for example in _EXAMPLES} == {"weights.stats", "weights.diff", "weights.series"}


def test_a_gate_on_the_change_does_not_open_where_nothing_was_compared(written: Any) -> None:
    unknown = written({"w": torch.full((2, 2), float("nan"))})
    ended = mscope("run", "weights.diff", unknown.path, unknown.path, "--assert", "relative_change < 0.01")
    assert ended.returncode == 5, ended.stderr
