"""What `--device` and `--dtype` mean."""

from __future__ import annotations

import re

import torch

from modelscope_app.api import UsageError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float64": torch.float64,
    "fp64": torch.float64,
}
"""Floating-point types a model can be asked to run in, by the name people type."""


def resolve_device(text: str) -> torch.device:
    """The device named `auto`, `cpu`, `cuda` or `cuda:1`; `auto` is the first GPU where there is one.

    Raises UsageError for another name, and where CUDA or that GPU is not there.
    """
    if text == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if text == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", text)
    if match is None:
        raise UsageError(f"--device {text!r}: write auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        reason = "no GPU is visible" if torch.version.cuda else "this torch was built without CUDA"
        raise UsageError(f"--device {text}: {reason}; use --device cpu")
    index, count = int(match[1] or 0), torch.cuda.device_count()
    if index >= count:
        raise UsageError(f"--device {text}: there {'is 1 GPU' if count == 1 else f'are {count} GPUs'}, numbered from 0")
    return torch.device("cuda", index)


def resolve_dtype(text: str) -> torch.dtype | None:
    """The floating-point type of that name; None for `auto`, which keeps what the checkpoint stores.

    Raises UsageError naming the types there are.
    """
    if text == "auto":
        return None
    if text not in DTYPES:
        raise UsageError(f"--dtype {text!r}: write auto or one of {', '.join(sorted(DTYPES))}")
    return DTYPES[text]
