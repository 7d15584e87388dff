"""How much memory a device has, how much of it is free, and how much an analysis took of it. Imports torch for GPUs alone.

The CPU's memory is the machine's, or what a control group leaves this process of it (a container, a Slurm job).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from modelscope_app.jobs.memory import mark_peak, peak_bytes, resident_bytes

_CGROUP = Path("/sys/fs/cgroup")


class DeviceMemory(NamedTuple):
    """Bytes of one device."""

    capacity_bytes: int
    free_bytes: int


def device_memory(device: str) -> DeviceMemory:
    """Capacity and what is free now; what torch keeps cached for this process on a GPU counts as free."""
    if device == "cpu":
        return _cpu_memory()
    import torch

    free, capacity = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return DeviceMemory(capacity, free + cached)


class DeviceMeter:
    """Measures from its making on what is taken of a device."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device == "cpu":
            mark_peak()
            self._before = resident_bytes()
        else:
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def peak_bytes(self, models_bytes: int) -> int:
        """Most that was taken so far, beyond `models_bytes` of models that were built meanwhile."""
        if self._device == "cpu":
            highest = peak_bytes()
        else:
            import torch

            highest = torch.cuda.max_memory_allocated(self._device)
        return max(0, highest - self._before - models_bytes)


def _cpu_memory() -> DeviceMemory:
    """From /proc/meminfo and the control group; a machine that has neither says 0 free of 0, which nobody takes for a limit."""
    values = {}
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, rest = line.partition(":")
            values[key] = int(rest.split()[0]) * 1024
    capacity, free = values.get("MemTotal", 0), values.get("MemAvailable", 0)
    limit = _cgroup_limit()
    if limit is not None:
        capacity, free = min(capacity, limit.capacity_bytes), min(free, limit.free_bytes)
    return DeviceMemory(capacity, free)


def _cgroup_limit() -> DeviceMemory | None:
    """The limit of this process' own control group (version 2); None where there is none."""
    with suppress(OSError, ValueError, StopIteration):
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = _CGROUP / own.removeprefix("0::").lstrip("/")
        limit = int((folder / "memory.max").read_text())  # "max" where there is none
        used = int((folder / "memory.current").read_text())
        cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return DeviceMemory(limit, max(0, limit - used + int(cached.get("inactive_file", 0))))
    return None
