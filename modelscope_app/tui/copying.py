"""Copying: to the clipboard through the terminal (OSC 52), and to a file, because not every terminal lets it through.

tmux passes it on with `set -g set-clipboard on`; macOS Terminal.app and screen do not pass it at all.
"""

from __future__ import annotations

from pathlib import Path

from modelscope_app.locations import state_dir
from modelscope_app.runs.atomic import replacing

MOST_THROUGH_TERMINAL = 75_000
"""Characters; terminals drop longer sequences, some of them in silence."""


def copied_file() -> Path:
    """The file that holds what was copied last."""
    return state_dir() / "copied.txt"


def write_copied(text: str) -> Path:
    """Keep what was copied in the file, readable for its owner alone. Raises OSError."""
    path = copied_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing(path) as part:
        part.touch(mode=0o600)
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
