"""Headers: what is accepted says the truth about the file, and whatever is wrong is one sentence with file and tensor."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.numpy
from checkpoints.checkpoint_files import entry, file_bytes, ramp, write_file, write_shard

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import open_checkpoint, read_shard
from modelscope_app.checkpoints.dtypes import ELEMENT_BITS


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as raised:
        open_checkpoint(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_correct_file_is_read_as_the_reference_implementation_reads_it(tmp_path: Path) -> None:
    tensors = {"b.weight": ramp(3, 5), "a.bias": ramp(7), "scalar": ramp(), "none": ramp(0, 4)}
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt", "who": "ä"})
    shard = read_shard(file)
    raw = file.read_bytes()
    with safetensors.safe_open(file, "np") as reference:
        assert {header.name for header in shard.tensors} == set(reference.keys())
        assert shard.metadata == reference.metadata()
        for header in shard.tensors:
            assert header.dtype == "F32"
            assert header.shape == tuple(reference.get_slice(header.name).get_shape())
            assert raw[header.begin : header.end] == tensors[header.name].tobytes()
            assert header.parameters == tensors[header.name].size
            assert header.bytes == tensors[header.name].nbytes
            assert header.shard == "model.safetensors"


@pytest.mark.parametrize("dtype", sorted(ELEMENT_BITS))
def test_every_dtype_is_as_wide_as_the_reference_implementation_says(dtype: str, tmp_path: Path) -> None:
    elements = 8
    right_size = next(size for size in range(1, 129) if _reference_accepts(dtype, elements, size))
    header = {"t": entry(dtype, [elements], 0, right_size)}
    assert read_shard(write_file(tmp_path / "right.safetensors", header, bytes(right_size))).tensors[0].dtype == dtype
    wrong = write_file(tmp_path / "wrong.safetensors", {"t": entry(dtype, [elements], 0, right_size + 1)}, bytes(right_size + 1))
    assert f"{right_size} bytes" in refusal(wrong)


def _reference_accepts(dtype: str, elements: int, size: int) -> bool:
    try:
        safetensors.deserialize(file_bytes({"t": entry(dtype, [elements], 0, size)}, bytes(size)))
    except safetensors.SafetensorError as error:
        assert "unknown variant" not in str(error), "the reference implementation does not know this dtype"
        return False
    return True


def test_an_unknown_dtype_is_shown_as_it_is_spelled(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.safetensors", {"t": entry("F3_ODD", [5, 3], 0, 7), "u": entry("F32", [1], 7, 11)}, bytes(11))
    header = open_checkpoint(file).tensors["t"]
    assert (header.dtype, header.shape, header.bytes, header.parameters) == ("F3_ODD", (5, 3), 7, 15)


def test_the_range_of_an_unknown_dtype_is_still_checked(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.safetensors", {"t": entry("F3_ODD", [5, 3], 0, 12)}, bytes(11))
    assert "tensor t" in refusal(file)


def test_elements_of_four_bits_that_do_not_fill_a_byte_are_refused(tmp_path: Path) -> None:
    assert "1.5 bytes" in refusal(write_file(tmp_path / "a.safetensors", {"t": entry("F4", [3], 0, 2)}, bytes(2)))


def test_a_header_padded_with_spaces_is_read(tmp_path: Path) -> None:
    text = json.dumps({"t": entry("F32", [2], 0, 8)}) + " " * 13
    assert list(open_checkpoint(write_file(tmp_path / "a.safetensors", text, bytes(8))).tensors) == ["t"]


def test_ranges_may_stand_in_any_order(tmp_path: Path) -> None:
    file = write_file(tmp_path / "a.safetensors", {"late": entry("U8", [3], 2, 5), "early": entry("U8", [2], 0, 2)}, bytes(5))
    assert open_checkpoint(file).tensors["early"].end == open_checkpoint(file).tensors["late"].begin


def test_a_truncated_file_names_file_and_tensor(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "model.safetensors", {"kept": ramp(4), "cut.weight": ramp(4)})
    os.truncate(file, file.stat().st_size - 3)
    message = refusal(file)
    assert "truncated" in message
    assert "cut.weight" in message


def test_a_file_cut_inside_its_header_is_refused(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "model.safetensors", {"kept": ramp(4)})
    os.truncate(file, 30)
    assert "longer than the file" in refusal(file)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_without_room_for_the_length_is_refused(size: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(size))
    assert "too short" in refusal(file)


@pytest.mark.parametrize("length", [100_000_001, 2**32, 2**63, 2**64 - 1])
def test_a_header_beyond_the_cap_is_refused_before_it_is_read(length: int, tmp_path: Path) -> None:
    assert "100,000,000" in refusal(write_file(tmp_path / "a.safetensors", "{}", length=length))


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    assert "longer than the file" in refusal(write_file(tmp_path / "a.safetensors", "{}", length=99_000_000))


ENTRY = '{"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("", "does not begin with '{'"),
        (" {}", "does not begin with '{'"),
        ("[1]", "does not begin with '{'"),
        ("{", "not JSON"),
        ('{"a": 1} x', "not JSON"),
        ("{'a': 1}", "not JSON"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ('{"a\x01": 1}', "not JSON"),
        (b'{"\xff\xfe": 1}', "not UTF-8"),
        (b'{"a": \x00}', "not JSON"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        (f'{{"a": {ENTRY}, "a": {ENTRY}}}', "the key a appears twice"),
        (f'{{"a": {ENTRY}, "\\u0061": {ENTRY}}}', "the key a appears twice"),
        ('{"a": {"dtype": "U8", "dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}', "the key dtype appears twice"),
        (f'{{"__metadata__": {{"x": "1", "x": "2"}}, "a": {ENTRY}}}', "the key x appears twice"),
        (f'{{"\\ud800": {ENTRY}}}', "not valid Unicode"),
        (f'{{"__metadata__": {{"x": "\\udfff"}}, "a": {ENTRY}}}', "not valid Unicode"),
        ('{"a": {"dtype": "U8", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 1]}}', "thousands of digits"),
        (f'{{"__metadata__": [], "a": {ENTRY}}}', "__metadata__"),
        (f'{{"__metadata__": {{"x": 1}}, "a": {ENTRY}}}', "__metadata__"),
    ],
)
def test_a_header_that_is_not_the_right_json_is_refused(header: str | bytes, said: str, tmp_path: Path) -> None:
    assert said in refusal(write_file(tmp_path / "a.safetensors", header, bytes(1)))


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (None, "dtype, shape and two data_offsets"),
        (3, "dtype, shape and two data_offsets"),
        ("text", "dtype, shape and two data_offsets"),
        ([], "dtype, shape and two data_offsets"),
        ({}, "dtype, shape and two data_offsets"),
        ({"dtype": "U8", "shape": [1]}, "dtype, shape and two data_offsets"),
        ({"dtype": "U8", "shape": [1], "data_offsets": [0]}, "dtype, shape and two data_offsets"),
        ({"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}, "dtype, shape and two data_offsets"),
        ({"dtype": "U8", "shape": [1], "data_offsets": 1}, "dtype, shape and two data_offsets"),
        ({"dtype": "U8", "shape": [1], "data_offsets": {"0": 0, "1": 1}}, "two whole numbers"),
        ({"dtype": 8, "shape": [1], "data_offsets": [0, 1]}, "dtype has to be text"),
        ({"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}, "dtype has to be text"),
        ({"dtype": "U8", "shape": 1, "data_offsets": [0, 1]}, "shape a list"),
        ({"dtype": "U8", "shape": "1", "data_offsets": [0, 1]}, "shape a list"),
        ({"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}, "whole numbers"),
        ({"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}, "whole numbers"),
        ({"dtype": "U8", "shape": [None], "data_offsets": [0, 1]}, "whole numbers"),
        ({"dtype": "U8", "shape": [[1]], "data_offsets": [0, 1]}, "whole numbers"),
        ({"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}, "none negative"),
        ({"dtype": "U8", "shape": [-1, -1], "data_offsets": [0, 1]}, "none negative"),
        ({"dtype": "U8", "shape": [1], "data_offsets": [False, True]}, "whole numbers"),
        ({"dtype": "U8", "shape": [1], "data_offsets": [0, 1.0]}, "whole numbers"),
        ({"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}, "not a range"),
        ({"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}, "not a range"),
        ({"dtype": "U8", "shape": [1], "data_offsets": [-(10**4000), 1]}, "not a range"),
        ({"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}, "needs 2 bytes and its range has 1"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 1]}, "needs 4 bytes and its range has 1"),
        ({"dtype": "U8", "shape": [], "data_offsets": [0, 0]}, "needs 1 bytes and its range has 0"),
        ({"dtype": "U8", "shape": [2**40, 2**40], "data_offsets": [0, 1]}, "more elements than any file"),
        ({"dtype": "U8", "shape": [0, 10**4000], "data_offsets": [0, 0]}, "more elements than any file"),
        ({"dtype": "U8", "shape": [2] * 100_000, "data_offsets": [0, 1]}, "more elements than any file"),
        ({"dtype": "U8", "shape": [1], "data_offsets": [0, 10**4000]}, "truncated"),
        ({"dtype": "U8", "shape": [1], "data_offsets": [5, 6]}, "truncated"),
    ],
)
def test_a_wrong_entry_names_its_tensor(described: Any, said: str, tmp_path: Path) -> None:
    message = refusal(write_file(tmp_path / "a.safetensors", {"layer.weight": described}, bytes(1)))
    assert said in message
    assert "tensor layer.weight" in message


def test_overlapping_tensors_are_both_named(tmp_path: Path) -> None:
    header = {"one": entry("U8", [4], 0, 4), "two": entry("U8", [4], 3, 7)}
    message = refusal(write_file(tmp_path / "a.safetensors", header, bytes(7)))
    assert "overlap" in message
    assert "one" in message
    assert "two" in message


def test_two_tensors_on_the_same_bytes_overlap(tmp_path: Path) -> None:
    header = {"one": entry("U8", [4], 0, 4), "two": entry("I8", [4], 0, 4)}
    assert "overlap" in refusal(write_file(tmp_path / "a.safetensors", header, bytes(4)))


@pytest.mark.parametrize(
    ("header", "size", "said"),
    [
        ({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 3, 4)}, 4, "2 bytes before the tensor b"),
        ({"a": entry("U8", [1], 1, 2)}, 2, "1 bytes before the tensor a"),
        ({"a": entry("U8", [1], 0, 1)}, 4, "3 bytes after the tensor a"),
        ({}, 4, "4 bytes after the header"),
    ],
)
def test_bytes_that_belong_to_no_tensor_are_refused(header: dict[str, Any], size: int, said: str, tmp_path: Path) -> None:
    assert said in refusal(write_file(tmp_path / "a.safetensors", header, bytes(size)))


def test_a_name_with_terminal_escapes_is_neutralised_in_the_message(tmp_path: Path) -> None:
    message = refusal(write_file(tmp_path / "a.safetensors", {"w\x1b]0;owned\x07\u202e": entry("U8", [9], 0, 1)}, bytes(1)))
    assert "w\\x1b]0;owned\\x07\\u202e" in message
    assert message.isprintable()


def test_a_name_of_a_million_letters_does_not_fill_the_screen(tmp_path: Path) -> None:
    assert len(refusal(write_file(tmp_path / "a.safetensors", {"w" * 1_000_000: entry("U8", [9], 0, 1)}, bytes(1)))) < 1000


def test_an_unpulled_git_lfs_file_is_called_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    assert "git lfs pull" in refusal(file)


@pytest.mark.parametrize(("start", "said"), [(b"GGUF\x03\0\0\0", "GGUF"), (b"PK\x03\x04\0\0\0\0", "zip archive")])
def test_another_format_under_a_safetensors_name_is_recognised(start: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(start + bytes(100))
    assert said in refusal(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert "not a regular file" in refusal(tmp_path / "model.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_a_sentence(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "model.safetensors", {"a": ramp(2)})
    file.chmod(0)
    assert "ermission" in refusal(file)
