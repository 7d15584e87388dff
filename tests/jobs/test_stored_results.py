"""What a stage hands over comes back from the disk equal, bit for bit."""

from __future__ import annotations

import math
from collections import namedtuple
from pathlib import Path
from typing import Any

import polars
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelscope_app.jobs.stored import is_stored, load, store

tensors = st.builds(
    lambda shape, dtype, seed: torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]),
    st.integers(0, 2**31),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | tensors,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=6) | st.sampled_from(["$tensor", "$float", "$", "$$tuple"]), inner, max_size=4)
        | st.dictionaries(st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and a.cpu().tolist() == b.tolist()
    if isinstance(a, float):
        both_nan = isinstance(b, float) and math.isnan(a) and math.isnan(b)
        return both_nan or (isinstance(b, float) and a == b and math.copysign(1, a) == math.copysign(1, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values)
def test_what_is_stored_comes_back_equal(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.mktemp("stage")
    store(folder, value)
    assert same(load(folder), value)


def test_nan_infinity_negative_zero_and_frames_come_back(tmp_path: Path) -> None:
    frame = polars.DataFrame({"a": [1, None], "b": ["x", "y"], "c": [[1.0], [float("nan")]]})
    value = {"nan": float("nan"), "inf": (-math.inf, -0.0), "frame": frame, "tensor": torch.tensor([float("nan"), -0.0])}
    store(tmp_path, value)
    back = load(tmp_path)
    assert math.isnan(back["nan"])
    assert back["inf"] == (-math.inf, 0.0)
    assert math.copysign(1, back["inf"][1]) == -1
    assert back["frame"].equals(frame, null_equal=True)
    assert torch.equal(back["tensor"].view(torch.int32), value["tensor"].view(torch.int32))  # type: ignore[attr-defined]


def test_tensors_that_share_memory_are_stored_apart(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    store(tmp_path, [base, base[2:5], base.reshape(3, 4).T])
    whole, part, turned = load(tmp_path)
    assert torch.equal(whole, base)
    assert torch.equal(part, base[2:5])
    assert torch.equal(turned, base.reshape(3, 4).T)


@pytest.mark.parametrize(
    "value", [{1, 2}, namedtuple("P", "x")(1), object(), {"a": b"bytes"}], ids=["set", "namedtuple", "object", "bytes"]
)
def test_what_cannot_be_stored_is_refused_and_leaves_no_result(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="cannot hold"):
        store(tmp_path, value)
    assert not is_stored(tmp_path)
