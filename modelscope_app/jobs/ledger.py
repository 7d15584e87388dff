"""Whether a job fits into a device beside the models that are resident there, and which of them have to go for it.

Pure functions of bytes. Who measures, and what is unloaded, is a worker's business.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from modelscope_app.jobs.device_memory import DeviceMemory


@dataclass(frozen=True, slots=True)
class Holding:
    """A model that is resident on the device."""

    key: Hashable
    memory_bytes: int
    last_used: float
    is_needed: bool = False
    """The job uses this very model, so it stays."""


@dataclass(frozen=True, slots=True)
class Fits:
    """The job can begin once these models are unloaded, those unused for longest first."""

    evict: tuple[Hashable, ...] = ()


@dataclass(frozen=True, slots=True)
class Short:
    """The job does not fit now, even with every model it does not use unloaded."""

    needs_bytes: int
    """Beyond the models it finds resident."""
    free_bytes: int
    """With the others unloaded."""


@dataclass(frozen=True, slots=True)
class Never:
    """The job does not fit into the device, whatever is unloaded."""

    needs_bytes: int
    """With the models it finds resident."""
    capacity_bytes: int


def admission(need_bytes: int, holdings: Sequence[Holding], free_bytes: int, capacity_bytes: int) -> Fits | Short | Never:
    """Whether a job that takes `need_bytes` more than its resident models fits.

    `free_bytes` is what is free with all holdings in place, `capacity_bytes` what an empty device has. As few models go as
    possible, and rather those that nobody used for long: of two choices, the one whose most recently used victim is older.
    """
    movable = sorted((holding for holding in holdings if not holding.is_needed), key=lambda holding: holding.last_used, reverse=True)
    kept_bytes = sum(holding.memory_bytes for holding in holdings if holding.is_needed)
    if need_bytes + kept_bytes > capacity_bytes:
        return Never(need_bytes + kept_bytes, capacity_bytes)
    if need_bytes <= 0:
        return Fits()
    room = free_bytes + sum(holding.memory_bytes for holding in movable)
    if need_bytes > room:
        return Short(need_bytes, max(0, room))
    evicted = []
    for holding in movable:  # the most recently used first: it stays if there is room enough without it
        if room - holding.memory_bytes >= need_bytes:
            room -= holding.memory_bytes
        else:
            evicted.append(holding.key)
    return Fits(tuple(reversed(evicted)))


def within_limit(measured: DeviceMemory, limit_bytes: int | None, own_bytes: int, others_bytes: int) -> DeviceMemory | None:
    """Capacity and free bytes under a limit (or the capacity) of which `own_bytes` and `others_bytes` are, or will be, taken.

    None where nothing is known. A capacity of 0 says that the system did not tell.
    """
    capacity_bytes = limit_bytes if limit_bytes is not None else measured.capacity_bytes
    if capacity_bytes <= 0:
        return None
    # What the others are about to take is not gone yet, and what they hold is not free either way.
    reckoned = DeviceMemory(capacity_bytes, capacity_bytes - own_bytes - others_bytes)
    if measured.capacity_bytes <= 0:
        return reckoned
    return DeviceMemory(min(capacity_bytes, measured.capacity_bytes), min(reckoned.free_bytes, measured.free_bytes))
