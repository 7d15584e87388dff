"""An opened checkpoint: every header read and checked, no value touched until it is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_app.api.errors import BadInput
from modelscope_app.api.tensor_header import TensorHeader
from modelscope_app.checkpoints.finding import Located, locate
from modelscope_app.checkpoints.header import FileState, Shard, read_shard, shown
from modelscope_app.checkpoints.json_text import object_in_file
from modelscope_app.checkpoints.natural_order import natural_key
from modelscope_app.checkpoints.shard_index import (
    SUFFIX,
    read_index,
    read_indexed_shards,
    refuse_incomplete_numbering,
    refuse_repeated_tensors,
)
from modelscope_app.checkpoints.tokenizer_files import tokenizer_files

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "config.json"


def open_checkpoint(path: str | Path) -> OpenCheckpoint:
    """Open a checkpoint: a file, a folder or `hf:org/name` (see `finding` for what each of them may look like).

    Reads headers, index and nothing else. Raises BadInput naming file and tensor for whatever is missing or wrong.
    """
    located = locate(path)
    if located.index_file is not None:
        shards = read_indexed_shards(located.index_file, read_index(located.index_file), located.present)
    else:
        if located.path == located.folder:
            refuse_incomplete_numbering(located.folder, located.files)
        shards = [read_shard(located.folder / name) for name in located.files]
        refuse_repeated_tensors(shards)
    return OpenCheckpoint(located, shards)


class OpenCheckpoint:
    """Implements `modelscope_app.api.Checkpoint`. Holds headers only; no file stays open."""

    def __init__(self, located: Located, shards: Sequence[Shard]) -> None:
        self._located = located
        self.shards: tuple[Shard, ...] = tuple(shards)
        """The files, with their headers, ordered by name."""

    def __repr__(self) -> str:
        return f"OpenCheckpoint({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """Absolute path of the folder or file."""
        return self._located.path

    @property
    def name(self) -> str:
        """Last component of the path, or the model's name for a snapshot in the Hugging Face cache."""
        return self._located.name

    @property
    def folder(self) -> Path:
        """Folder where config.json and the tokenizer are looked for."""
        return self._located.folder

    @property
    def index(self) -> Path | None:
        """The shard index, where there is one."""
        return self._located.index_file

    @property
    def other_files(self) -> tuple[str, ...]:
        """Safetensors files in the folder that are not part of this checkpoint, as an adapter beside it."""
        mine = {shard.name for shard in self.shards}
        return tuple(sorted(name for name in self._located.present if name.endswith(SUFFIX) and name not in mine))

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """config.json; None where there is none. Raises BadInput for one that is not a JSON object."""
        file = self.folder / CONFIG_FILE
        return object_in_file(file) if os.path.lexists(file) else None

    @cached_property
    def tokenizer_files(self) -> tuple[str, ...]:
        """The tokenizer's files, relative to the folder."""
        return tokenizer_files(self.folder)

    @cached_property
    def tensors(self) -> Mapping[str, TensorHeader]:
        """Headers by name, in natural order: layer 2 before layer 10."""
        headers = {header.name: header for shard in self.shards for header in shard.tensors}
        return {name: headers[name] for name in sorted(headers, key=natural_key)}

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """The `__metadata__` of all shards together; where they disagree, the first shard's."""
        metadata: dict[str, str] = {}
        for shard in self.shards:
            metadata = {**shard.metadata, **metadata}
        return metadata

    @cached_property
    def parameters(self) -> int:
        """Number of elements over all stored tensors. Packed quantised values count as the elements they are stored as."""
        return sum(header.parameters for shard in self.shards for header in shard.tensors)

    @cached_property
    def bytes(self) -> int:
        """Size of the stored values, headers excluded."""
        return sum(header.bytes for shard in self.shards for header in shard.tensors)

    @property
    def fingerprint(self) -> str:
        """Hash of the content; see `fingerprint` for what equal ones guarantee. Computed when asked for, then cached on disk."""
        from modelscope_app.checkpoints.fingerprint import fingerprint

        return fingerprint(self)

    def full_fingerprint(self) -> str:
        """Hash over every byte, however large. Raises BadInput where a file changed."""
        from modelscope_app.checkpoints.fingerprint import full_fingerprint

        return full_fingerprint(self)

    def without_tensors(self) -> OpenCheckpoint:
        """The same checkpoint as if no header had been read: its place, config and tokenizer files."""
        return OpenCheckpoint(self._located, ())

    def check_unchanged(self) -> None:
        """Raise BadInput, naming the file, where a shard on disk is no longer the one that was opened. One `stat` a shard."""
        for shard in self.shards:
            try:
                state = FileState.of(os.stat(shard.path))  # noqa: PTH116
            except OSError as error:
                raise BadInput(f"{shard.path} is gone since the checkpoint was opened: {error.strerror or error}") from None
            if not state.same_content(shard.state):
                raise changed_on_disk(shard)

    def tensor(self, name: str) -> torch.Tensor:
        """The values of one tensor, on the CPU, in the stored dtype.

        Raises BadInput for a name the checkpoint lacks, a dtype torch lacks, and a file that changed since it was opened.
        """
        from modelscope_app.checkpoints.values import read_tensor

        header = self._header(name)
        return read_tensor(self._shard(header), header)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` (exclusive) along the first dimension: (stop - start, ...), reading no byte of the others.

        Raises BadInput as `tensor` does, and for rows the tensor does not have.
        """
        from modelscope_app.checkpoints.values import read_rows

        header = self._header(name)
        return read_rows(self._shard(header), header, start, stop)

    @cached_property
    def _shard_of(self) -> Mapping[str, Shard]:
        return {shard.name: shard for shard in self.shards}

    def _shard(self, header: TensorHeader) -> Shard:
        return self._shard_of[header.shard]

    def _header(self, name: str) -> TensorHeader:
        header = self.tensors.get(name)
        if header is not None:
            return header
        from difflib import get_close_matches

        near = get_close_matches(name, self.tensors, n=1)
        hint = f"; did you mean {shown(near[0])}?" if near else ""
        raise BadInput(f"{self.path} has no tensor {shown(name)}{hint}")


def changed_on_disk(shard: Shard) -> BadInput:
    """The error for a shard that is not the file that was opened."""
    return BadInput(f"{shard.path} changed on disk since the checkpoint was opened; open it again")
