"""Saved states of a fold: what a pass needs to go on after its process died.

A generation is one safetensors file, `state-<step>.safetensors`. Its header says after how many steps of the plan it was taken,
which chunks were appended by then (length and hash), and, for sequential folds, where the running generators stood. Two
generations are kept: should the newest be unreadable, the one before it serves.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelscope_app.jobs.stored import on_disk
from modelscope_app.runs.atomic import replacing

if TYPE_CHECKING:
    import torch

_KEPT = 2


@dataclass(frozen=True, slots=True)
class Chunk:
    """One appended file."""

    list: str
    file: str
    length: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class SavedState:
    """One generation, read back."""

    step: int
    """Steps of the plan that are in it."""
    state: dict[str, torch.Tensor]
    chunks: tuple[Chunk, ...]
    generators: str | None


def save_state(folder: Path, saved: SavedState) -> None:
    """Write a generation and drop those before the last two."""
    from safetensors.torch import save_file

    metadata = {
        "step": str(saved.step),
        "chunks": json.dumps([[chunk.list, chunk.file, chunk.length, chunk.sha256] for chunk in saved.chunks]),
    }
    if saved.generators is not None:
        metadata["generators"] = saved.generators
    with replacing(folder / f"state-{saved.step:012d}.safetensors") as part:
        save_file({name: on_disk(tensor) for name, tensor in saved.state.items()}, part, metadata)
    for old in _generations(folder)[_KEPT:]:
        old.unlink()


def newest_state(folder: Path) -> SavedState | None:
    """The newest generation that can be read and whose chunks are all there; None without any."""
    for path in _generations(folder):
        saved = _read(path)
        if saved is not None and all(is_intact(folder, chunk) for chunk in saved.chunks):
            return saved
    return None


def drop_states(folder: Path) -> None:
    """Remove every generation; the stage's result is stored."""
    for path in _generations(folder):
        path.unlink()


def describe_chunk(folder: Path, list_name: str, file: str) -> Chunk:
    """The chunk in `file`, with its length and hash."""
    content = (folder / file).read_bytes()
    return Chunk(list_name, file, len(content), hashlib.sha256(content).hexdigest())


def is_intact(folder: Path, chunk: Chunk) -> bool:
    """Whether the chunk's file is there, whole and unchanged."""
    path = folder / chunk.file
    try:
        if path.stat().st_size != chunk.length:
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == chunk.sha256
    except OSError:
        return False


def _generations(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.safetensors"), reverse=True)


def _read(path: Path) -> SavedState | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        chunks = tuple(Chunk(*values) for values in json.loads(metadata["chunks"]))
        return SavedState(int(metadata["step"]), state, chunks, metadata.get("generators"))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None


def has_saved_work(stages: Path) -> bool:
    """Whether a run's `stages` folder holds a stored result or a saved state, so that resuming it is not beginning anew."""
    return any((stage / "result.json").is_file() or bool(_generations(stage)) for stage in stages.glob("*"))
