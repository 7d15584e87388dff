"""Values of a tensor: exactly its bytes are read, and they become a torch tensor without a copy."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from modelscope_app.api.errors import BadInput
from modelscope_app.api.tensor_header import TensorHeader
from modelscope_app.checkpoints.checkpoint import changed_on_disk
from modelscope_app.checkpoints.dtypes import torch_dtype
from modelscope_app.checkpoints.header import FileState, Shard, open_regular, shown

if TYPE_CHECKING:
    import torch


def read_tensor(shard: Shard, header: TensorHeader) -> torch.Tensor:
    """All values of a tensor. Raises BadInput for a dtype torch lacks or a file that changed."""
    return _values(shard, header, header.begin, header.end, header.shape)


def read_rows(shard: Shard, header: TensorHeader, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of a tensor: (stop - start, ...). Raises BadInput for rows it does not have."""
    if not header.shape:
        raise BadInput(f"the tensor {shown(header.name)} is a single number and has no rows")
    if not 0 <= start <= stop <= header.shape[0]:
        raise BadInput(f"the tensor {shown(header.name)} has rows 0 to {header.shape[0] - 1}; {start} to {stop - 1} were asked for")
    row_bytes = header.bytes // header.shape[0] if header.shape[0] else 0
    begin = header.begin + start * row_bytes
    return _values(shard, header, begin, begin + (stop - start) * row_bytes, (stop - start, *header.shape[1:]))


def read_bytes(descriptor: int, shard: Shard, begin: int, end: int) -> bytearray:
    """Bytes `begin` to `end` of a shard. Raises BadInput where the file has become shorter."""
    buffer = bytearray(end - begin)
    view = memoryview(buffer)
    done = 0
    while done < len(buffer):  # one call reads at most 2 GiB
        count = os.preadv(descriptor, [view[done:]], begin + done)
        if count == 0:
            raise changed_on_disk(shard)
        done += count
    return buffer


def _values(shard: Shard, header: TensorHeader, begin: int, end: int, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    dtype = torch_dtype(header.dtype, shown(header.name))
    descriptor = open_regular(shard.path)
    try:
        if not FileState.of(os.fstat(descriptor)).same_content(shard.state):
            raise changed_on_disk(shard)
        if math.prod(shape) == 0:
            return torch.empty(shape, dtype=dtype)
        buffer = read_bytes(descriptor, shard, begin, end)
    except OSError as error:
        raise BadInput(f"cannot read the tensor {shown(header.name)} from {shard.path}: {error.strerror or error}") from None
    finally:
        os.close(descriptor)
    if dtype is torch.bool:  # a byte other than 0 and 1 would be neither true nor false
        return torch.frombuffer(buffer, dtype=torch.uint8).reshape(shape) != 0
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)
