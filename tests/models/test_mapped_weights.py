"""Weights are usable at once and soon independent of the file they came from."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models.tiny_models import GATED, batch_of, prompts, saved_model
from safetensors.torch import save_file

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.models import build_model, mapping
from modelscope_app.models.stored_values import stored_values

CPU = torch.device("cpu")
BATCH = batch_of(prompts(6))
needs_mapping = pytest.mark.skipif(not mapping.can_be_mapped(), reason="no mremap here")


def shared_bytes(file: Path) -> int:
    """Bytes of this process's memory that are mapped from that file."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            first, last = line.split()[0].split("-")
            total += int(last, 16) - int(first, 16)
    return total


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(3_000_000, dtype=torch.float32), "b": torch.ones(5, 7, dtype=torch.bfloat16)}, path)
    return path


@needs_mapping
def test_settled_weights_share_nothing_with_their_file(file: Path) -> None:
    values = stored_values(open_checkpoint(file), {"a": torch.float32, "b": torch.bfloat16}, CPU)
    values.files[0].settled()
    assert shared_bytes(file) == 0
    os.truncate(file, 0)  # touching a shared page of a truncated file would end the process
    assert torch.equal(values.tensors["a"], torch.arange(3_000_000, dtype=torch.float32))
    assert torch.equal(values.tensors["b"], torch.ones(5, 7, dtype=torch.bfloat16))


@needs_mapping
def test_a_models_logits_survive_its_file(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "llama", "llama", GATED)
    model = build_model(open_checkpoint(folder), device="cpu")
    before = model.logits(BATCH)
    model.settled()
    (folder / "model.safetensors").write_bytes(b"something else")
    assert torch.equal(model.logits(BATCH), before)


@needs_mapping
def test_writing_to_a_settled_weight_leaves_the_file_alone(file: Path) -> None:
    content = file.read_bytes()
    values = stored_values(open_checkpoint(file), {"a": torch.float32}, CPU)
    values.files[0].settled()
    values.tensors["a"].fill_(1)
    assert file.read_bytes() == content


@needs_mapping
def test_values_can_be_read_at_every_moment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_STEP_BYTES", 1 << 16)
    expected = torch.arange(3_000_000, dtype=torch.float32)
    for _ in range(3):
        values = stored_values(open_checkpoint(file), {"a": torch.float32}, CPU)
        reads = 0
        while values.files[0]._thread.is_alive() or not reads:
            assert torch.equal(values.tensors["a"], expected)
            reads += 1
        values.files[0].settled()
        assert torch.equal(values.tensors["a"], expected)


@needs_mapping
def test_the_module_is_handed_out_once_its_weights_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved_model(tmp_path / "llama", "llama", GATED)
    real, may_go_on = mapping._replace_by_copy, threading.Event()

    def waiting(*arguments: int) -> None:
        may_go_on.wait(30)
        real(*arguments)

    monkeypatch.setattr(mapping, "_replace_by_copy", waiting)
    model = build_model(open_checkpoint(folder), device="cpu")
    before = model.logits(BATCH)  # needs no waiting
    assert shared_bytes(folder / "model.safetensors") > 0
    threading.Timer(0.2, may_go_on.set).start()
    assert model.module is model.unsettled_module
    assert shared_bytes(folder / "model.safetensors") == 0
    assert torch.equal(model.logits(BATCH), before)


@needs_mapping
@pytest.mark.parametrize(
    ("change", "sentence"), [(lambda file: os.utime(file, (1, 1)), "changed"), (lambda file: os.truncate(file, 100_000), "became shorter")]
)
def test_a_file_rewritten_while_it_is_copied_is_noticed(
    file: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], sentence: str
) -> None:
    real = mapping._replace_by_copy

    def after_the_change(*arguments: int) -> None:
        change(file)
        real(*arguments)

    monkeypatch.setattr(mapping, "_replace_by_copy", after_the_change)
    values = stored_values(open_checkpoint(file), {"a": torch.float32}, CPU)
    with pytest.raises(BadInput, match=rf"model\.safetensors {sentence} while it was loaded; run again"):
        values.files[0].settled()


def test_values_are_the_same_where_nothing_can_be_mapped(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelscope_app.models.stored_values.can_be_mapped", lambda: False)
    values = stored_values(open_checkpoint(file), {"a": torch.float32, "b": torch.bfloat16}, CPU)
    assert not values.files
    assert torch.equal(values.tensors["a"], torch.arange(3_000_000, dtype=torch.float32))
    assert torch.equal(values.tensors["b"], torch.ones(5, 7, dtype=torch.bfloat16))


def test_a_cast_value_equals_the_cast_of_the_value(file: Path) -> None:
    checkpoint = open_checkpoint(file)
    values = stored_values(checkpoint, {"a": torch.bfloat16, "b": torch.float64}, CPU)
    assert torch.equal(values.tensors["a"], checkpoint.tensor("a").bfloat16())
    assert torch.equal(values.tensors["b"], checkpoint.tensor("b").double())


def test_unaligned_values_are_read_right(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    header += b" " * ((1 - len(header)) % 4)  # so that the values begin at an odd address
    values = torch.tensor([1.0, 2.0, 3.0])
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.numpy().tobytes())
    assert open_checkpoint(path).tensors["x"].begin % 4 == 1
    assert torch.equal(stored_values(open_checkpoint(path), {"x": torch.float32}, CPU).tensors["x"], values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_file_that_became_shorter_is_named(file: Path, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(file)
    os.truncate(file, 1000)
    with pytest.raises(BadInput, match=r"model\.safetensors ends before the values"):
        stored_values(checkpoint, {"a": dtype}, CPU)
    file.unlink()
    with pytest.raises(BadInput, match=r"model\.safetensors: No such file"):
        stored_values(checkpoint, {"a": dtype}, CPU)
