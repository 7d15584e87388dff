"""Bad input gets one sentence and exit 3, never a traceback: `mscope inspect` and `mscope run` on each kind of it."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from modelscope_app.cli.main import exit_code_of

SAMPLE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp"


def written(path: Path, header: dict[str, object], values: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)
    return path


def missing(folder: Path) -> Path:
    return folder / "nowhere"


def pickled(folder: Path) -> Path:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": [1.0]}))
    return folder


def torch_file(folder: Path) -> Path:
    (folder / "model.pt").write_bytes(pickle.dumps({"weight": [1.0]}))
    return folder / "model.pt"


def truncated(folder: Path) -> Path:
    shutil.copy(SAMPLE / "model.safetensors", folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    return folder


def header_longer_than_the_file(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 5000) + b"{}")
    return folder


def index_that_points_outside(folder: Path) -> Path:
    index = {"metadata": {}, "weight_map": {"weight": "../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def missing_shard(folder: Path) -> Path:
    index = {"weight_map": {"weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def overlapping(folder: Path) -> Path:
    entry = {"dtype": "F32", "shape": [2]}
    header = {"one": {**entry, "data_offsets": [0, 8]}, "two": {**entry, "data_offsets": [4, 12]}}
    return written(folder / "model.safetensors", header, bytes(12))


def empty_folder(folder: Path) -> Path:
    return folder


@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--json"], ["run", "weights.stats", "--json"]], ids=" ".join)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, ["nowhere"]),
        (pickled, ["pytorch_model.bin", "safetensors"]),
        (torch_file, ["model.pt", "safetensors"]),
        (truncated, ["model.safetensors", "truncated", "layers."]),
        (header_longer_than_the_file, ["model.safetensors", "longer than the file"]),
        (index_that_points_outside, ["index.json", "../../etc/passwd"]),
        (missing_shard, ["index.json", "model-00001-of-00001.safetensors"]),
        (overlapping, ["model.safetensors", "one", "two", "overlap"]),
        (empty_folder, ["safetensors"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_broken_checkpoint_is_one_sentence_and_exit_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, make: Callable[[Path], Path], words: list[str], command: list[str]
) -> None:
    path = make(tmp_path)
    assert exit_code_of([*command, str(path)]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    for word in words:
        assert word in printed.err


def test_a_tensor_name_with_escapes_is_shown_neutralised(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = "evil\x1b]0;owned\x07[bold]\u202ename"
    path = written(tmp_path / "model.safetensors", {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    assert exit_code_of(["inspect", "--tensors", str(path)]) == 0
    shown = capsys.readouterr().out
    assert r"evil\x1b]0;owned\x07[bold]\u202ename" in shown
    assert exit_code_of(["run", "weights.stats", str(path), "--quiet"]) == 0
    assert exit_code_of(["runs", "export", "latest"]) == 0
    printed = capsys.readouterr()
    for text in (shown, printed.out, printed.err, Path(printed.out.splitlines()[-1]).read_text()):
        assert not set("\x1b\x07\u202e") & set(text)


def test_a_checkpoint_of_another_shape_is_refused_by_tensor_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    path = written(tmp_path / "model.safetensors", {"layers.0.weight": entry}, bytes(4))
    assert exit_code_of(["run", "weights.diff", str(SAMPLE), str(path), "--quiet"]) == 3
    assert "layers.0" in capsys.readouterr().err


def test_a_folder_that_is_no_series_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["run", "weights.series", str(SAMPLE / "series" / "step_0")]) == 3
    assert "not a series" in capsys.readouterr().err
