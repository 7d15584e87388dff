"""`mscope cache`: what takes room and can be computed again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click

from modelscope_app.api import neutralised
from modelscope_app.locations import cache_dir

KEPT = ("fingerprints", "results")
"""Folders inside the cache folder that are ours to clear."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, short_help="Show or clear what can be computed again.")
def command() -> None:
    """The cache: fingerprints and results that runs share. Clearing it loses time, never results of runs."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_cache(as_json: bool) -> None:
    """Show what is in the cache and how big it is."""
    sizes = {path.name: _bytes(path) for path in _entries()}
    if as_json:
        print(json.dumps({"folder": str(cache_dir()), "bytes": sizes}))
        return
    for name, size in sizes.items():
        print(f"{size / 1e6:>10,.1f} MB  {neutralised(name)}")
    print(f"{sum(sizes.values()) / 1e6:>10,.1f} MB  in {neutralised(str(cache_dir()))}")


@command.command("clear")
def clear() -> None:
    """Empty the cache."""
    freed = 0
    for path in _entries():
        freed += _bytes(path)
        shutil.rmtree(path)
    print(f"{freed / 1e6:,.1f} MB freed in {neutralised(str(cache_dir()))}")


def _entries() -> list[Path]:
    """What this program keeps there; the folder may be shared with other things."""
    return [folder for name in KEPT if (folder := cache_dir() / name).is_dir()]


def _bytes(folder: Path) -> int:
    return sum(part.lstat().st_size for part in folder.rglob("*") if part.is_file())
