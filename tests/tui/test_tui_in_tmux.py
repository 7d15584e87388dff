"""The app in a real terminal: quitting while a job runs, poor terminals, and nothing left behind on the screen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_process import Background, background
from tmux_terminal import Terminal, terminal

SAMPLE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp"


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    monkeypatch.setenv("SURVIVOR_SLEEP", "0.1")
    with background(tmp_path / "site", monkeypatch) as made:
        yield made


@pytest.fixture
def window(tmp_path: Path, jobs: Background) -> Iterator[Terminal]:
    with terminal(tmp_path) as made:
        yield made


def test_quit_while_a_job_runs_come_back_and_see_it_finish(window: Terminal, jobs: Background) -> None:
    window.start(SAMPLE)
    window.wait_for("4,810 in 4 tensors")
    window.keys("3")
    window.wait_for("/ to search")
    window.keys("/")
    window.keys("t", "w", "o", "-")
    window.wait_for("two-passes")
    window.press_until("Enter", "$ mscope run survivor.two-passes")
    window.keys("C-r")
    window.wait_for("> running  survivor.two-passes", "%")
    window.keys("C-q")
    window.wait_for("jobs go on:", "mscope runs watch", "ended with 0")
    window.start()
    window.wait_for("Library", "survivor.two-passes")
    window.press_until("3", "no checkpoint")
    window.wait_for("+ done")


@pytest.mark.parametrize(
    ("term", "settings"), [("screen", {}), ("xterm", {"NO_COLOR": "1"}), ("xterm-256color", {"SSH_CONNECTION": "a b c d"})]
)
def test_poor_terminals_show_the_same_words(window: Terminal, term: str, settings: dict[str, str]) -> None:
    window.start(SAMPLE, TERM=term, **settings)
    window.resize(80, 24)
    screen = window.wait_for("4,810 in 4 tensors", "2 x layers.*", "1 Overview", "no jobs")
    assert len(screen.rstrip("\n").split("\n")) <= 24
    window.keys("?")
    window.wait_for("Every tensor of the checkpoint", "Here")
    window.keys("Escape")
    window.resize(60, 15)
    window.wait_for("digits-mlp")
    window.keys("C-q")
    assert "digits-mlp" not in window.wait_for("ended with 0")


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"PYTHONIOENCODING": "latin-1"}, "needs UTF-8"), ({"TERM": "dumb"}, "terminal of type 'dumb'")],
)
def test_a_terminal_it_cannot_be_shown_on_is_a_sentence(window: Terminal, environment: dict[str, str], said: str) -> None:
    window.start(SAMPLE, **environment)
    assert "mscope inspect CHECKPOINT" in window.wait_for(said, "ended with 2").replace("\n", "")


def test_without_a_terminal_it_is_a_sentence_and_mscope_alone_is_the_help() -> None:
    run = [sys.executable, "-m", "modelscope_app.cli.main"]
    opened = subprocess.run([*run, str(SAMPLE)], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert (opened.returncode, opened.stdout) == (2, "") and "needs a terminal" in opened.stderr
    alone = subprocess.run(run, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert alone.returncode == 2 and "Usage: mscope" in alone.stderr


def test_what_cannot_be_opened_is_a_sentence_on_the_screen(window: Terminal, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    window.start(tmp_path)
    window.wait_for("pickles only")
    window.keys("Escape")
    window.wait_for("1 Recent")


def test_settings_that_are_wrong_are_a_sentence_before_the_terminal_is_taken(window: Terminal) -> None:
    folder = Path(os.environ["MSCOPE_CONFIG_DIR"])
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('[tui]\ntheme = "mscope-drak"\n')
    window.start(SAMPLE)
    window.wait_for("tui.theme", "mscope-dark", "ended with 3")
    (folder / "config.toml").write_text('[tui]\nkeys = {quti = "f5"}\n')
    window.start(SAMPLE)
    window.wait_for("tui.keys.quti", "quit", "ended with 3")
