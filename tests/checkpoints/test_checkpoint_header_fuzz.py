"""The header reader on bytes nobody meant to write: it refuses with BadInput or what it says holds, and nothing else happens."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import safetensors
from checkpoints.checkpoint_files import entry, file_bytes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import Shard, open_checkpoint, read_shard
from modelscope_app.checkpoints.dtypes import ELEMENT_BITS
from modelscope_app.checkpoints.overview import overview

VALUES = bytes(range(41))
VALID: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "model.layers.0.w": entry("F32", [2, 3], 0, 24),
    "model.layers.1.w": entry("BF16", [4], 24, 32),
    "empty": entry("I64", [0, 4], 32, 32),
    "scalar": entry("U8", [], 32, 33),
    "raw": entry("X9", [7], 33, 41),
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just(2**63) | st.just("F32"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def checked(raw: bytes) -> Shard | None:
    """What the reader makes of a file of these bytes: None where it refused, and otherwise everything it promises holds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.safetensors"
        file.write_bytes(raw)
        try:
            shard = read_shard(file)
        except BadInput as error:
            assert str(error).isprintable()
            return None
        covered = shard.data_start
        for header in sorted(shard.tensors, key=lambda header: (header.begin, header.end)):
            assert header.begin == covered <= header.end <= len(raw)
            assert all(size >= 0 for size in header.shape)
            if header.dtype in ELEMENT_BITS:
                assert header.parameters * ELEMENT_BITS[header.dtype] == 8 * header.bytes
            covered = header.end
        assert covered == len(raw)
        facts = overview(open_checkpoint(file))
        json.dumps(facts.to_json(), allow_nan=False).encode("ascii")
        if all(header.dtype in ELEMENT_BITS for header in shard.tensors) and b"-0" not in raw:
            reference = dict(safetensors.deserialize(raw))  # refuses by raising
            assert {header.name: list(header.shape) for header in shard.tensors} == {name: row["shape"] for name, row in reference.items()}
        return shard


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x02\0\0\0\0\0\0\0{}")
def test_random_bytes(raw: bytes) -> None:
    checked(raw)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120))
def test_random_headers_of_the_right_length(header: bytes) -> None:
    checked(file_bytes(b"{" + header))


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_a_valid_file_with_bytes_changed_added_and_removed(data: st.DataObject) -> None:
    raw = bytearray(file_bytes(VALID, VALUES))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        new = data.draw(st.sampled_from(b'0123456789-.,:"[]{}\\ueE \x00\xff') | st.integers(0, 255))
        kind = data.draw(st.sampled_from(["change", "add", "remove"]))
        if kind == "change":
            raw[position] = new
        elif kind == "add":
            raw.insert(position, new)
        elif len(raw) > 1:
            del raw[position]
    if data.draw(st.booleans()) and len(raw) > 8 + len(VALUES):
        raw[:8] = (len(raw) - 8 - len(VALUES)).to_bytes(8, "little")
    checked(bytes(raw))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_valid_header_with_values_replaced(data: st.DataObject) -> None:
    header = json.loads(json.dumps(VALID))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(list(header)))
        where = data.draw(st.sampled_from(["entry", "dtype", "shape", "data_offsets", "one offset", "one length"]))
        described = header[name]
        new = data.draw(JSON_VALUES)
        if where == "entry" or not isinstance(described, dict):
            header[name] = new
        elif where in ("dtype", "shape", "data_offsets"):
            described[where] = new
        else:
            numbers = described.get("data_offsets" if where == "one offset" else "shape")
            if isinstance(numbers, list) and numbers:
                numbers[data.draw(st.integers(0, len(numbers) - 1))] = data.draw(st.integers(-2, 45) | JSON_VALUES)
    checked(file_bytes(json.dumps(header).encode("utf-8", "surrogatepass"), VALUES))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=12), st.sampled_from(["U8", "BF16", "F32", "C64"]), st.lists(st.integers(0, 4), max_size=3)), max_size=8
    )
)
def test_every_correct_file_is_accepted(tensors: list[tuple[str, str, list[int]]]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, dtype, shape in tensors:
        if name in header or name == "__metadata__":
            continue
        size = ELEMENT_BITS[dtype] // 8
        for length in shape:
            size *= length
        header[name] = entry(dtype, shape, end, end + size)
        end += size
    shard = checked(file_bytes(header, bytes(end)))
    assert shard is not None
    assert [found.name for found in shard.tensors] == list(header)
