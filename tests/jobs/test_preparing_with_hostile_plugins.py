"""Whatever a plugin does while a submission is checked is the end of that submission at most, not of the preparer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from preparer_process import PreparerProcess, request

from modelscope_app.runs.index import found_runs, runs_dir
from modelscope_app.runs.queue_record import Need, read_queue_record

pytest_plugins = ["preparer_process"]


def need_of(folder: str) -> Need:
    record = read_queue_record(Path(folder))
    assert record is not None
    return record.need


FAILING = {
    "raise": "KeyError",
    "exit": "SystemExit: 3",
    "panic": "Panic: a library gave up",
    "interrupt": "KeyboardInterrupt",
    "unprintable": "Unprintable",
    "recursion": "RecursionError",
    "read": "EOFError",
    "close": "ValueError: with nothing to print on",
    "nothing": "it returned NoneType, not an Estimate",
    "negative": "its memory_bytes is -1, not a finite number from 0 on",
    "nan": "its memory_bytes is nan, not a finite number from 0 on",
    "infinite-time": "its seconds is inf, not a finite number from 0 on",
    "text": "its memory_bytes is of type str, not a number",
    "model-maybe": "its needs_model is of type str, not true or false",
}


def test_an_estimate_that_fails_is_a_warning_and_counts_as_none(preparer: PreparerProcess) -> None:
    for how, why in FAILING.items():
        said = preparer.prepared("submitted.hostile", params={"how": how})
        [warning] = said["warnings"]
        assert warning.startswith("the estimate of submitted.hostile failed (") and warning.endswith("); it runs without one")
        assert why in warning and "\n" not in warning and "\x1b" not in warning, warning
        assert need_of(said["folder"]) == Need()
    assert preparer.prepared("submitted.plain")["warnings"] == []


def test_an_estimate_that_is_not_there_is_a_warning(preparer: PreparerProcess) -> None:
    [warning] = preparer.prepared("submitted.no-such-estimate")["warnings"]
    assert "submitted has no function 'nowhere'" in warning


@pytest.mark.parametrize("how", ["print", "move", "thread"])
def test_an_estimate_that_prints_moves_or_leaves_threads_troubles_nobody(preparer: PreparerProcess, how: str) -> None:
    assert preparer.prepared("submitted.hostile", params={"how": how})["warnings"] == []
    assert Path(f"/proc/{preparer.process.pid}/cwd").readlink() == Path("/")
    assert preparer.prepared("submitted.plain")["warnings"] == []
    assert preparer.end() == 0 and preparer.hear() is None
    if how == "print":
        log = preparer.log.read_text()
        assert "not a message" in log and '{"say": "prepared"}' in log and "nor this" in log


@pytest.mark.parametrize("how", ["raise", "exit", "panic", "interrupt", "unprintable", "recursion", "read", "close"])
def test_a_check_of_params_that_fails_refuses_that_submission(preparer: PreparerProcess, how: str) -> None:
    said = preparer.prepare("submitted.hostile-params", params={"how": how})
    assert said["say"] == "refused" and said["exit_code"] in (2, 4) and said["error"]
    assert "Traceback" not in said["error"] and "\n" not in said["error"] and "\x1b" not in said["error"]
    assert not found_runs().runs
    preparer.prepared("submitted.hostile-params")


@pytest.mark.parametrize("analysis", ["submitted.hostile", "submitted.hostile-params"])
def test_a_plugin_that_ends_the_process_leaves_nothing_half_made(preparer: PreparerProcess, analysis: str) -> None:
    preparer.write(_line(analysis, "end"))
    assert preparer.hear() is None
    assert preparer.exit_code() == 9
    assert not list(runs_dir().glob("*"))


def test_one_that_hangs_can_be_killed_and_leaves_nothing_half_made(preparer: PreparerProcess) -> None:
    preparer.write(_line("submitted.hostile", "hang"))
    preparer.process.kill()
    assert preparer.hear() is None
    assert not list(runs_dir().glob("*"))


def test_one_that_hangs_ends_when_the_service_is_gone(preparer: PreparerProcess) -> None:
    preparer.prepared("submitted.plain")
    preparer.write(_line("submitted.hostile", "hang"))
    assert preparer.end() == 1
    assert len(found_runs().runs) == 1


def test_a_plugin_that_is_broken_is_refused(start_preparer: Callable[..., PreparerProcess], plugin_site: Path) -> None:
    (plugin_site / "submitted.py").write_text("import sys\nsys.exit('gone')\n")
    said = start_preparer().prepare("submitted.plain")
    assert (said["say"], said["exit_code"]) == ("refused", 3)
    assert "the plugin 'submitted' (submitted 1.0) is broken: its import fails: SystemExit: gone" in said["error"]


def test_a_disabled_plugin_is_refused(start_preparer: Callable[..., PreparerProcess]) -> None:
    said = start_preparer(MSCOPE_DISABLE_PLUGINS="submitted").prepare("submitted.plain")
    assert (said["say"], said["exit_code"]) == ("refused", 2) and "is disabled" in said["error"]


def test_settings_that_cannot_be_read_refuse_every_submission(start_preparer: Callable[..., PreparerProcess], own_folders: Path) -> None:
    (own_folders / "config").mkdir()
    (own_folders / "config" / "config.toml").write_text("[runs\n")
    preparer = start_preparer()
    for _ in range(2):
        said = preparer.prepare("submitted.plain")
        assert (said["say"], said["exit_code"]) == ("refused", 3) and "not valid TOML" in said["error"]
    assert not found_runs().runs


def _line(analysis: str, how: str) -> bytes:
    return json.dumps(request(analysis, params={"how": how})).encode()
