"""Running out of memory: telling it from other errors, and giving back what can be given back."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had no room, as torch and Python say it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def release_cached_memory() -> None:
    """Give torch's cached device memory back."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
