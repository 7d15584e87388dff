"""`hf:org/name` in the local Hugging Face cache, never on the network.

    <cache>/models--org--name/refs/main                 the commit that `main` was when it was downloaded
                              snapshots/<commit>/       the files of that commit, links into
                              blobs/<sha256>            the contents

The cache is where huggingface_hub puts it: HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, else HF_HOME/hub, else
XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from modelscope_app.api.errors import BadInput

PREFIX = "hf:"
_REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?"
_REVISION = r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*"
_SNAPSHOT_FOLDERS = 3
"""snapshots/<commit> below models--org--name."""


def hub_cache() -> Path:
    """Folder of the local Hugging Face cache, which need not exist."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return Path(os.path.expandvars(named)).expanduser().absolute()
    home = os.environ.get("HF_HOME")
    if not home:
        home = str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.path.expandvars(home)).expanduser().absolute() / "hub"


def snapshot(reference: str) -> Path:
    """Folder of the snapshot that `hf:org/name` or `hf:org/name@revision` stands for; the revision is `main` unless given.

    Raises BadInput where the name is not one, or the local cache does not hold it.
    """
    repository, _, revision = reference.removeprefix(PREFIX).partition("@")
    if not re.fullmatch(_REPOSITORY, repository) or ".." in repository or "--" in repository:
        raise BadInput(f"{reference} does not name a Hugging Face model; write hf:org/name")
    revision = revision or "main"
    if not re.fullmatch(_REVISION, revision) or ".." in revision:
        raise BadInput(f"{reference}: {revision} is not a revision; write hf:org/name@main, or a branch, tag or commit after the @")
    folder = hub_cache() / ("models--" + repository.replace("/", "--"))
    if not folder.is_dir():
        raise BadInput(
            f"{repository} is not in the local Hugging Face cache ({hub_cache()}), and mscope does not download; "
            f"run `hf download {repository}` first, or name a folder"
        )
    commit = _commit(folder, revision)
    found = folder / "snapshots" / commit
    if not found.is_dir():
        there = sorted(path.name for path in (folder / "snapshots").glob("*") if path.is_dir())
        others = f"; there are: {', '.join(there[:5])}" if there else ""
        raise BadInput(f"the local Hugging Face cache has no {revision} of {repository}{others} (write hf:{repository}@COMMIT)")
    return found


def cached_models() -> list[str]:
    """Every model in the local cache as `hf:org/name`, by name; empty where there is no cache or it cannot be read."""
    try:
        names = [path.name for path in hub_cache().iterdir() if path.name.startswith("models--") and (path / "snapshots").is_dir()]
    except OSError:
        return []
    return sorted(PREFIX + name.removeprefix("models--").replace("--", "/") for name in names)


def model_name(path: Path) -> str | None:
    """`name` of `models--org--name/snapshots/<commit>[/file]`, whose own last component tells people nothing; else None."""
    parts = path.parts
    for at in range(max(0, len(parts) - _SNAPSHOT_FOLDERS - 1), len(parts) - 2):
        if parts[at].startswith("models--") and parts[at + 1] == "snapshots":
            return parts[at].rpartition("--")[2] or None
    return None


def blob_sha256(path: Path) -> str | None:
    """The sha256 that a cache file is named after, where `path` is one or leads to one over any links; None anywhere else.

    It is what the hub said the content is. Nobody has read the file to check.
    """
    target = Path(os.path.realpath(path))
    if target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name):
        return target.name
    return None


def _commit(folder: Path, revision: str) -> str:
    try:
        commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return revision
    return commit if re.fullmatch(r"[0-9a-f]{7,64}", commit) else revision
