"""`model.safetensors.index.json`: which shard holds which tensor.

Shard names come from whoever made the checkpoint. They are checked as text and never by resolving them, because folders of
the Hugging Face cache are links that all lead elsewhere.

Every disagreement between the index and the shards is an error that names file and tensor: a shard that is not there, a
tensor the index promises and the shard lacks, a tensor the shard has and the index does not know, and a file that is
named like a shard of this index (`model-00004-of-00003.safetensors`) and is not in it. Other safetensors files in the folder
(an adapter, `consolidated.safetensors`) are left alone, because model repositories have them for good reasons.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from modelscope_app.api.errors import BadInput
from modelscope_app.checkpoints.header import Shard, open_regular, read_shard, shown
from modelscope_app.checkpoints.json_text import LARGEST_BYTES, unique_object

INDEX_SUFFIX = ".safetensors.index.json"
SUFFIX = ".safetensors"
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{1,9})-of-(?P<count>[0-9]{1,9})\.safetensors", re.DOTALL)


def read_index(path: Path) -> dict[str, str]:
    """Shard file name by tensor name, each a plain file name ending in `.safetensors`. Raises BadInput naming the index."""
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(file.fileno()).st_size > LARGEST_BYTES:
            raise BadInput(f"{path} is larger than {LARGEST_BYTES:,} bytes, which no index should be; not read")
        raw = file.read()
    try:
        index = unique_object(raw)
    except ValueError as error:
        raise BadInput(f"{path} is wrong: {error}; download it again") from None
    shard_of = index.get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise BadInput(f"{path} is wrong: weight_map has to map tensor names to file names; download it again")
    if not shard_of:
        raise BadInput(f"{path} names no tensor at all; download it again")
    first_tensor: dict[str, str] = {}
    for tensor, shard in shard_of.items():
        first_tensor.setdefault(shard, tensor)
    for shard, tensor in first_tensor.items():
        _check_shard_name(shard, tensor, path)
    return shard_of


def read_indexed_shards(index: Path, shard_of: dict[str, str], files_in_folder: Iterable[str]) -> list[Shard]:
    """Headers of all shards an index names, in the order of their names, after index and shards were found to agree.

    `files_in_folder` are the names in the index' folder. Raises BadInput naming file and tensor.
    """
    present = set(files_in_folder)
    first_tensor: dict[str, str] = {}
    for tensor, shard in shard_of.items():
        first_tensor.setdefault(shard, tensor)
    for name, tensor in first_tensor.items():
        if name not in present:
            raise BadInput(f"{index} names {shown(name)} for the tensor {shown(tensor)}, and it is not in the folder; download it again")
    _refuse_extra_shards(index, set(first_tensor), present)
    shards = [read_shard(index.parent / name) for name in sorted(first_tensor)]
    _check_agreement(index, shard_of, shards)
    return shards


def refuse_incomplete_numbering(folder: Path, names: Sequence[str]) -> None:
    """Raise BadInput where shards without an index are numbered `-of-N` and a number is missing."""
    numbers_of: dict[tuple[str, str], set[int]] = {}
    for name in names:
        if found := _NUMBERED.fullmatch(name):
            numbers_of.setdefault((found["stem"], found["count"]), set()).add(int(found["number"]))
    for (stem, count), numbers in numbers_of.items():
        first_missing = next((number for number in range(1, len(numbers) + 1) if number not in numbers), len(numbers) + 1)
        if first_missing <= int(count):
            missing = f"{stem}-{first_missing:0{len(count)}}-of-{count}{SUFFIX}"
            raise BadInput(f"{folder} has {len(numbers)} of {int(count)} shards and lacks {shown(missing)}; download it again")


def refuse_repeated_tensors(shards: Sequence[Shard]) -> None:
    """Raise BadInput, naming both files, where two shards hold a tensor of the same name."""
    holder: dict[str, str] = {}
    for shard in shards:
        for header in shard.tensors:
            other = holder.setdefault(header.name, shard.name)
            if other != shard.name:
                raise BadInput(
                    f"{shown(shard.name)} and {shown(other)} in {shard.path.parent} both hold the tensor {shown(header.name)}, so they "
                    "are not shards of one checkpoint; name one file instead of the folder, or remove the file that does not belong"
                )


def _check_shard_name(shard: str, tensor: str, index: Path) -> None:
    if "/" in shard or "\\" in shard or "\0" in shard or shard in ("", ".", "..") or Path(shard).is_absolute():
        raise BadInput(
            f"{index} names {shown(shard) or 'an empty name'} for the tensor {shown(tensor)}; "
            "a shard has to be a plain file name in the same folder"
        )
    if not shard.endswith(SUFFIX):
        raise BadInput(
            f"{index} names {shown(shard)} for the tensor {shown(tensor)}, which is not a .safetensors file; mscope reads safetensors only"
        )


def _refuse_extra_shards(index: Path, named: set[str], present: set[str]) -> None:
    stems = {found["stem"] for name in named if (found := _NUMBERED.fullmatch(name))}
    for name in sorted(present - named):
        found = _NUMBERED.fullmatch(name)
        if found and found["stem"] in stems:
            tensors = read_shard(index.parent / name).tensors
            holding = f" (it holds {shown(tensors[0].name)})" if tensors else ""
            raise BadInput(f"{shown(name)}{holding} is an extra shard: {index} does not name it; remove it, or download the index again")


def _check_agreement(index: Path, shard_of: dict[str, str], shards: Sequence[Shard]) -> None:
    for shard in shards:
        for header in shard.tensors:
            said = shard_of.get(header.name)
            if said != shard.name:
                if said is None:
                    raise BadInput(
                        f"{shard.path} holds the tensor {shown(header.name)}, which {index.name} does not name; download both again"
                    )
                refuse_repeated_tensors(shards)
                raise BadInput(
                    f"{shard.path} holds the tensor {shown(header.name)}, which {index.name} puts into {shown(said)}; download both again"
                )
    if sum(len(shard.tensors) for shard in shards) != len(shard_of):
        stored = {header.name for shard in shards for header in shard.tensors}
        missing = next(name for name in shard_of if name not in stored)
        raise BadInput(f"{index} puts the tensor {shown(missing)} into {shown(shard_of[missing])}, which lacks it; download both again")
