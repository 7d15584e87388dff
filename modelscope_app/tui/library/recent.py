"""Checkpoints opened lately: `recent-checkpoints.json` in the state folder, newest first.

It is a convenience: what cannot be read counts as empty, what cannot be written is not remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from modelscope_app.api import BadInput
from modelscope_app.locations import absolute_path, state_dir
from modelscope_app.runs.atomic import write_json
from modelscope_app.runs.reading import fits, json_value

MOST = 50


class RecentCheckpoint(NamedTuple):
    """One that was opened."""

    path: str
    """Absolute, or `hf:org/name`."""
    opened: float
    """Unix seconds."""


def recent() -> list[RecentCheckpoint]:
    """The latest ones, newest first; paths that are gone are still here."""
    try:
        stored = json_value(_file())
    except (BadInput, OSError):
        return []
    listed = stored.get("checkpoints") if isinstance(stored, dict) else None
    found = []
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, dict) and isinstance(item.get("path"), str) and fits(item.get("opened"), float):
            found.append(RecentCheckpoint(item["path"], item["opened"]))
    return found[:MOST]


def remember(path: str, clock: Callable[[], float] = time.time) -> None:
    """Put a checkpoint first."""
    with suppress(BadInput):
        named = path if path.startswith("hf:") else str(absolute_path(path))
        _store([RecentCheckpoint(named, clock()), *(one for one in recent() if one.path != named)])


def forget(path: str) -> None:
    """Take a checkpoint off the list."""
    _store([one for one in recent() if one.path != path])


def _store(checkpoints: list[RecentCheckpoint]) -> None:
    with suppress(BadInput, OSError, ValueError):
        state_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(_file(), {"checkpoints": [one._asdict() for one in checkpoints[:MOST]]})


def _file() -> Path:
    return state_dir() / "recent-checkpoints.json"
