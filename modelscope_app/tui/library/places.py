"""What a folder holds that can be opened or looked into. Read in a thread."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modelscope_app.checkpoints.natural_order import natural_key
from modelscope_app.checkpoints.shard_index import SUFFIX
from modelscope_app.tui.thread_work import sentence_of

if TYPE_CHECKING:
    from modelscope_app.checkpoints.glance import Glance

MOST_ENTRIES = 2000
"""Entries of one folder that are listed; the last line says how many more there are."""

Kind = Literal["folder", "file", "up", "cache", "cached", "note"]


@dataclass(frozen=True, slots=True)
class Place:
    """One line of the folder browser."""

    kind: Kind
    """`up` is the folder above, `cache` the local Hugging Face cache, `cached` a model in it, `note` a sentence."""
    path: str
    """Absolute, or `hf:org/name`; of a note the sentence."""

    @property
    def name(self) -> str:
        """What the line says; untrusted."""
        if self.kind == "up":
            return ".."
        if self.kind == "cache":
            return "Hugging Face cache"
        if self.kind in ("cached", "note"):
            return self.path
        return Path(self.path).name + ("/" if self.kind == "folder" else "")


def places_in(folder: str) -> list[Place]:
    """Folders, then safetensors files, in natural order; hidden ones are left out. A note says what went wrong."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                elif entry.name.endswith(SUFFIX):
                    files.append(entry.name)
    except (OSError, ValueError) as error:
        return [Place("note", f"cannot be listed: {getattr(error, 'strerror', None) or error}")]
    names = [("folder", name) for name in sorted(folders, key=natural_key)] + [("file", name) for name in sorted(files, key=natural_key)]
    places = [Place("folder" if kind == "folder" else "file", os.path.join(folder, name)) for kind, name in names[:MOST_ENTRIES]]  # noqa: PTH118
    if len(names) > MOST_ENTRIES:
        places.append(Place("note", f"… {len(names) - MOST_ENTRIES:,} more; type a path to get there"))
    return places or [Place("note", "no folders and no safetensors files")]


def places_around(folder: str) -> list[Place]:
    """As `places_in`, with the folder above before and the local Hugging Face cache after them, where there are such."""
    from modelscope_app.checkpoints.hub_cache import hub_cache

    above, cache = Path(folder).parent, hub_cache()
    return [
        *([Place("up", str(above))] if above != Path(folder) else []),
        *places_in(folder),
        *([Place("cache", str(cache))] if os.path.isdir(cache) else []),  # noqa: PTH112 - Path.is_dir raises where it may not look
    ]


def cached_places() -> list[Place]:
    """Models of the local Hugging Face cache."""
    from modelscope_app.checkpoints.hub_cache import cached_models

    return [Place("cached", name) for name in cached_models()] or [Place("note", "no models in it")]


def glanced(path: str | Path) -> Glance | None:
    """As `glance`, whatever lies there: an error nobody thought of is that of a damaged checkpoint."""
    from modelscope_app.checkpoints.glance import Glance, glance

    try:
        return glance(path)
    except Exception as error:
        return Glance("damaged", error=f"cannot be looked into: {sentence_of(error)}")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
