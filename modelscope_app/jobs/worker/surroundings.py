"""What an analysis may change of its process without meaning to, put back after each job.

Python's warnings and the standard streams are put back by `execute`, the signal handlers by `Interruption`.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn.modules import module as torch_modules

_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE)


class _Switch(NamedTuple):
    """A setting of torch that holds for the whole process."""

    read: Callable[[], Any]
    write: Callable[[Any], object]


def _attribute(owner: Any, name: str) -> _Switch:
    return _Switch(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


_SWITCHES = (
    _Switch(torch.is_grad_enabled, torch.set_grad_enabled),
    _Switch(torch.get_default_dtype, torch.set_default_dtype),
    _Switch(torch.get_num_threads, torch.set_num_threads),
    _Switch(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    _Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _Switch(
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    *(_attribute(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
    *(
        _attribute(torch.backends.cuda.matmul, name)
        for name in ("allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    ),
    _Switch(torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    _Switch(torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    _Switch(torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    *(_Switch(partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind)) for kind in ("cpu", "cuda")),
)


class Surroundings:
    """The process as it is when this is made."""

    def __init__(self) -> None:
        self._folder = os.getcwd()  # noqa: PTH109 - os.chdir takes it back
        self._environment = dict(os.environ)
        self._search_path = list(sys.path)
        self._umask = _umask()
        self._soft_limits = {limit: resource.getrlimit(limit)[0] for limit in _LIMITS}
        self._switches = [switch.read() for switch in _SWITCHES]
        self._device = torch.get_default_device()
        self._global_hooks = {name: dict(hooks) for name, hooks in _global_hooks().items()}
        self._threads = set(threading.enumerate())

    def restore(self) -> list[str]:
        """Put everything back. What cannot be is returned, a sentence each."""
        for limit, soft in self._soft_limits.items():
            _, hard = resource.getrlimit(limit)
            lowered = hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard)
            with suppress(OSError, ValueError):
                resource.setrlimit(limit, (hard if lowered else soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that was set would end the next job
        sys.path[:] = self._search_path
        os.chdir(self._folder)
        os.umask(self._umask)
        if dict(os.environ) != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)
        for switch, value in zip(_SWITCHES, self._switches, strict=True):
            if switch.read() != value:
                switch.write(value)
        if torch.get_default_device() != self._device:
            torch.set_default_device(None if self._device.type == "cpu" else self._device)
        for name, hooks in _global_hooks().items():
            for key in hooks.keys() - self._global_hooks[name].keys():
                del hooks[key]
        return self._left_threads()

    def _left_threads(self) -> list[str]:
        now = set(threading.enumerate())
        left = [thread for thread in now - self._threads if not thread.daemon and thread.is_alive()]
        self._threads = now
        return [f"the thread {thread.name!r} was left running" for thread in left]


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def _global_hooks() -> dict[str, dict[Any, Any]]:
    """The hooks that torch calls for every module there is."""
    return {name: value for name, value in vars(torch_modules).items() if name.startswith("_global") and isinstance(value, dict)}
