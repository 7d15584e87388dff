"""Completing what is typed: paths from the disk, other things from a list. The right arrow takes what is offered."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from textual.suggester import Suggester

from modelscope_app.api import neutralised

DATA_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".csv", ".txt")
"""Files of examples that the host reads; a plugin may read others, which can be typed."""
CHECKPOINT_SUFFIXES = (".safetensors", ".safetensors.index.json")

_MOST_NAMES = 20_000
"""More names in a folder than that are not looked through on each key."""


def suffixes(pick: str) -> tuple[str, ...] | None:
    """Ends of the names of files that can be chosen; None where any file can."""
    return {"data-file": DATA_SUFFIXES, "checkpoint": CHECKPOINT_SUFFIXES, "series": ()}.get(pick)


class PathSuggester(Suggester):
    """Offers the rest of the name of a folder or a fitting file."""

    def __init__(self, pick: str) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._suffixes = suffixes(pick)

    async def get_suggestion(self, value: str) -> str | None:
        """The first name, in the order of the alphabet, that begins as what was typed does."""
        return await asyncio.to_thread(completed_path, value, self._suffixes)


class ListSuggester(Suggester):
    """Offers what is in a list, for the last of several values separated by commas."""

    def __init__(self, offered: Sequence[str]) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._offered = tuple(offered)

    async def get_suggestion(self, value: str) -> str | None:
        """The first one that begins as what was typed does."""
        before, comma, last = value.rpartition(",")
        if not last:
            return None
        return next((f"{before}{comma}{offered}" for offered in self._offered if offered.startswith(last) and offered != last), None)


def completed_path(typed: str, allowed: Sequence[str] | None) -> str | None:
    """`typed` with the rest of a name; None where nothing fits. A folder ends in `/`. Names nobody can type are left out."""
    folder_text, _, start = typed.rpartition("/")
    if not start or "\0" in typed or typed.startswith("hf:"):
        return None
    try:
        folder = Path(folder_text or ("/" if typed.startswith("/") else ".")).expanduser()
        names = []
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= _MOST_NAMES:
                    break
                if entry.name.startswith(start) and is_typable(entry.name) and (start.startswith(".") or not entry.name.startswith(".")):
                    if entry.is_dir():
                        names.append(f"{entry.name}/")
                    elif allowed is None or entry.name.endswith(tuple(allowed)):
                        names.append(entry.name)
    except (OSError, RuntimeError, ValueError):
        return None
    if not names:
        return None
    return typed.removesuffix(start) + min(names)


def is_typable(name: str) -> bool:
    """Whether a name can be shown, and typed, as it is."""
    return neutralised(name) == name
