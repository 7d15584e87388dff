"""How much memory a device has, how much of it is free, and how much an analysis took of it. Imports torch for GPUs alone.

The CPU's memory is the machine's, or what a control group leaves this process of it (a container, a Slurm job).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from modelscope_app.jobs.memory import mark_peak, peak_bytes, resident_bytes

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


class DeviceMemory(NamedTuple):
    """Bytes of one device."""

    capacity_bytes: int
    free_bytes: int


def device_memory(device: str) -> DeviceMemory:
    """Capacity and what is free now; what torch keeps cached for this process on a GPU counts as free."""
    if device == "cpu":
        return _cpu_memory()
    import torch

    torch.cuda.init()  # type: ignore[no-untyped-call]
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

            torch.cuda.init()  # type: ignore[no-untyped-call]  # where no GPU was used yet, the next line would raise
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
        for line in _MEMINFO.read_text().splitlines():
            key, _, rest = line.partition(":")
            values[key] = int(rest.split()[0]) * 1024
    memory = DeviceMemory(values.get("MemTotal", 0), values.get("MemAvailable", 0))
    limit = cgroup_memory()
    if limit is None or not memory.capacity_bytes:
        return limit or memory
    return DeviceMemory(min(memory.capacity_bytes, limit.capacity_bytes), min(memory.free_bytes, limit.free_bytes))


def cgroup_memory(membership: Path = Path("/proc/self/cgroup"), root: Path = _CGROUP) -> DeviceMemory | None:
    """The tightest limit on the control groups this process is in, of either version; None where there is none.

    A limit may be set on any group above the process' own, as a batch system does for a job of several steps. In a container
    the names of groups may be the host's, and then its own group is the root of what is mounted.
    """
    found: list[DeviceMemory] = []
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, _, rest = line.partition(":")
            controllers, _, name = rest.partition(":")
            if controllers == "":
                files, top = _VERSION_2, root
            elif "memory" in controllers.split(","):
                files, top = _VERSION_1, root / "memory"
            else:
                continue
            own = top / name.strip("/")
            folders = [own, *own.parents] if own.is_dir() and ".." not in own.parts else [top]
            found += [memory for folder in folders if folder.is_relative_to(top) and (memory := _group_memory(folder, files)) is not None]
    if not found:
        return None
    return DeviceMemory(min(memory.capacity_bytes for memory in found), min(memory.free_bytes for memory in found))


class _Files(NamedTuple):
    """What a version of control groups calls its files, and the bytes of cached files that can be given up at once."""

    limit: str
    used: str
    reclaimable: str


_UNLIMITED = 1 << 60
"""Version 1 says where there is no limit with the largest count of pages it has."""

_VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Files("memory.max", "memory.current", "inactive_file")


def _group_memory(folder: Path, files: _Files) -> DeviceMemory | None:
    with suppress(OSError, ValueError):
        limit = int((folder / files.limit).read_text())  # version 2 says "max" where there is none
        if limit >= _UNLIMITED:
            return None
        used = int((folder / files.used).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return DeviceMemory(limit, max(0, limit - used + int(counts.get(files.reclaimable, 0))))
    return None
