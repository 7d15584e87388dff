"""A series: members in the order of their steps, and nothing that is not one run."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints.checkpoint_files import ramp, write_shard

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import is_series, is_series_only, open_checkpoint, open_series


def make(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        file = folder / name if name.endswith(".safetensors") else folder / name / "model.safetensors"
        write_shard(file, {"w": ramp(2, start=number)})
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as raised:
        open_series(path)
    return str(raised.value)


@pytest.mark.parametrize(
    "names",
    [
        ("checkpoint-100", "checkpoint-20", "checkpoint-3"),
        ("step_100", "step_20", "step_3"),
        ("step100", "step20", "step3"),
        ("global_step100", "global_step20", "global_step3"),
        ("epoch-100", "epoch-20", "epoch-3"),
        ("iter_0000100", "iter_0000020", "iter_0000003"),
        ("step_100.safetensors", "step_20.safetensors", "step_3.safetensors"),
    ],
)
def test_members_come_in_the_order_of_their_steps(names: tuple[str, ...], tmp_path: Path) -> None:
    series = open_series(make(tmp_path, *names))
    assert series.steps == (3, 20, 100)
    assert [checkpoint.path.name for checkpoint in series.checkpoints] == list(reversed(names))
    assert [checkpoint.tensor("w")[0].item() for checkpoint in series.checkpoints] == [2.0, 1.0, 0.0]
    assert is_series(tmp_path)
    assert is_series_only(tmp_path)


def test_other_files_and_folders_are_no_members(tmp_path: Path) -> None:
    make(tmp_path, "checkpoint-1", "checkpoint-2", "final", "mycheckpoint-3", "checkpoint-4-old")
    (tmp_path / "checkpoint-5").write_text("a file")
    (tmp_path / "trainer_state.json").write_text("{}")
    assert open_series(tmp_path).steps == (1, 2)


def test_a_trainers_folder_is_a_checkpoint_and_a_series(tmp_path: Path) -> None:
    make(tmp_path, "checkpoint-1", "checkpoint-2", "model.safetensors")
    assert is_series(tmp_path)
    assert not is_series_only(tmp_path)
    assert open_series(tmp_path).steps == (1, 2)
    assert open_checkpoint(tmp_path).tensors


@pytest.mark.parametrize("names", [("step_1", "step_2"), ("step_1.safetensors", "step_2.safetensors")])
def test_a_series_is_not_one_checkpoint(names: tuple[str, ...], tmp_path: Path) -> None:
    make(tmp_path, *names)
    with pytest.raises(BadInput, match="series of checkpoints") as raised:
        open_checkpoint(tmp_path)
    assert names[0] in str(raised.value)


def test_members_that_count_different_things_are_refused(tmp_path: Path) -> None:
    message = refusal(make(tmp_path, "step_100", "epoch-3"))
    assert "step_100" in message
    assert "epoch-3" in message


@pytest.mark.parametrize("names", [("step_1", "step_01"), ("step_1", "step_1.safetensors"), ("step_1", "step-1")])
def test_the_same_step_twice_is_refused(names: tuple[str, str], tmp_path: Path) -> None:
    message = refusal(make(tmp_path, *names))
    assert all(name in message for name in names)


def test_what_is_no_series_says_so(tmp_path: Path) -> None:
    make(tmp_path, "final")
    assert "is not a series" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "nothing")
    assert "is a file" in refusal(tmp_path / "final" / "model.safetensors")
    assert not is_series(tmp_path)
    assert not is_series(tmp_path / "nothing")
    assert not is_series(tmp_path / "final" / "model.safetensors")


def test_a_broken_member_is_named_when_the_members_are_opened(tmp_path: Path) -> None:
    make(tmp_path, "step_1", "step_2")
    (tmp_path / "step_2" / "model.safetensors").write_bytes(b"x")
    series = open_series(tmp_path)
    with pytest.raises(BadInput, match="step_2"):
        _ = series.checkpoints


def test_members_of_the_same_shapes_pass(tmp_path: Path) -> None:
    series = open_series(make(tmp_path, "step_1", "step_2"))
    series.check_same_shapes()
    assert series.shape_differences() == []


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"w": ramp(3)}, "step_2 has w of shape [3], and in step_1 it is [2]"),
        ({"v": ramp(2), "w": ramp(2)}, "step_2 has the tensor v, and step_1 lacks it"),
        ({}, "step_2 lacks the tensor w of step_1"),
    ],
)
def test_members_that_differ_are_named_with_the_tensor(tensors: dict, said: str, tmp_path: Path) -> None:
    make(tmp_path, "step_1")
    write_shard(tmp_path / "step_2" / "model.safetensors", tensors)
    with pytest.raises(BadInput) as raised:
        open_series(tmp_path).check_same_shapes()
    assert said in str(raised.value)
