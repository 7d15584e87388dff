"""A checkpoint's fingerprint: one short text that stands for tensors, config and tokenizer.

`full:` followed by 32 hex digits is a hash over every byte of every file of it. Equal ones mean equal content, wherever the
files lie and whatever they are called. The part of one file is its sha256, which `sha256sum` prints as well.

`sampled:` is given to checkpoints of more than 2 GiB, where reading all would take minutes. It covers, for each safetensors
file, its size, its whole header, blocks of 4 KiB spread evenly from the start to the end of each tensor (64 MiB over all tensors;
with more than 16,384 of them one block each, from the middle), and a witness for the rest: the sha256 the file is named after
in the Hugging Face cache, or else the time it was last written. Through links the same file has the same witness. Config and
tokenizer are covered whole.
- Training changes nearly all values of a tensor and so the samples; an edit of a few values changes the time of writing. Equal
  sampled fingerprints of different content need both to fail: same blocks, and a file written at the same nanosecond (its
  time set by hand or by an archive) or a cache file changed in place.
- Outside the Hugging Face cache a copy that does not keep times (`cp` without `-p`) has another one although its content is equal.
  `full_fingerprint` compares such copies; it reads everything and is the same for both.

A checkpoint up to 2 GiB has `fingerprint == full_fingerprint()`. Which of the two a checkpoint gets depends on its size alone, so a
path keeps its fingerprint as long as its content stays.

What was read is remembered in the cache folder under path, device, inode, size, and times of writing and of inode change. A file
written within the last second is not remembered, because a second write in the same tick would go unnoticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modelscope_app import locations
from modelscope_app.api.errors import BadInput
from modelscope_app.checkpoints.header import FileState, Shard, open_regular
from modelscope_app.checkpoints.hub_cache import blob_sha256

if TYPE_CHECKING:
    from modelscope_app.checkpoints.checkpoint import OpenCheckpoint

Coverage = Literal["full", "sampled"]

FULL_UP_TO_BYTES = 2 * 1024**3
"""Size of all safetensors files together up to which every byte is hashed."""
BLOCK_BYTES = 4096
SAMPLED_BYTES = 64 * 1024**2
"""About how much is read of a larger checkpoint, headers excluded."""
_CHUNK_BYTES = 4 * 1024**2
_SETTLED_AFTER_SECONDS = 1.0
_FORMAT = 1
"""Raised whenever the same content would get another fingerprint; part of the hash."""


def fingerprint(checkpoint: OpenCheckpoint) -> str:
    """`full:` or `sampled:` and 32 hex digits; the head of this module says what equal ones guarantee.

    Raises BadInput where a file changed since the checkpoint was opened.
    """
    size = sum(shard.state.size for shard in checkpoint.shards)
    return _fingerprint(checkpoint, "full" if size <= FULL_UP_TO_BYTES else "sampled")


def full_fingerprint(checkpoint: OpenCheckpoint) -> str:
    """`full:` and 32 hex digits, over every byte whatever the size. Raises BadInput where a file changed since it was opened."""
    return _fingerprint(checkpoint, "full")


def _fingerprint(checkpoint: OpenCheckpoint, coverage: Coverage) -> str:
    checkpoint.check_unchanged()
    tensors = sum(len(shard.tensors) for shard in checkpoint.shards)
    blocks = max(1, SAMPLED_BYTES // BLOCK_BYTES // max(1, tensors))
    digest: Callable[[Shard], str] = _sha256 if coverage == "full" else lambda shard: _sampled_digest(shard, blocks)
    key = "full" if coverage == "full" else f"sampled-{blocks}"
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashing and reading release the interpreter lock
        digests = list(pool.map(lambda shard: _remembered(shard, key, digest), checkpoint.shards))
    total = hashlib.sha256(f"mscope checkpoint {_FORMAT} {coverage}\n".encode())
    for shard_digest in sorted(digests):  # names and order of the files are not content
        total.update(f"shard {shard_digest}\n".encode())
    for name, content in _small_files(checkpoint):
        total.update(f"file {name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return f"{coverage}:{total.hexdigest()[:32]}"


def _small_files(checkpoint: OpenCheckpoint) -> list[tuple[str, bytes]]:
    files: list[tuple[str, bytes]] = []
    for name in sorted(("config.json", *checkpoint.tokenizer_files)):
        path = checkpoint.folder / name
        if not path.is_file():
            continue
        try:
            files.append((name, path.read_bytes()))
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror or error}") from None
    return files


def _sha256(shard: Shard) -> str:
    digest = hashlib.sha256()
    descriptor = open_regular(shard.path)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        buffer = bytearray(_CHUNK_BYTES)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def _sampled_digest(shard: Shard, blocks_per_tensor: int) -> str:
    digest = hashlib.sha256()
    descriptor = open_regular(shard.path)
    try:
        digest.update(f"{shard.state.size} {blob_sha256(shard.path) or shard.state.modified_ns}\n".encode())
        digest.update(os.pread(descriptor, shard.data_start, 0))
        for header in sorted(shard.tensors, key=lambda header: header.begin):
            for begin in block_starts(header.begin, header.end, blocks_per_tensor):
                digest.update(os.pread(descriptor, min(BLOCK_BYTES, header.end - begin), begin))
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def block_starts(begin: int, end: int, blocks: int) -> list[int]:
    """Where the sampled blocks of bytes `begin` to `end` start: evenly spaced, the first at the start, the last at the end.

    One block alone is the middle one. A range of no more bytes than the blocks hold is covered whole.

    >>> block_starts(0, 3 * 4096, 8)
    [0, 4096, 8192]
    >>> block_starts(0, 10 * 4096, 3)
    [0, 18432, 36864]
    """
    size = end - begin
    if size <= blocks * BLOCK_BYTES:
        return list(range(begin, end, BLOCK_BYTES))
    if blocks == 1:
        return [begin + (size - BLOCK_BYTES) // 2]
    return [begin + (size - BLOCK_BYTES) * number // (blocks - 1) for number in range(blocks)]


def _remembered(shard: Shard, key: str, compute: Callable[[Shard], str]) -> str:
    """`compute(shard)`, from the cache where the file is still the one it was computed from."""
    real_path = Path(os.path.realpath(shard.path))
    entry = locations.cache_dir() / "fingerprints" / f"{hashlib.sha256(os.fsencode(real_path)).hexdigest()[:32]}.json"
    before = _state(shard)
    identity: list[int | str] = [_FORMAT, str(real_path), *before]
    known = _stored(entry, identity)
    if key in known:
        return known[key]
    try:
        digest = compute(shard)
    except OSError as error:
        raise BadInput(f"cannot read {shard.path}: {error.strerror or error}") from None
    after = _state(shard)
    if after != before or not after.same_content(shard.state):
        raise BadInput(f"{shard.path} changed on disk while its fingerprint was computed; try again when nothing writes to it")
    if time.time() - max(after.modified_ns, after.changed_ns) / 1e9 > _SETTLED_AFTER_SECONDS:
        _store(entry, identity, {**known, key: digest})
    return digest


def _state(shard: Shard) -> FileState:
    try:
        return FileState.of(os.stat(shard.path))  # noqa: PTH116
    except OSError as error:
        raise BadInput(f"cannot read {shard.path}: {error.strerror or error}") from None


def _stored(entry: Path, identity: list[int | str]) -> dict[str, str]:
    """Digests remembered for a file of that identity; empty where there are none or the entry is damaged."""
    try:
        value = json.loads(entry.read_bytes())
        if value["file"] == identity:
            return {str(key): str(digest) for key, digest in value["digests"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return {}


def _store(entry: Path, identity: list[int | str], digests: dict[str, str]) -> None:
    part = entry.with_name(f".{entry.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):  # without a cache it is computed again next time
        entry.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"file": identity, "digests": digests}), encoding="utf-8")
        part.replace(entry)
