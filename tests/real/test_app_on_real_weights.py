"""The app as a person uses it, in a real terminal, on real pretrained weights."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_process import end_processes
from tmux_terminal import Terminal, terminal

pytestmark = pytest.mark.real


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal; whatever was started from it ends with the test."""
    with terminal(tmp_path) as made:
        try:
            yield made
        finally:
            end_processes()


def copied() -> str:
    """What was copied last."""
    return (Path(os.environ["MSCOPE_STATE_DIR"]) / "copied.txt").read_text()


def facts(command: str) -> dict[str, object]:
    """Of the run that this command shows or makes."""
    words = shlex.split(command)
    assert words[0] == "mscope", command
    ended = subprocess.run(
        [sys.executable, "-m", "modelscope_app.cli.main", *words[1:], "--json"], capture_output=True, text=True, check=True, timeout=300
    )
    found: dict[str, object] = json.loads(ended.stdout)["facts"]
    return found


def test_open_run_watch_sort_copy_and_run_the_command_headless(window: Terminal, smollm2_folder: Path) -> None:
    window.start(smollm2_folder)
    window.wait_for("134,515,008 in 272 tensors", "30 x model.layers.*")
    window.keys("3")
    window.wait_for("probes.defection")
    window.keys("/")
    window.keys(*"weights.stats")
    window.wait_for("What values does each tensor hold")
    window.keys("Down")  # from the search to the list
    window.press_until("Enter", "$ mscope run weights.stats")
    window.wait_for("fits:")
    window.keys("C-r")
    window.wait_for("+ done  weights.stats", "largest_kurtosis_tensor", "134,515,008")
    window.press_until("7", "272 rows")
    assert "model." in window.press_until("s", "sorted by")
    window.keys("c")
    window.wait_for("Copied the command")
    shown = copied()
    assert shown.startswith("mscope runs show ")
    window.keys("Escape")
    window.wait_for("30 x model.layers.*")
    window.keys("4")
    window.wait_for("weights.stats", "done")
    in_app = facts(shown)
    window.press_until("Enter", "+ done  weights.stats")
    window.keys("c")
    window.wait_for("Copied the command: mscope run weights.stats")
    assert facts(copied()) == in_app and in_app["parameters"] == 134_515_008
