"""What devices raise: running out of memory, which a process survives, and errors that end it; and giving memory back."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had no room, as torch and Python say it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether a GPU reported an error after which its process can compute nothing more: any CUDA error but running out of memory."""
    import torch

    if is_out_of_memory(error):
        return False
    kind = getattr(torch, "AcceleratorError", None)
    return (kind is not None and isinstance(error, kind)) or (isinstance(error, RuntimeError) and str(error).startswith("CUDA error"))


def release_cached_memory() -> None:
    """Give torch's cached device memory back."""
    import gc

    gc.collect()
    release_unused_gpu_memory()


def release_unused_gpu_memory() -> None:
    """Give back what torch keeps of a GPU for later: another process may need it before this one does."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
