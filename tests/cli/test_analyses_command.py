"""`mscope analyses` as whole commands."""

from __future__ import annotations

import json
import subprocess
import sys

from plugin_host import plugin_sources as sources
from plugin_host.plugin_sources import WORKING

from modelscope_app.testing import TemporaryPlugins

pytest_plugins = ["modelscope_app.testing"]

FIRST_PARTY = "influence,probes,weights"


def analyses(plugins: TemporaryPlugins, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelscope_app.cli.main", "analyses", *words],
        capture_output=True,
        text=True,
        env={**plugins.environment(), "COLUMNS": "80", **variables},
        check=False,
    )


def test_the_listing_goes_by_plugin_and_says_what_each_takes(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("lens", WORKING.replace('analysis("diff")', 'analysis("diff", checkpoints=Checkpoints(2, 2))'))
    ended = analyses(temporary_plugins, MSCOPE_DISABLE_PLUGINS=FIRST_PARTY)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line.rstrip() for line in ended.stdout.splitlines()][:3] == [
        "lens (modelscope-lens 1.0)",
        "  lens.stats  Stats: What is it? Takes 1 checkpoint.",
        "  lens.diff   Diff: What is it? Takes 2 checkpoints.",
    ]


def test_the_listing_names_broken_plugins_on_stderr_and_shows_the_rest(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("bad", sources.EXITS_AT_IMPORT)
    temporary_plugins.write("lens", WORKING)
    ended = analyses(temporary_plugins, "--json", MSCOPE_DISABLE_PLUGINS=FIRST_PARTY)
    assert ended.returncode == 0
    assert ended.stderr.startswith("mscope: plugin bad: its import fails: SystemExit: 7")
    listed = json.loads(ended.stdout)
    assert [value["id"] for value in listed["analyses"]] == ["lens.stats", "lens.diff"]
    assert list(listed["problems"]) == ["bad"]
    assert listed["analyses"][0] == {
        "id": "lens.stats",
        "title": "Stats",
        "summary": "What is it?",
        "plugin": "lens",
        "distribution": "modelscope-lens",
        "version": "1.0",
        "analysis_version": 1,
        "checkpoints": {"minimum": 1, "maximum": 1, "kind": "weights"},
    }


def test_one_analysis_is_shown_with_its_options(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("lens", WORKING)
    ended = analyses(temporary_plugins, "lens.stats")
    assert (ended.returncode, ended.stderr) == (0, "")
    words = " ".join(ended.stdout.split())
    assert "lens.stats: Stats What is it? Takes 1 checkpoint. Version 1, from modelscope-lens 1.0." in words
    assert "--bins how many bins an integer from 1 to 512; default: 64" in words
    assert words.endswith("mscope run lens.stats CHECKPOINT [--OPTION VALUE ...]")
    assert max(map(len, ended.stdout.splitlines())) <= 80


def test_one_analysis_as_json_has_its_options_and_their_schema(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("lens", WORKING)
    described = json.loads(analyses(temporary_plugins, "lens.stats", "--json").stdout)
    (option,) = described["options"]
    assert (option["option"], option["takes"], option["default"]) == ("--bins", "an integer from 1 to 512", 64)
    assert described["schema"]["properties"]["bins"] == {
        "default": 64,
        "description": "how many bins",
        "maximum": 512,
        "minimum": 1,
        "title": "Bins",
        "type": "integer",
    }


def test_a_wrong_id_suggests_the_nearest_and_a_broken_plugin_is_named(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("lens", WORKING)
    temporary_plugins.write("bad", sources.RAISES_AT_IMPORT)
    wrong = analyses(temporary_plugins, "lens.stat")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "mscope: no analysis 'lens.stat'; did you mean lens.stats?\n"
    broken = analyses(temporary_plugins, "bad.stats")
    assert (broken.returncode, broken.stdout) == (3, "")
    assert "bad.stats: the plugin 'bad' (modelscope-bad 1.0) is broken: its import fails: KeyError: 'no such thing'" in broken.stderr


def test_an_environment_without_analyses_says_nothing_wrong(temporary_plugins: TemporaryPlugins) -> None:
    ended = analyses(temporary_plugins, MSCOPE_DISABLE_PLUGINS=FIRST_PARTY)
    assert (ended.returncode, ended.stderr) == (0, "")
