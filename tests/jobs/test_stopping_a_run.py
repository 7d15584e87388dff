"""ctrl+c, SIGTERM and SIGHUP end a run within a second, mark it cancelled, and what it had is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Mscope


def begin(environment: dict[str, str], analysis: str, out: Path, word: str) -> subprocess.Popen[str]:
    """Start a run and wait until its log holds `word`."""
    words = [sys.executable, "-m", "modelscope_app.cli.main", "run", f"survivor.{analysis}", "--out", str(out), "--rows", "100000"]
    process = subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # under nohup it is ignored, by children too
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if any((out / name).is_file() and word in (out / name).read_text() for name in ("log.txt", "events.jsonl")):
            return process
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"did not begin: {process.communicate()[1]}")


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["ctrl+c", "sigterm", "sighup"]
)
@pytest.mark.parametrize(("analysis", "word"), [("long-kernel", "backward"), ("sleeping", "sleeping"), ("sampling", '"progress"')])
def test_a_signal_ends_a_run_within_a_second(
    survivor_environment: dict[str, str], tmp_path: Path, analysis: str, word: str, number: signal.Signals, exit_code: int
) -> None:
    environment = {**survivor_environment, "SURVIVOR_SLEEP": "0.01"}
    process = begin(environment, analysis, tmp_path / "run", word)
    time.sleep(0.3)
    sent = time.monotonic()
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    took = time.monotonic() - sent
    assert process.returncode == exit_code
    assert took < 1.0, f"took {took:.2f} s"
    assert "Traceback" not in errors
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "cancelled"
    assert status["exit_code"] == exit_code
    assert output == ""


def test_a_cancelled_fold_goes_on_where_it_was(survivor_environment: dict[str, str], mscope: Mscope, tmp_path: Path) -> None:
    environment = {**survivor_environment, "SURVIVOR_SLEEP": "0.01", "MSCOPE_SAVE_INTERVAL_SECONDS": "1000"}
    words = ["run", "survivor.training", "--rows", "300", "--seed", "3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "modelscope_app.cli.main", *words, "--out", str(tmp_path / "stopped")],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "stopped" / "events.jsonl").is_file() or '"progress"' not in (tmp_path / "stopped" / "events.jsonl").read_text():
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    saved = list((tmp_path / "stopped" / "stages" / "train").glob("state-*.safetensors"))
    assert len(saved) == 1  # saved on cancelling, though no save was due

    assert mscope("runs", "resume", tmp_path / "stopped", "--quiet").returncode == 0
    assert mscope(*words, "--out", tmp_path / "whole", "--quiet").returncode == 0
    result = "artifacts/result.safetensors"
    assert (tmp_path / "stopped" / result).read_bytes() == (tmp_path / "whole" / result).read_bytes()


def test_runs_cancel_stops_a_run_in_another_terminal(survivor_environment: dict[str, str], mscope: Mscope, tmp_path: Path) -> None:
    process = begin(survivor_environment, "sleeping", tmp_path / "run", "sleeping")
    refused = mscope("runs", "resume", tmp_path / "run")
    assert refused.returncode == 3
    assert "is running" in refused.stderr
    assert mscope("runs", "cancel", tmp_path / "run").returncode == 0
    assert process.wait(timeout=10) == 143
    again = mscope("runs", "cancel", tmp_path / "run")
    assert again.returncode == 3
    assert "not running" in again.stderr


def test_what_an_analysis_prints_goes_to_the_log(mscope: Mscope, tmp_path: Path) -> None:
    ended = mscope("run", "survivor.printing", "--out", tmp_path / "run", "--json")
    assert json.loads(ended.stdout)["facts"] == {"done": True}
    log = (tmp_path / "run" / "log.txt").read_text()
    for line in ("this belongs into the log", "so does this", "and this", "noise of a library", "a sentence for people"):
        assert line in log
    assert "warning: a sentence for people" in ended.stderr
    assert "noise" not in ended.stderr
    quiet = mscope("run", "survivor.printing", "--quiet", "--json")
    assert quiet.stderr == ""


def test_an_analysis_that_raises_fails_with_a_sentence_and_its_traceback_in_the_log(mscope: Mscope, tmp_path: Path) -> None:
    ended = mscope("run", "survivor.raising", "--out", tmp_path / "run", "--json")
    assert ended.returncode == 4
    assert json.loads(ended.stdout)["status"] == "failed"
    assert "KeyError" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "\x1b" not in ended.stderr
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("analysis", "sentence"), [("exiting", "SystemExit"), ("panicking", "a library gave up"), ("filling", "out of memory")]
)
def test_whatever_an_analysis_raises_fails_the_run_and_no_more(mscope: Mscope, tmp_path: Path, analysis: str, sentence: str) -> None:
    ended = mscope("run", f"survivor.{analysis}", "--out", tmp_path / "run", "--json")
    assert ended.returncode == 4
    assert json.loads(ended.stdout)["status"] == "failed"
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_run_cut_short_still_says_what_became_of_it(survivor_environment: dict[str, str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "modelscope_app.cli.main", "run", "survivor.long-kernel", "--out", str(tmp_path / "run"), "--json"]
    process = subprocess.Popen(words, env=survivor_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "log.txt").is_file() or "backward" not in (tmp_path / "run" / "log.txt").read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert json.loads(output)["status"] == "cancelled"
    assert "cancelled with ctrl+c" in errors
    assert "mscope runs resume" in errors


def test_the_cursor_comes_back_when_a_run_is_cut_short(survivor_environment: dict[str, str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "modelscope_app.cli.main", "run", "survivor.sleeping", "--out", str(tmp_path / "run")]
    terminal, end = os.openpty()
    process = subprocess.Popen(words, env=survivor_environment, stdin=end, stdout=end, stderr=end)
    os.close(end)
    shown = b""
    while b"\x1b[?25l" not in shown:
        shown += os.read(terminal, 1024)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    try:
        while part := os.read(terminal, 1024):
            shown += part
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 130
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")
    assert b"cancelled with ctrl+c" in shown


def test_a_done_run_is_not_executed_by_a_resumer_that_comes_too_late(
    mscope: Mscope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelscope_app.api import BadInput
    from modelscope_app.jobs.execute import execute
    from modelscope_app.runs.folder import RunFolder

    assert mscope("run", "survivor.printing", "--out", tmp_path / "run").returncode == 0
    before = (tmp_path / "run" / "status.json").read_bytes()
    with pytest.raises(BadInput, match="is done"):
        execute(RunFolder.open(tmp_path / "run"), None, None, None, None, None, 1.0)  # type: ignore[arg-type]
    assert (tmp_path / "run" / "status.json").read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_fails_with_that_sentence(mscope: Mscope, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], check=False, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        ended = mscope("run", "survivor.appending", "--rows", "30000", "--out", small / "run", "--quiet")
        assert ended.returncode == 4
        assert "disk is full" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert not list((small / "run").glob("tables/*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.2])
def test_ctrl_c_while_a_run_is_still_being_prepared_is_a_sentence(
    survivor_environment: dict[str, str], tmp_path: Path, seconds: float
) -> None:
    words = [sys.executable, "-m", "modelscope_app.cli.main", "run", "survivor.sleeping", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(words, env=survivor_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
