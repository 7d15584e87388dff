"""What a header says of one tensor; a module of its own because the terminal app needs it before anything else of the contract."""

from __future__ import annotations

from typing import NamedTuple


class TensorHeader(NamedTuple):
    """What a safetensors header says about one tensor."""

    name: str
    dtype: str
    """The name in the file: `F32`, `BF16`, `F8_E4M3` ... or one this version does not know, shown raw."""
    shape: tuple[int, ...]
    shard: str
    """File name of the shard that holds it."""
    begin: int
    """First byte, counted from the start of the shard file."""
    end: int
    """One past the last byte."""

    @property
    def bytes(self) -> int:
        """Size of the stored values."""
        return self.end - self.begin

    @property
    def parameters(self) -> int:
        """Number of elements."""
        product = 1
        for size in self.shape:
            product *= size
        return product
