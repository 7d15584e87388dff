"""Files that are there whole or not at all: written beside, synced, renamed.

A crash leaves the old file or the new one, and at worst a stray `.name.*.part` that nobody reads.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from modelscope_app.api import BadInput

_LONGEST_PART_NAME = 40


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it becomes `path` when the block ends well and vanishes when it raises.

    Where `path` is a link, what it points at is written and the link stays. Raises BadInput where a folder, pipe or device stands.
    """
    target = _regular_target(path)
    part = target.with_name(f".{target.name[:_LONGEST_PART_NAME]}.{secrets.token_hex(4)}.part")
    try:
        yield part
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _regular_target(path: Path) -> Path:
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if not stat.S_ISREG(mode):
        raise BadInput(f"{path}: cannot be written over, it is no regular file; name another")
    return target


def write_json(path: Path, value: Any) -> None:
    """Write `value` with non-finite numbers as null, keys in their order."""
    text = json.dumps(finite(value), ensure_ascii=True, allow_nan=False, indent=1)
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity as None, tuples as lists, paths as strings; what JSON can hold.

    >>> finite({"a": float("nan"), "b": (1, 2.5)})
    {'a': None, 'b': [1, 2.5]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Sequence):
        return [finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a numpy or torch scalar
        return finite(value.item())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
