"""The `mscope` command as a whole: help, errors, exit codes, what goes where."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelscope_app.cli.app import _is_missing
from modelscope_app.cli.main import exit_code_of

SAMPLES = Path(__file__).resolve().parents[2] / "sample_checkpoints"


def test_help_names_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in ("inspect", "run", "runs", "analyses", "plugins", "cache", "completion", "demo"):
        assert f"\n  {name}" in printed


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["/tmp"], 2, "the app needs a terminal, and this is none; `mscope inspect CHECKPOINT`"),
        (["/nowhere/at/all"], 3, "/nowhere/at/all does not exist; name a folder or file of safetensors, a run folder, or hf:org/name"),
        (["inspect"], 2, "Missing argument"),
        (["inspect", "/nowhere/at/all"], 3, "/nowhere/at/all"),
        (["run", "weights.stat", "/tmp"], 2, "did you mean weights.stats?"),
        (["run", "stats", "/tmp"], 2, "did you mean weights.stats?"),
        (["run", "--json", "weights.stats"], 2, "options come after the analysis"),
        (["run", "weights.stats"], 2, "takes 1 checkpoint, and none was given"),
        (["run", "weights.stats", "a", "b"], 2, "takes 1 checkpoint, and 2 were given"),
        (["run", "weights.stats", "/nowhere"], 3, "/nowhere"),
        (["run", "weights.stats", "x", "--colour"], 2, "No such option '--colour'"),
        (["run", "weights.stats", "x", "--bins", "0"], 2, "--bins 0: takes an integer from 1 to 512"),
        (["run", "weights.stats", "x", "--bins", "many"], 2, "--bins many: takes an integer from 1 to 512"),
        (["run", "weights.stats", "x", "--seed", "-1"], 2, "--seed"),
        (["run", "weights.stats", "x", "--assert", "nan"], 2, "write FACT >= VALUE"),
        (["run", "weights.stats", "x", "--params", "params.yaml"], 2, "takes a .toml or .json file"),
        (["runs", "show", "nothing"], 3, "no run 'nothing'"),
        (["runs", "export", "nothing"], 3, "no run 'nothing'"),
        (["runs", "resume", "/tmp"], 3, "not a run folder"),
        (["analyses", "weights.nothing"], 2, "no analysis"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_sentence_on_stderr(capsys: pytest.CaptureFixture[str], words: list[str], code: int, sentence: str) -> None:
    assert exit_code_of(words) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("mscope: ")


def test_a_place_one_may_not_look_at_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _is_missing(str(tmp_path / "nothing")) and not _is_missing(str(tmp_path))

    def refused(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "lstat", refused)
    assert not _is_missing(str(tmp_path / "nothing"))


def test_a_checkpoint_name_with_escapes_is_shown_neutralised(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["inspect", "/nowhere/\x1b[31mred"]) == 3
    assert "\x1b" not in capsys.readouterr().err


PRINTING = [
    ["inspect", "--tensors", SAMPLES / "digits-mlp"],
    ["inspect", "--json", SAMPLES / "digits-mlp"],
    ["run", "weights.stats", "--quiet", SAMPLES / "digits-mlp"],
    ["analyses"],
    ["analyses", "weights.diff"],
    ["plugins", "list"],
    ["runs", "list"],
]


@pytest.mark.parametrize("words", PRINTING, ids=lambda words: " ".join(map(str, words[:2])))
def test_a_reader_that_goes_away_is_no_traceback(words: list[object]) -> None:
    gone, pipe = os.pipe()
    os.close(gone)
    command = [sys.executable, "-m", "modelscope_app.cli.main", *map(str, words)]
    ended = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    os.close(pipe)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert exit_code_of(["completion", shell]) == 0
    assert "_MSCOPE_COMPLETE" in capsys.readouterr().out


def test_tab_completes_subcommands_analyses_and_options() -> None:
    def completions(words: str) -> list[str]:
        code = "from modelscope_app.cli.main import main; main()"
        environment = {"_MSCOPE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        return ended.stdout.split()

    assert "plain,inspect" in completions("mscope ins")
    assert "plain,weights.stats" in completions("mscope run weights.s")
    assert "plain,--bins" in completions("mscope run weights.stats --b")
    assert "plain,weights.diff" in completions("mscope analyses weights.d")
    assert "plain,latest" in completions("mscope runs show la")
    assert "dir,../some" in completions("mscope runs show ../some")
    assert "file,sample_ch" in completions("mscope inspect sample_ch")
