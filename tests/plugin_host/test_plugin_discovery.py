"""Finding plugins without importing them, loading as few as needed, and the block list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_host.plugin_sources import WORKING

from modelscope_app.api import UsageError
from modelscope_app.plugin_host import PluginHost
from modelscope_app.testing import TemporaryPlugins

pytest_plugins = ["modelscope_app.testing"]


def leaving_a_mark(folder: Path, name: str) -> str:
    """A working plugin that writes a file when it is imported."""
    return f"import pathlib\npathlib.Path({str(folder / name)!r}).touch()\n{WORKING}"


def test_names_imports_no_plugin(temporary_plugins: TemporaryPlugins, tmp_path: Path) -> None:
    temporary_plugins.write("one", leaving_a_mark(tmp_path, "one"))
    temporary_plugins.write("two", leaving_a_mark(tmp_path, "two"))
    host = temporary_plugins.host()
    assert host.names() == ("one", "two")
    assert [candidate.origin for candidate in host.candidates()] == ["modelscope-one 1.0", "modelscope-two 1.0"]
    assert list(tmp_path.iterdir()) == []


def test_asking_for_an_analysis_imports_its_plugin_and_no_other(temporary_plugins: TemporaryPlugins, tmp_path: Path) -> None:
    for name in ("one", "two"):
        temporary_plugins.write(name, leaving_a_mark(tmp_path, name), version="2.5")
    bound = temporary_plugins.host().analysis("two.diff")
    assert (bound.id, bound.plugin, bound.analysis.name) == ("two.diff", "two", "diff")
    assert (bound.distribution, bound.version) == ("modelscope-two", "2.5")
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_a_plugin_is_imported_once(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("one", WORKING)
    host = temporary_plugins.host()
    assert host.load("one") is host.load("one")
    assert host.load_all() == (host.load("one"),)


def test_analyses_come_by_plugin_in_the_order_each_gives_them(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("two", WORKING)
    temporary_plugins.write("one", WORKING)
    assert [bound.id for bound in temporary_plugins.host().analyses()] == ["one.stats", "one.diff", "two.stats", "two.diff"]


def test_the_report_says_what_each_plugin_brings(temporary_plugins: TemporaryPlugins) -> None:
    source = (
        WORKING
        + """
@hookimpl
def modelscope_architectures():
    return [Architecture("tree", f"{__name__}:run")]

@hookimpl
def modelscope_readers():
    return (Reader(".Pipes", f"{__name__}:run"),)

@hookimpl
def modelscope_panels():
    return [Panel("tree", "Tree", f"{__name__}:run")]
"""
    )
    temporary_plugins.write("one", source)
    host = temporary_plugins.host()
    report = host.report()
    (plugin,) = report.plugins
    assert report.is_healthy
    assert (plugin.state, plugin.api, plugin.problems, plugin.warnings) == ("ok", (1, 1), (), ())
    assert plugin.import_ms is not None and plugin.import_ms > 0
    assert plugin.hooks == ("modelscope_analyses", "modelscope_architectures", "modelscope_panels", "modelscope_readers")
    assert (plugin.analyses, plugin.architectures, plugin.readers, plugin.panels) == (
        ("one.stats", "one.diff"),
        ("tree",),
        (".pipes",),
        ("tree",),
    )
    assert [architecture.model_type for architecture in host.architectures()] == ["tree"]
    assert [reader.suffix for reader in host.readers()] == [".Pipes"]
    assert [panel.value.name for panel in host.panels()] == ["tree"]
    builder, reader = host.architecture("tree"), host.reader(".PIPES")
    assert builder is not None and builder.plugin == "one"
    assert reader is not None and reader.distribution == "modelscope-one"
    assert host.architecture("bush") is None
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("by", ["environment", "settings", "argument"])
def test_a_disabled_plugin_is_never_imported(
    by: str, temporary_plugins: TemporaryPlugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        temporary_plugins.write(name, leaving_a_mark(tmp_path, name))
    search_path = [str(temporary_plugins.folder)]
    if by == "environment":
        monkeypatch.setenv("MSCOPE_DISABLE_PLUGINS", " one , two,")
    if by == "settings":
        config = Path(os.environ["MSCOPE_CONFIG_DIR"])
        config.mkdir()
        (config / "config.toml").write_text('[plugins]\ndisabled = ["one", "two"]\n')
    host = PluginHost(["one", "two"] if by == "argument" else None, search_path)
    assert host.names() == ("three",)
    assert [plugin.state for plugin in host.report().plugins] == ["disabled", "ok", "disabled"]
    with pytest.raises(UsageError, match=r"one\.stats: the plugin 'one' is disabled"):
        host.analysis("one.stats")
    with pytest.raises(UsageError, match="disabled"):
        host.load("two")
    with pytest.raises(UsageError, match="no analysis"):
        host.analysis("four.stats")
    assert [path.name for path in tmp_path.iterdir()] == ["three"]


def test_the_environment_adds_to_the_settings(temporary_plugins: TemporaryPlugins, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        temporary_plugins.write(name, WORKING)
    config = Path(os.environ["MSCOPE_CONFIG_DIR"])
    config.mkdir()
    (config / "config.toml").write_text('plugins.disabled = ["one"]\n')
    monkeypatch.setenv("MSCOPE_DISABLE_PLUGINS", "two")
    assert PluginHost(search_path=[str(temporary_plugins.folder)]).names() == ("three",)


def test_a_disabled_name_that_is_not_installed_is_a_warning(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("probes", WORKING)
    report = temporary_plugins.host(disabled=["probe"]).report()
    assert report.warnings == ("the disabled plugin 'probe' is not installed; did you mean 'probes'?",)
    assert report.is_healthy


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("one.stat", "no analysis 'one.stat'; did you mean one.stats?"),
        ("oen.stats", "no analysis 'oen.stats'; did you mean one.stats?"),
        ("diff", "no analysis 'diff'; did you mean one.diff?"),
        ("one", "no analysis 'one'; the plugin 'one' has one.stats, one.diff"),
        ("something.else-entirely", "no analysis 'something.else-entirely'; `mscope analyses` lists what there is"),
        ("", "no analysis ''; `mscope analyses` lists what there is"),
        ("one.\x1b[31m", r"no analysis 'one.\x1b[31m'; the plugin 'one' has one.stats, one.diff"),
    ],
)
def test_an_unknown_analysis_suggests_the_nearest(temporary_plugins: TemporaryPlugins, asked: str, answer: str) -> None:
    temporary_plugins.write("one", WORKING)
    with pytest.raises(UsageError) as error:
        temporary_plugins.host().analysis(asked)
    assert str(error.value) == answer


def test_an_unknown_plugin_suggests_the_nearest(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("probes", WORKING)
    with pytest.raises(UsageError, match="no plugin 'probs'; did you mean 'probes'"):
        temporary_plugins.host().load("probs")


def test_the_first_of_two_installations_of_one_distribution_counts(temporary_plugins: TemporaryPlugins, tmp_path: Path) -> None:
    temporary_plugins.write("one", WORKING, distribution="modelscope_one", version="2.0")
    older = TemporaryPlugins(tmp_path)
    older.write("one", WORKING, distribution="Modelscope-One", version="1.0")
    host = PluginHost((), [str(temporary_plugins.folder), str(older.folder)])
    assert [candidate.origin for candidate in host.candidates()] == ["modelscope_one 2.0"]
    assert host.report().is_healthy


@pytest.mark.parametrize(
    ("entry_points", "problem"),
    [
        (b"[modelscope_app]\nthis line is no entry point\n", "does not parse"),
        (b"\xff\xfe[modelscope_app]\n", "cannot be read"),
    ],
    ids=["malformed", "not text"],
)
def test_a_distribution_whose_entry_points_cannot_be_read_takes_nobody_with_it(
    temporary_plugins: TemporaryPlugins, entry_points: bytes, problem: str
) -> None:
    temporary_plugins.write("one", WORKING)
    temporary_plugins.write("bad", WORKING)
    (temporary_plugins.folder / "modelscope_bad-1.0.dist-info" / "entry_points.txt").write_bytes(entry_points)
    host = temporary_plugins.host()
    assert [bound.id for bound in host.analyses()] == ["one.stats", "one.diff"]
    report = host.report()
    assert not report.is_healthy
    (sentence,) = report.problems
    assert "modelscope-bad" in sentence and problem in sentence


def test_a_distribution_without_metadata_is_still_named(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("one", WORKING)
    (temporary_plugins.folder / "modelscope_one-1.0.dist-info" / "METADATA").unlink()
    (candidate,) = temporary_plugins.host().candidates()
    assert str(temporary_plugins.folder) in candidate.distribution


def test_listing_names_in_a_process_of_its_own_imports_nothing_heavy_and_no_plugin(
    temporary_plugins: TemporaryPlugins, tmp_path: Path
) -> None:
    temporary_plugins.write("one", leaving_a_mark(tmp_path, "one"))
    code = """
import json, sys
from modelscope_app.plugin_host import PluginHost
names = PluginHost().names()
heavy = [name for name in ("torch", "polars", "textual", "transformers", "numpy", "rich", "modelscope_weights") if name in sys.modules]
print(json.dumps([names, heavy]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=temporary_plugins.environment(), cwd=tmp_path
    )
    names, heavy = json.loads(ended.stdout)
    assert "one" in names and "weights" in names
    assert heavy == []
    assert list(tmp_path.iterdir()) == []
