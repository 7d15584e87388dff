"""The devices of this machine, as this Python's torch sees them."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from modelscope_app.jobs.device_memory import device_memory


def devices() -> list[dict[str, Any]]:
    """The CPU and each GPU, with name and capacity in bytes. Imports torch."""
    import torch

    found: list[dict[str, Any]] = [{"device": "cpu", "name": _processor(), "capacity_bytes": device_memory("cpu").capacity_bytes}]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            found.append({"device": f"cuda:{number}", "name": properties.name, "capacity_bytes": properties.total_memory})
    return found


def _processor() -> str:
    """Its name as the system has it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
