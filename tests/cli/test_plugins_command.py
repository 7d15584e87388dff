"""`mscope plugins` as whole commands, with plugins that are really installed on the path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_host import plugin_sources as sources
from plugin_host.plugin_sources import WORKING

from modelscope_app.testing import TemporaryPlugins

pytest_plugins = ["modelscope_app.testing"]


def mscope(plugins: TemporaryPlugins, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelscope_app.cli.main", *map(str, words)],
        capture_output=True,
        text=True,
        env={**plugins.environment(), "COLUMNS": "80", **variables},
        cwd=plugins.folder,
        check=False,
    )


def test_list_shows_every_plugin_and_imports_none(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("lens", "raise SystemExit('imported')", version="1.5")
    temporary_plugins.write("same", WORKING, distribution="first-lens")
    temporary_plugins.write("same", WORKING, distribution="second-lens")
    ended = mscope(temporary_plugins, "plugins", "list", MSCOPE_DISABLE_PLUGINS="weights")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = {tuple(line.split(maxsplit=3)) for line in ended.stdout.splitlines()[1:]}
    assert ("lens", "modelscope-lens", "1.5", "enabled") in {tuple(word.strip() for word in line) for line in lines}
    assert "refused: two plugins have this name" in ended.stdout
    listed = json.loads(mscope(temporary_plugins, "plugins", "list", "--json", MSCOPE_DISABLE_PLUGINS="weights").stdout)
    states = [(plugin["name"], plugin["distribution"], plugin["state"]) for plugin in listed["plugins"]]
    assert ("same", "first-lens", "refused") in states and ("same", "second-lens", "refused") in states
    assert ("weights", "modelscope-app", "disabled") in states
    assert listed["problems"] == []


def test_the_doctor_exits_0_when_all_is_well(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("lens", sources.PRINTS_AT_IMPORT)
    ended = mscope(temporary_plugins, "plugins", "doctor", "--json", MSCOPE_DISABLE_PLUGINS="weights")
    assert ended.returncode == 0
    report = json.loads(ended.stdout)  # what the plugin prints did not get in
    assert report["healthy"] is True
    (lens,) = [plugin for plugin in report["plugins"] if plugin["name"] == "lens"]
    assert lens == {
        "name": "lens",
        "distribution": "modelscope-lens",
        "version": "1.0",
        "module": "modelscope_lens_0",
        "state": "ok",
        "import_ms": lens["import_ms"],
        "api": [1, 1],
        "hooks": ["modelscope_analyses"],
        "analyses": ["lens.stats", "lens.diff"],
        "architectures": [],
        "readers": [],
        "panels": [],
        "problems": [],
        "warnings": [],
    }
    assert "hello from print" in ended.stderr and "hello from a child" in ended.stderr


def test_the_doctor_exits_3_and_goes_on_past_every_broken_plugin(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("raises", sources.RAISES_AT_IMPORT)
    temporary_plugins.write("exits", sources.EXITS_AT_IMPORT)
    temporary_plugins.write("lazy", sources.RAISES_LAZILY)
    temporary_plugins.write("old", sources.with_api("MODELSCOPE_API = (0, 0)"))
    temporary_plugins.write("works", WORKING)
    ended = mscope(temporary_plugins, "plugins", "doctor")
    assert ended.returncode == 3
    assert "Traceback" not in ended.stdout + ended.stderr
    for heading in ("raises: broken", "exits: broken", "old: broken", "lazy: partly broken", "works: ok"):
        assert heading in ended.stdout.splitlines()
    assert "SystemExit: 7" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80
    assert json.loads(mscope(temporary_plugins, "plugins", "doctor", "--json").stdout)["healthy"] is False


def test_the_doctor_exits_0_with_warnings_alone(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("lens", "import matplotlib\n" + WORKING)
    ended = mscope(temporary_plugins, "plugins", "doctor", MSCOPE_DISABLE_PLUGINS="weights,nobody")
    assert ended.returncode == 0
    words = " ".join(ended.stdout.split())
    assert "it imports matplotlib at its top" in words
    assert "the disabled plugin 'nobody' is not installed" in words
    assert "0 with problems, 2 with warnings" in words


def test_names_with_terminal_escapes_are_shown_and_not_obeyed(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("lens", "raise ValueError('\\x1b]0;title\\x07[red]x[/red]')\n", distribution="evil\x1b[31m")
    for words in (["list"], ["doctor"]):
        ended = mscope(temporary_plugins, "plugins", *words)
        assert "\x1b" not in ended.stdout + ended.stderr
    assert "[red]x[/red]" in "".join(ended.stdout.split())


def test_new_writes_a_plugin_and_says_where(temporary_plugins: TemporaryPlugins, tmp_path: Path) -> None:
    ended = mscope(temporary_plugins, "plugins", "new", "token-lens", "--folder", tmp_path / "lens", "--json")
    assert ended.returncode == 0
    created = json.loads(ended.stdout)
    assert created["folder"] == str(tmp_path / "lens")
    assert all(Path(file).is_file() for file in created["files"])
    again = mscope(temporary_plugins, "plugins", "new", "token-lens", "--folder", tmp_path / "lens")
    assert (again.returncode, again.stdout) == (3, "")
    assert "exists already" in again.stderr
    assert mscope(temporary_plugins, "plugins", "new", "weights").returncode == 2


@pytest.mark.parametrize("words", [["plugins", "list"], ["analyses"]])
def test_a_broken_settings_file_is_a_sentence(words: list[str], temporary_plugins: TemporaryPlugins, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[plugins]\ndisable = ['x']\n")
    ended = mscope(temporary_plugins, *words, MSCOPE_CONFIG_DIR=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr == f"mscope: {tmp_path}/config.toml: unknown key plugins.disable; did you mean plugins.disabled?\n"


def test_a_disabled_plugin_is_not_imported_by_any_command(temporary_plugins: TemporaryPlugins, tmp_path: Path) -> None:
    mark = tmp_path / "imported"
    temporary_plugins.write("lens", f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n{WORKING}")
    for words in (["plugins", "list"], ["plugins", "doctor"], ["analyses"], ["analyses", "lens.stats"], ["run", "lens.stats", "x"]):
        mscope(temporary_plugins, *words, MSCOPE_DISABLE_PLUGINS="lens")
    assert not mark.exists()
    mscope(temporary_plugins, "analyses", "lens.stats")
    assert mark.exists()
