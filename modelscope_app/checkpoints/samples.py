"""The small checkpoints that come with the project, where they are installed."""

from __future__ import annotations

from pathlib import Path

FIRST = "digits-mlp"


def samples_folder() -> Path | None:
    """Their folder: in the checkout, or beside the installed package; None where they are not."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "sample_checkpoints", package / "sample_checkpoints"):
        if (folder / FIRST / "config.json").is_file():
            return folder
    return None


def sample_checkpoints() -> list[Path]:
    """Paths of the samples, series after the checkpoint they belong to; empty where there are none."""
    folder = samples_folder()
    if folder is None:
        return []
    found = []
    for path in sorted(folder.iterdir()):
        found += [each for each in (path, path / "series") if each.is_dir()]
    return found
