"""The dtypes of the safetensors format: how wide one element is, and what torch calls it.

Source: the `Dtype` enumeration of the format's reference implementation (huggingface/safetensors, `tensor.rs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscope_app.api.errors import BadInput

if TYPE_CHECKING:
    import torch

ELEMENT_BITS: dict[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
"""Bits of one element. A dtype that is not here is shown as the file spells it; how many bytes it needs is unknown."""

_TORCH_NAMES: dict[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}


def torch_dtype(dtype: str, tensor: str) -> torch.dtype:
    """torch's dtype for the format's `dtype`. Raises BadInput, naming the tensor, for one whose elements torch cannot hold."""
    import torch

    torch_name = _TORCH_NAMES.get(dtype)
    found = getattr(torch, torch_name, None) if torch_name else None
    if isinstance(found, torch.dtype):
        return found
    if dtype in ELEMENT_BITS and ELEMENT_BITS[dtype] < 8:
        raise BadInput(
            f"the tensor {tensor} is stored as {dtype}, several elements to a byte, which torch cannot read; "
            "convert the checkpoint to F8_E4M3 or wider to work with its values"
        )
    raise BadInput(f"the tensor {tensor} is stored as {dtype}, which torch {torch.__version__} cannot read; only its header can be shown")
