"""Values: what is read is what safetensors' own library reads, and never from a file that changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import safetensors
import safetensors.torch
import torch
from checkpoints.checkpoint_files import entry, ramp, write_file, write_shard, write_sharded

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import open_checkpoint

TORCH_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor.flatten().to(torch.uint8)


@pytest.fixture
def of_every_dtype(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for dtype in TORCH_DTYPES:
        width = torch.empty((), dtype=dtype).element_size()
        raw = torch.randint(0, 2 if dtype is torch.bool else 256, (5 * 3 * width,), dtype=torch.uint8, generator=generator)
        tensors[str(dtype)] = raw.view(dtype).reshape(5, 3)
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.empty(0, 4)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, file)
    return file


def test_tensors_of_every_dtype_equal_those_of_the_reference_library(of_every_dtype: Path) -> None:
    checkpoint = open_checkpoint(of_every_dtype)
    reference = safetensors.torch.load_file(of_every_dtype)
    assert set(checkpoint.tensors) == set(reference)
    for name, expected in reference.items():
        found = checkpoint.tensor(name)
        assert (found.dtype, found.shape, found.device.type) == (expected.dtype, expected.shape, "cpu"), name
        assert torch.equal(as_bytes(found), as_bytes(expected)), name


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (0, 0), (1, 4), (4, 5), (5, 5)])
def test_rows_equal_rows_of_the_whole_tensor(start: int, stop: int, of_every_dtype: Path) -> None:
    checkpoint = open_checkpoint(of_every_dtype)
    for dtype in TORCH_DTYPES:
        rows, whole = checkpoint.rows(str(dtype), start, stop), checkpoint.tensor(str(dtype))
        assert (rows.shape, rows.dtype) == ((stop - start, 3), dtype)
        assert torch.equal(as_bytes(rows), as_bytes(whole[start:stop]))


def test_rows_read_no_other_byte(tmp_path: Path) -> None:
    """A sparse tensor of 4 GiB: reading it whole would need that much memory."""
    rows, columns = 1024, 2**20
    file = write_file(tmp_path / "model.safetensors", {"w": entry("F32", [rows, columns], 0, 4 * rows * columns)})
    os.truncate(file, file.stat().st_size + 4 * rows * columns)
    checkpoint = open_checkpoint(file)
    script = (
        "import resource, sys; from modelscope_app.checkpoints import open_checkpoint; import torch\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rows = open_checkpoint(sys.argv[1]).rows('w', 700, 702)\n"
        "assert rows.shape == (2, 2**20)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown_kib = int(subprocess.run([sys.executable, "-c", script, str(file)], check=True, capture_output=True, text=True).stdout)
    assert grown_kib < 100 * 1024  # two rows are 8 MiB
    assert checkpoint.tensors["w"].bytes == 2**32


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 4), (2, 1), (3, 5)])
def test_rows_that_are_not_there_are_refused(start: int, stop: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_shard(tmp_path / "a.safetensors", {"w": ramp(3, 2)}))
    with pytest.raises(BadInput, match="rows 0 to 2"):
        checkpoint.rows("w", start, stop)


def test_a_single_number_has_no_rows(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_shard(tmp_path / "a.safetensors", {"w": ramp()}))
    with pytest.raises(BadInput, match="no rows"):
        checkpoint.rows("w", 0, 1)


def test_each_tensor_is_read_from_its_own_shard(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path, {"x.safetensors": {"a": ramp(3), "b": ramp(2, start=7)}, "y.safetensors": {"c": ramp(2, 2, start=50)}})
    checkpoint = open_checkpoint(folder)
    for name, expected in {"a": ramp(3), "b": ramp(2, start=7), "c": ramp(2, 2, start=50)}.items():
        numpy.testing.assert_array_equal(checkpoint.tensor(name).numpy(), expected)


def test_a_value_that_is_read_can_be_changed_without_touching_the_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_shard(tmp_path / "a.safetensors", {"w": ramp(3)}))
    checkpoint.tensor("w").zero_()
    assert checkpoint.tensor("w").tolist() == [0.0, 1.0, 2.0]


def test_a_truth_value_is_zero_or_not_zero(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.safetensors", {"w": entry("BOOL", [4], 0, 4)}, bytes([0, 1, 2, 255]))
    tensor = open_checkpoint(file).tensor("w")
    assert tensor.tolist() == [False, True, True, True]
    assert tensor.sum().item() == 3


@pytest.mark.parametrize(
    ("dtype", "size", "said"), [("F4", 4, "several elements to a byte"), ("F6_E2M3", 6, "several elements"), ("X9", 4, "cannot read")]
)
def test_a_dtype_torch_lacks_is_refused_with_the_tensor_named(dtype: str, size: int, said: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_file(tmp_path / "a.safetensors", {"odd.w": entry(dtype, [8], 0, size)}, bytes(size)))
    for read in (lambda: checkpoint.tensor("odd.w"), lambda: checkpoint.rows("odd.w", 0, 2)):
        with pytest.raises(BadInput, match=said) as raised:
            read()
        assert "odd.w" in str(raised.value)


def test_a_wrong_name_suggests_the_nearest(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_shard(tmp_path / "a.safetensors", {"model.norm.weight": ramp(3)}))
    with pytest.raises(BadInput, match=r"did you mean model\.norm\.weight"):
        checkpoint.tensor("model.norm.wieght")


def test_a_file_that_was_rewritten_is_not_read(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a.safetensors", {"w": ramp(3)})
    checkpoint = open_checkpoint(file)
    write_shard(file, {"w": ramp(3, start=1)})
    os.utime(file, ns=(0, checkpoint.shards[0].state.modified_ns + 1_000_000))
    for read in (lambda: checkpoint.tensor("w"), lambda: checkpoint.rows("w", 0, 1), checkpoint.check_unchanged):
        with pytest.raises(BadInput, match="changed on disk"):
            read()


def test_a_file_that_was_replaced_is_not_read_though_size_and_time_agree(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a.safetensors", {"w": ramp(3)})
    checkpoint = open_checkpoint(file)
    other = write_shard(tmp_path / "b", {"w": ramp(3, start=1)})
    os.utime(other, ns=(0, checkpoint.shards[0].state.modified_ns))
    other.replace(file)
    with pytest.raises(BadInput, match="changed on disk"):
        checkpoint.tensor("w")


def test_a_file_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a.safetensors", {"w": ramp(3)})
    checkpoint = open_checkpoint(file)
    file.unlink()
    with pytest.raises(BadInput, match="does not exist"):
        checkpoint.tensor("w")
    with pytest.raises(BadInput, match="is gone"):
        checkpoint.check_unchanged()
