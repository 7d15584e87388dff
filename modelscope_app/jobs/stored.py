"""Results on disk: nested dicts, lists and tuples of tensors, polars frames and plain values, stored and read back equal.

    <folder>/tensors.safetensors   every tensor, by number
    <folder>/frame-<n>.parquet     every frame
    <folder>/result.json           the shape of it all; written last, so a folder with it is whole

What comes back is what went in: same nesting, same bits, NaN and infinity included. Named tuples would come back as plain
ones, so they are refused; hand over a dict.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_app.api import JobFailed
from modelscope_app.runs.atomic import replacing

if TYPE_CHECKING:
    import polars
    import torch

_RESULT = "result.json"
_MARK = "$"
"""Begins the one key of an encoded object; a dict key that begins with it is escaped by doubling."""


def is_stored(folder: Path) -> bool:
    """Whether a whole result is there."""
    return (folder / _RESULT).is_file()


def store(folder: Path, value: Any) -> None:
    """Write `value` into `folder`. Raises TypeError for what cannot be stored."""
    import polars
    import torch
    from safetensors.torch import save_file

    tensors: list[torch.Tensor] = []
    frames: list[polars.DataFrame] = []

    def encoded(item: Any) -> Any:
        if item is None or isinstance(item, bool | int | str):
            return item
        if isinstance(item, float):
            return float(item) if math.isfinite(item) else {"$float": repr(float(item))}
        if isinstance(item, torch.Tensor):
            tensors.append(item)
            return {"$tensor": len(tensors) - 1}
        if isinstance(item, polars.DataFrame):
            frames.append(item)
            return {"$frame": len(frames) - 1}
        if type(item) is dict:
            if not all(isinstance(key, str) for key in item):
                return {"$pairs": [[encoded(key), encoded(part)] for key, part in item.items()]}
            return {(_MARK + key if key.startswith(_MARK) else key): encoded(part) for key, part in item.items()}
        if type(item) is list:
            return [encoded(part) for part in item]
        if type(item) is tuple:
            return {"$tuple": [encoded(part) for part in item]}
        raise TypeError(
            f"a stage's result cannot hold a {type(item).__name__}; use tensors, polars frames, plain values, dicts, lists, tuples"
        )

    tree = encoded(value)
    folder.mkdir(parents=True, exist_ok=True)
    if tensors:
        with replacing(folder / "tensors.safetensors") as part:
            save_file({str(number): on_disk(tensor) for number, tensor in enumerate(tensors)}, part)
    for number, frame in enumerate(frames):
        with replacing(folder / f"frame-{number}.parquet") as part:
            frame.write_parquet(part)
    with replacing(folder / _RESULT) as part:
        part.write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")


def load(folder: Path) -> Any:
    """The result that `store` wrote. Tensors come back on the CPU. Raises JobFailed where it is damaged."""
    try:
        return _loaded(folder)
    except Exception as error:  # safetensors and polars have errors of their own for what a damaged file may be
        raise JobFailed(
            f"{folder}: what is stored there is damaged ({type(error).__name__}); delete that folder and resume the run"
        ) from error


def _loaded(folder: Path) -> Any:
    import polars
    from safetensors.torch import load_file

    path = folder / "tensors.safetensors"
    tensors = load_file(path) if path.is_file() else {}

    def decoded(item: Any) -> Any:
        if isinstance(item, list):
            return [decoded(part) for part in item]
        if not isinstance(item, dict):
            return item
        match next(iter(item.items()), None) if len(item) == 1 else None:
            case ("$float", text):
                return float(text)
            case ("$tensor", number):
                return tensors[str(number)]
            case ("$frame", number):
                return polars.read_parquet(folder / f"frame-{number}.parquet")
            case ("$tuple", parts):
                return tuple(decoded(part) for part in parts)
            case ("$pairs", pairs):
                return {decoded(key): decoded(part) for key, part in pairs}
        return {key.removeprefix(_MARK): decoded(part) for key, part in item.items()}

    return decoded(json.loads((folder / _RESULT).read_text(encoding="utf-8")))


def on_disk(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as safetensors can write it: on the CPU, contiguous, sharing memory with no other."""
    return tensor.detach().cpu().contiguous().clone()
