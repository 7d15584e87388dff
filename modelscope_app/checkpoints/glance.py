"""What lies at a path, cheaply: a checkpoint, a series or neither, with architecture, dtype and size.

For lists of many paths. It reads a folder's names, config.json and the header of one shard, and nothing is checked that opening
does not check again.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from modelscope_app.api.errors import BadInput
from modelscope_app.checkpoints.checkpoint import CONFIG_FILE
from modelscope_app.checkpoints.finding import Located, absolute, is_folder, locate, names_in
from modelscope_app.checkpoints.header import read_shard
from modelscope_app.checkpoints.in_words import size_text
from modelscope_app.checkpoints.json_text import object_in_file
from modelscope_app.checkpoints.series import is_series_only, open_series
from modelscope_app.checkpoints.shard_index import INDEX_SUFFIX, SUFFIX, read_index


class Glance(NamedTuple):
    """What was found."""

    kind: Literal["checkpoint", "series", "damaged", "gone"]
    """`damaged` looks like a checkpoint and cannot be opened."""
    architecture: str = ""
    """As config.json names it; empty where nothing does. Untrusted."""
    dtype: str = ""
    """The one that most bytes of the first shard are in. Untrusted."""
    bytes: int = 0
    """Of the safetensors files."""
    members: int = 0
    """Of a series."""
    error: str = ""
    """The sentence, where it is damaged or gone."""
    reason: str = ""
    """The same for a line that names the folder already: without it. Untrusted."""

    @property
    def words(self) -> str:
        """On one line, untrusted.

        >>> Glance("checkpoint", "LlamaForCausalLM", "BF16", 269_060_552).words
        'LlamaForCausalLM, BF16, 269.1 MB'
        """
        if self.kind in ("damaged", "gone"):
            return self.reason or self.error
        parts = [f"series of {self.members}" if self.kind == "series" else "", self.architecture, self.dtype]
        return ", ".join(part for part in [*parts, size_text(self.bytes) if self.bytes else ""] if part)


def glance(path: str | Path) -> Glance | None:
    """What is at `path`, which may be `hf:org/name`; None for a folder or file that is no checkpoint. Raises nothing."""
    try:
        return _glance(path)
    except BadInput as error:
        return Glance("damaged", error=str(error), reason=str(error).replace(f"{os.fspath(path)}{os.sep}", ""))
    except OSError as error:
        return Glance("damaged", error=f"cannot be read: {error.strerror or error}")


def _glance(named: str | Path) -> Glance | None:
    path = absolute(named)
    if not os.path.lexists(path):
        return Glance("gone", error="gone: nothing is there any more")
    if not is_folder(path):
        return _of_files(locate(path)) if path.name.endswith((SUFFIX, INDEX_SUFFIX)) else None
    if is_series_only(path):
        members = open_series(path).members
        first = _glance(members[0].path)
        return Glance("series", first.architecture, first.dtype, 0, len(members)) if first else Glance("series", members=len(members))
    if not any(name.endswith((SUFFIX, INDEX_SUFFIX)) for name in names_in(path)):
        return None
    return _of_files(locate(path))


def _of_files(located: Located) -> Glance:
    names = sorted(set(read_index(located.index_file).values())) if located.index_file is not None else list(located.files)
    files = [located.folder / name for name in names]
    by_dtype: Counter[str] = Counter()
    for header in read_shard(files[0]).tensors:
        by_dtype[header.dtype] += header.bytes
    dtype = by_dtype.most_common(1)[0][0] if by_dtype else ""
    return Glance("checkpoint", _architecture(located.folder / CONFIG_FILE), dtype, sum(file.stat().st_size for file in files))


def _architecture(file: Path) -> str:
    if not os.path.lexists(file):
        return ""
    try:
        config: dict[str, Any] = object_in_file(file)
    except BadInput:  # opening says what is wrong with it
        return ""
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    return config["model_type"] if isinstance(config.get("model_type"), str) else ""
