"""How much memory this process holds, and held at its highest since a mark."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path


def resident_bytes() -> int:
    """Resident memory now, in bytes; the highest so far where the system does not say."""
    return _proc_status("VmRSS") or _highest_bytes()


def mark_peak() -> None:
    """Begin a new high-water mark, where the system allows it (Linux).

    What was freed before and the allocator still keeps (glibc) is given back first: it would be taken again unseen.
    """
    import ctypes

    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Highest resident memory since `mark_peak`, in bytes."""
    return _proc_status("VmHWM") or _highest_bytes()


def _proc_status(key: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return None


def _highest_bytes() -> int:
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024
