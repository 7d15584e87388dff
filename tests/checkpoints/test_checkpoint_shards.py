"""Several files and one checkpoint: index and shards agree, or one sentence names the file and the tensor that do not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from checkpoints.checkpoint_files import ramp, write_index, write_shard, write_sharded

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import open_checkpoint

ONE, TWO, THREE = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as raised:
        open_checkpoint(path)
    return str(raised.value)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_sharded(
        tmp_path / "sharded",
        {ONE: {"layers.10.w": ramp(2)}, TWO: {"layers.2.w": ramp(3), "layers.1.w": ramp(4)}, THREE: {"norm": ramp(5)}},
    )


def test_the_tensors_of_all_shards_come_in_natural_order(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert [(name, header.shard) for name, header in checkpoint.tensors.items()] == [
        ("layers.1.w", TWO),
        ("layers.2.w", TWO),
        ("layers.10.w", ONE),
        ("norm", THREE),
    ]
    assert checkpoint.parameters == 14
    assert checkpoint.bytes == 56


def test_an_index_file_can_be_named_itself(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded / "model.safetensors.index.json")
    assert checkpoint.path == sharded
    assert len(checkpoint.tensors) == 4


def test_an_index_of_another_name_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    write_shard(folder / "diffusion-1.safetensors", {"a": ramp(2)})
    write_shard(folder / "diffusion-2.safetensors", {"b": ramp(2)})
    write_index(folder, {"a": "diffusion-1.safetensors", "b": "diffusion-2.safetensors"}, "diffusion.safetensors.index.json")
    assert set(open_checkpoint(folder).tensors) == {"a", "b"}


def test_two_indexes_of_other_names_need_a_choice(tmp_path: Path) -> None:
    for part in ("text", "image"):
        write_shard(tmp_path / f"{part}.safetensors", {"a": ramp(2)})
        write_index(tmp_path, {"a": f"{part}.safetensors"}, f"{part}.safetensors.index.json")
    assert "several indexes" in refusal(tmp_path)
    assert len(open_checkpoint(tmp_path / "text.safetensors.index.json").tensors) == 1


def test_a_missing_shard_names_file_and_tensor(sharded: Path) -> None:
    (sharded / TWO).unlink()
    message = refusal(sharded)
    assert TWO in message
    assert "layers.2.w" in message


def test_a_shard_that_is_a_dead_link_is_an_error(sharded: Path) -> None:
    (sharded / TWO).unlink()
    (sharded / TWO).symlink_to(sharded / "gone")
    assert "link to a file that is gone" in refusal(sharded)


def test_a_truncated_shard_names_file_and_tensor(sharded: Path) -> None:
    os.truncate(sharded / TWO, (sharded / TWO).stat().st_size - 1)
    message = refusal(sharded)
    assert TWO in message
    assert "layers.1.w" in message


def test_an_extra_shard_of_the_same_numbering_names_file_and_tensor(sharded: Path) -> None:
    write_shard(sharded / "model-00004-of-00004.safetensors", {"left.over": ramp(2)})
    message = refusal(sharded)
    assert "extra shard" in message
    assert "model-00004-of-00004.safetensors" in message
    assert "left.over" in message


def test_other_safetensors_files_beside_the_shards_are_left_alone(sharded: Path) -> None:
    write_shard(sharded / "adapter_model.safetensors", {"lora": ramp(2)})
    write_shard(sharded / "consolidated.safetensors", {"norm": ramp(5)})
    checkpoint = open_checkpoint(sharded)
    assert len(checkpoint.tensors) == 4
    assert checkpoint.other_files == ("adapter_model.safetensors", "consolidated.safetensors")


def test_a_tensor_the_shard_lacks_names_file_and_tensor(sharded: Path) -> None:
    write_shard(sharded / TWO, {"layers.2.w": ramp(3)})
    message = refusal(sharded)
    assert "layers.1.w" in message
    assert TWO in message
    assert "lacks" in message


def test_a_tensor_the_index_does_not_name_names_file_and_tensor(sharded: Path) -> None:
    write_shard(sharded / THREE, {"norm": ramp(5), "stray": ramp(2)})
    message = refusal(sharded)
    assert "stray" in message
    assert THREE in message
    assert "does not name" in message


def test_a_tensor_in_two_shards_names_both_files(sharded: Path) -> None:
    write_shard(sharded / THREE, {"norm": ramp(5), "layers.2.w": ramp(3)})
    message = refusal(sharded)
    assert "layers.2.w" in message
    assert TWO in message
    assert THREE in message


def test_a_tensor_in_another_shard_than_the_index_says_is_an_error(sharded: Path) -> None:
    write_shard(sharded / TWO, {"layers.2.w": ramp(3)})
    write_shard(sharded / THREE, {"norm": ramp(5), "layers.1.w": ramp(4)})
    message = refusal(sharded)
    assert "layers.1.w" in message
    assert f"puts into {TWO}" in message


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "..",
        ".",
        "",
        "a\0b.safetensors",
        "pytorch_model.bin",
        "model.safetensors.exe",
    ],
)
def test_an_index_may_only_name_plain_safetensors_files(name: str, sharded: Path) -> None:
    write_index(sharded, {"layers.10.w": ONE, "evil.tensor": name})
    message = refusal(sharded)
    assert "evil.tensor" in message
    assert "model.safetensors.index.json" in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "weight_map"),
        ('{"weight_map": []}', "weight_map"),
        ('{"weight_map": {"a": 1}}', "weight_map"),
        ('{"weight_map": {}}', "no tensor"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "the key a appears twice"),
        ('{"weight_map": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_wrong_index_is_refused(text: str, said: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    message = refusal(sharded)
    assert said in message
    assert "model.safetensors.index.json" in message


def test_an_index_that_is_not_utf8_is_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(b'{"weight_map": {"\xff": "a"}}')
    assert "not UTF-8" in refusal(sharded)


def test_a_folder_without_index_is_all_of_its_files(tmp_path: Path) -> None:
    write_shard(tmp_path / "part_a.safetensors", {"a": ramp(2)}, {"format": "pt"})
    write_shard(tmp_path / "part_b.safetensors", {"b": ramp(3)}, {"made": "by hand"})
    checkpoint = open_checkpoint(tmp_path)
    assert [shard.name for shard in checkpoint.shards] == ["part_a.safetensors", "part_b.safetensors"]
    assert checkpoint.metadata == {"format": "pt", "made": "by hand"}
    assert checkpoint.config is None


def test_a_folder_whose_files_share_a_tensor_names_both(tmp_path: Path) -> None:
    write_shard(tmp_path / "full.safetensors", {"a": ramp(2)})
    write_shard(tmp_path / "half.safetensors", {"a": ramp(2)})
    message = refusal(tmp_path)
    assert "full.safetensors" in message
    assert "half.safetensors" in message
    assert "tensor a" in message


@pytest.mark.parametrize(("there", "missing"), [((1, 3), 2), ((1, 2), 3), ((2, 3), 1), ((3,), 1)])
def test_a_gap_in_numbered_shards_without_index_names_the_missing_file(there: tuple[int, ...], missing: int, tmp_path: Path) -> None:
    for number in there:
        write_shard(tmp_path / f"model-0000{number}-of-00003.safetensors", {f"t{number}": ramp(2)})
    assert f"lacks model-0000{missing}-of-00003.safetensors" in refusal(tmp_path)


def test_model_safetensors_wins_over_an_index_that_does_not_name_it(sharded: Path) -> None:
    write_shard(sharded / "model.safetensors", {"whole": ramp(2)})
    checkpoint = open_checkpoint(sharded)
    assert list(checkpoint.tensors) == ["whole"]
    assert checkpoint.other_files == (ONE, TWO, THREE)


def test_an_index_that_names_model_safetensors_is_followed(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"model.safetensors": {"a": ramp(2)}, "more.safetensors": {"b": ramp(2)}})
    assert list(open_checkpoint(tmp_path).tensors) == ["a", "b"]


def test_an_index_is_checked_whatever_its_metadata_says(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["metadata"] = {"total_size": 12.5, "nested": {"deep": [None]}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(open_checkpoint(sharded).tensors) == 4
