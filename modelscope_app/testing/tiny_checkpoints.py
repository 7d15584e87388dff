"""Small checkpoints written on the spot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_checkpoint(folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Path:
    """Write `folder/model.safetensors`, and config.json with `config`; the folder.

    A tensor is a nested list of numbers (kept as float32), a numpy array or a torch tensor. Torch is imported only for the
    last, which is the way to write bfloat16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.safetensors"
    if any(type(value).__module__.partition(".")[0] == "torch" for value in tensors.values()):
        import torch
        from safetensors.torch import save_file as save_torch_file

        as_torch = {name: value if isinstance(value, torch.Tensor) else torch.tensor(value) for name, value in tensors.items()}
        save_torch_file({name: value.contiguous() for name, value in as_torch.items()}, file)
    else:
        import numpy
        from safetensors.numpy import save_file as save_numpy_file

        arrays = {
            name: value if isinstance(value, numpy.ndarray) else numpy.asarray(value, numpy.float32) for name, value in tensors.items()
        }
        save_numpy_file({name: numpy.ascontiguousarray(array) for name, array in arrays.items()}, file)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    return folder
