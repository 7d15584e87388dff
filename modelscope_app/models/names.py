"""What `--device` and `--dtype` may say, checked without torch; `devices` looks whether it is there."""

from __future__ import annotations

import re

from modelscope_app.api import UsageError

DTYPE_NAMES = {
    "float32": "float32",
    "fp32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float64": "float64",
    "fp64": "float64",
}
"""Floating-point types a model can be asked to run in: torch's name by the name people type."""

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""Bytes of one number, by torch's name."""


def check_device(text: str) -> str:
    """`auto`, `cpu` or `cuda:N`, as `text` says. Raises UsageError for anything else.

    >>> check_device("cuda")
    'cuda:0'
    """
    if text in ("auto", "cpu"):
        return text
    match = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", text)
    if match is None:
        raise UsageError(f"--device {text!r}: write auto, cpu, cuda or cuda:N")
    return f"cuda:{int(match[1] or 0)}"


def check_dtype(text: str) -> str | None:
    """Torch's name of the type; None for `auto`. Raises UsageError naming the types there are."""
    if text == "auto":
        return None
    if text not in DTYPE_NAMES:
        raise UsageError(f"--dtype {text!r}: write auto or one of {', '.join(sorted(DTYPE_NAMES))}")
    return DTYPE_NAMES[text]
