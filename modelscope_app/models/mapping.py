"""Weights usable at once, and soon independent of their file.

A shard is mapped, so a model is usable before its bytes are copied, as with transformers. Left at that, a training run that
saves over its last checkpoint would change the weights of a running analysis, or end the process where the file got shorter;
pages copied on write do not help, because truncating a file takes those away as well. So a thread of its own reads the file
into fresh memory, a few megabytes at a time, and puts each part where the mapping was (mremap): for whoever reads meanwhile, the
same bytes stay at the same address. Memory stays at the size of the weights, because each copy takes the place of shared pages.

What is written to a tensor before its part was replaced is lost, so weights are only read until `settled` came back; it also says
if the file changed before that. Where the system has no mremap, nothing is mapped and values are read.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from modelscope_app.api import BadInput

_STEP_BYTES = 16 << 20
"""Replaced at a time: a multiple of every page size. Each step is a mapping of its own, and a process may have some 65,000."""

_AHEAD_BYTES = 16 * _STEP_BYTES
"""Announced to the kernel at a time, so that a disk reads in order whatever the model touches first."""

_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_FAILED = ctypes.c_void_p(-1).value


def can_be_mapped() -> bool:
    """Whether mapped memory can be replaced in place on this system."""
    return sys.platform.startswith("linux")


def mapped_file(path: Path, size: int) -> MappedFile:
    """Map a file's first `size` bytes. Raises BadInput where it cannot be read or is shorter."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if status.st_size < size:
            raise BadInput(f"{path} ends before the values its header promises; it changed since it was opened")
        memory = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        return MappedFile(path, memory, os.dup(descriptor), status)
    except OSError as error:
        raise BadInput(f"{path} cannot be mapped: {error.strerror}") from error
    finally:
        os.close(descriptor)


class MappedFile:
    """A mapped file whose memory a thread is replacing by a copy of its own."""

    def __init__(self, path: Path, memory: mmap.mmap, descriptor: int, status: os.stat_result) -> None:
        self._path = path
        self._memory = memory
        self._descriptor = descriptor
        self._status = status
        self._address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
        self._failure: str | None = None
        # Not a daemon: those are torn down in the middle of a call when a program ends, and this one watches for the end itself.
        self._thread = threading.Thread(target=self._replace, name=f"copy of {path.name}")
        self._thread.start()

    def tensor(self, begin: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """(element,): bytes `begin` to `end` of the file as a tensor, to be read only until `settled` came back."""
        return torch.frombuffer(self._memory, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin)

    def settled(self) -> None:
        """Wait until the memory is the tensors' own. Raises BadInput where the file changed before that."""
        self._thread.join()
        if self._failure is not None:
            raise BadInput(f"{self._path} {self._failure} while it was loaded; run again")

    def offset(self, tensor: torch.Tensor) -> int | None:
        """Where in the file the bytes of a contiguous tensor come from; None for one whose memory is not this file's."""
        begin = tensor.data_ptr() - self._address
        return begin if begin >= 0 and begin + tensor.nbytes <= len(self._memory) else None

    @contextmanager
    def read_again(self) -> Iterator[Callable[[int, torch.Tensor], None]]:
        """A function that reads bytes of the file, from an offset on, into a tensor of bytes on the CPU.

        Raises BadInput where the file is not the one that was mapped, at the end too.
        """
        try:
            with self._path.open("rb", buffering=0) as stream:
                descriptor = stream.fileno()

                def read(offset: int, into: torch.Tensor) -> None:
                    view = memoryview(into.numpy())  # type: ignore[arg-type]  # an ndarray is a buffer
                    while len(view):
                        count = os.preadv(descriptor, [view], offset)
                        if count == 0:
                            raise BadInput(f"{self._path} became shorter since it was loaded")
                        view, offset = view[count:], offset + count

                yield read
                now = os.fstat(descriptor)
        except OSError as error:
            raise BadInput(f"{self._path} cannot be read again ({error.strerror})") from error
        if not self._is_as_mapped(now):
            raise BadInput(f"{self._path} changed since it was loaded")

    def _is_as_mapped(self, now: os.stat_result) -> bool:
        return (now.st_size, now.st_mtime_ns) == (self._status.st_size, self._status.st_mtime_ns)

    def _replace(self) -> None:
        try:
            for start in range(0, len(self._memory), _STEP_BYTES):
                if not threading.main_thread().is_alive():
                    return  # the program is ending
                if start % _AHEAD_BYTES == 0:
                    os.posix_fadvise(self._descriptor, start, _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
                _replace_by_copy(self._address + start, min(_STEP_BYTES, len(self._memory) - start), self._descriptor, start)
            if not self._is_as_mapped(os.fstat(self._descriptor)):
                self._failure = "changed"
        except EOFError:
            self._failure = "became shorter"
        except OSError as error:
            self._failure = f"could not be copied ({error.strerror})"
        finally:
            os.close(self._descriptor)


def _replace_by_copy(address: int, length: int, descriptor: int, offset: int) -> None:
    """Read `length` bytes of a file and put them where `address`, the first byte of a page, is. Raises OSError and EOFError."""
    libc = _libc()
    fresh = libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if fresh == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        view = memoryview((ctypes.c_char * length).from_address(fresh)).cast("B")
        done = 0
        while done < length:
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise EOFError
            done += count
        if libc.mremap(fresh, length, length, _MREMAP_MAYMOVE | _MREMAP_FIXED, address) == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except BaseException:
        libc.munmap(fresh, length)
        raise


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    libc.mmap.restype, libc.mmap.argtypes = pointer, (pointer, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    libc.mremap.restype, libc.mremap.argtypes = pointer, (pointer, size, size, ctypes.c_int, pointer)
    libc.munmap.argtypes = (pointer, size)
    return libc
