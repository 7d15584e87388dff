"""What `--device` and `--dtype` mean to torch."""

from __future__ import annotations

import torch

from modelscope_app.api import UsageError
from modelscope_app.models.names import check_device, check_dtype


def resolve_device(text: str) -> torch.device:
    """The device named `auto`, `cpu`, `cuda` or `cuda:1`; `auto` is the first GPU where there is one.

    Raises UsageError for another name, and where CUDA or that GPU is not there.
    """
    name = check_device(text)
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = "no GPU is visible" if torch.version.cuda else "this torch was built without CUDA"
        raise UsageError(f"--device {text}: {reason}; use --device cpu")
    device, count = torch.device(name), torch.cuda.device_count()
    if device.index >= count:
        raise UsageError(f"--device {text}: there {'is 1 GPU' if count == 1 else f'are {count} GPUs'}, numbered from 0")
    return device


def resolve_dtype(text: str) -> torch.dtype | None:
    """The floating-point type of that name; None for `auto`, which keeps what the checkpoint stores.

    Raises UsageError naming the types there are.
    """
    name = check_dtype(text)
    if name is None:
        return None
    dtype: torch.dtype = getattr(torch, name)
    return dtype
