"""Holding a fold to its promise: whichever way its pass is split, merged and saved, the result is that of one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from modelscope_app.api import MergeableFold, Source

if TYPE_CHECKING:
    import torch


def assert_fold_merges(
    fold: MergeableFold[Any, Any], source: Source[Any], relative_tolerance: float = 1e-5, absolute_tolerance: float = 1e-7
) -> None:
    """Raise AssertionError unless merging passes over parts of `source` gives what one pass over all of it gives.

    Tried are: the same pass again (nothing may be kept outside the state), two halves in either order, every other batch,
    each batch alone, and a pass without a batch on either side. States go through safetensors before they are merged, as
    they do when a pass is sharded. `source` must have at least two batches; unequal ones find more. Floats agree within
    `absolute_tolerance + relative_tolerance * |value|`, not-a-number equals itself, everything else is equal.
    """
    plan = list(source.plan)
    if len(plan) < 2:
        raise AssertionError("assert_fold_merges needs a source of at least two batches")
    name = type(fold).__name__
    if not callable(getattr(fold, "merge", None)):
        raise AssertionError(f"{name} has no merge(a, b)")

    def state_of(batches: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        state = _checked(fold.start(), f"{name}.start")
        for ids in batches:
            state = _checked(fold.step(state, source.load(ids)), f"{name}.step")
        return _saved(state)

    def merged(*parts: Sequence[Sequence[int]]) -> Any:
        state = reduce(lambda a, b: _saved(_checked(fold.merge(a, b), f"{name}.merge")), [state_of(part) for part in parts])
        return fold.finish(state)

    expected = fold.finish(state_of(plan))
    middle = len(plan) // 2
    ways: Mapping[str, Callable[[], Any]] = {
        "the same pass again": lambda: fold.finish(state_of(plan)),
        "two halves merged": lambda: merged(plan[:middle], plan[middle:]),
        "two halves merged the other way round": lambda: merged(plan[middle:], plan[:middle]),
        "every other batch merged with the rest": lambda: merged(plan[::2], plan[1::2]),
        "single batches merged": lambda: merged(*([ids] for ids in plan)),
        "an empty pass merged with the whole": lambda: merged([], plan),
        "the whole merged with an empty pass": lambda: merged(plan, []),
    }
    for way, result in ways.items():
        difference = _difference(expected, result(), "result", relative_tolerance, absolute_tolerance)
        if difference:
            raise AssertionError(f"{name}: {way} and one pass differ: {difference}")


def _checked(state: Any, method: str) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(state, dict):
        raise AssertionError(f"{method} returns a {type(state).__name__}; the state of a fold is a flat dict of tensors")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise AssertionError(f"{method}: state[{key!r}] is a {type(value).__name__}; the state of a fold is a flat dict of tensors")
    return state


def _saved(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load, save

    stored: dict[str, torch.Tensor] = load(save({key: value.detach().clone().contiguous() for key, value in state.items()}))
    return stored


def _difference(expected: Any, found: Any, place: str, relative: float, absolute: float) -> str | None:
    """Where and how two results differ; None where they agree."""
    kind = type(expected).__module__.partition(".")[0]
    if kind == "torch" and type(found) is type(expected):
        return _tensor_difference(expected, found, place, relative, absolute)
    if kind == "polars" and type(found) is type(expected):
        if expected.schema != found.schema:
            return f"{place} has columns {dict(expected.schema)} and {dict(found.schema)}"
        return _difference(expected.to_dict(as_series=False), found.to_dict(as_series=False), place, relative, absolute)
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        if list(expected) != list(found):
            return f"{place} has keys {list(expected)} and {list(found)}"
        pairs = [(f"{place}[{key!r}]", expected[key], found[key]) for key in expected]
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(expected) != len(found):
            return f"{place} has {len(expected)} and {len(found)} values"
        pairs = [(f"{place}[{index}]", one, other) for index, (one, other) in enumerate(zip(expected, found, strict=True))]
    elif isinstance(expected, float) and isinstance(found, float):
        same = (
            (math.isnan(expected) and math.isnan(found))
            or expected == found
            or abs(expected - found) <= absolute + relative * abs(expected)
        )
        return None if same else f"{place} is {expected} and {found}"
    else:
        return None if type(expected) is type(found) and expected == found else f"{place} is {expected!r} and {found!r}"
    differences = (_difference(one, other, where, relative, absolute) for where, one, other in pairs)
    return next((difference for difference in differences if difference), None)


def _tensor_difference(expected: torch.Tensor, found: torch.Tensor, place: str, relative: float, absolute: float) -> str | None:
    import torch

    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"{place} is {expected.dtype} {tuple(expected.shape)} and {found.dtype} {tuple(found.shape)}"
    if not (expected.is_floating_point() or expected.is_complex()):
        return None if torch.equal(expected, found) else f"{place} has {int((expected != found).sum())} different elements"
    if torch.allclose(expected, found, rtol=relative, atol=absolute, equal_nan=True):
        return None
    largest = (expected.double() - found.double()).abs().nan_to_num(nan=math.inf).max() if not expected.is_complex() else math.nan
    return f"{place}, largest difference {float(largest):.3g}"
