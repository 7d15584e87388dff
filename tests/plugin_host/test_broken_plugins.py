"""Plugins that break in every way there is: the host works on with the others, and says so."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from plugin_host import plugin_sources as sources
from plugin_host.plugin_sources import WORKING, with_api, with_hook

from modelscope_app.api import BadInput, UsageError
from modelscope_app.testing import TemporaryPlugins

pytest_plugins = ["modelscope_app.testing"]

BROKEN = {
    "raises at import": (sources.RAISES_AT_IMPORT, ["its import fails: KeyError: 'no such thing'", "modelscope_bad_0.py line 1)"]),
    "exits at import": (sources.EXITS_AT_IMPORT, ["its import fails: SystemExit: 7", "modelscope_bad_0.py line 2)"]),
    "does not parse": (sources.SYNTAX_ERROR, ["its import fails: SyntaxError", "modelscope_bad_0.py, line 1"]),
    "imports what is not there": (sources.MISSING_IMPORT, ["No module named 'a_module_that_is_not_there'"]),
    "states no API version": (with_api(""), ["does not say which API versions it supports; write MODELSCOPE_API = (1, 1)"]),
    "supports a later API": (with_api("MODELSCOPE_API = (2, 3)"), ["it supports API 2 to 3, this is 1; update modelscope-app"]),
    "supports an earlier API": (with_api("MODELSCOPE_API = (0, 0)"), ["it supports API 0 to 0, this is 1; update the plugin"]),
    "states one number": (with_api("MODELSCOPE_API = 1"), ["MODELSCOPE_API is not a pair of integers"]),
    "states a range backwards": (with_api("MODELSCOPE_API = (2, 1)"), ["MODELSCOPE_API is not a pair of integers"]),
    "declares a hook with an argument": (
        WORKING.replace("def modelscope_analyses():", "def modelscope_analyses(registry):"),
        ["a hook is declared wrongly", "registry"],
    ),
}

HALF_BROKEN = {
    "raises in a hook": (sources.RAISES_IN_HOOK, ["modelscope_analyses fails: RuntimeError: the hook broke", "modelscope_bad_0.py line "]),
    "exits in a hook": (sources.EXITS_IN_HOOK, ["modelscope_analyses fails: SystemExit: 3"]),
    "raises lazily": (sources.RAISES_LAZILY, ["modelscope_analyses fails: RuntimeError: too late"]),
    "is endless": (sources.ENDLESS, ["modelscope_analyses returns more than 1000 values"]),
    "returns nothing": (with_hook("pass"), ["modelscope_analyses returns None; return a list of Analysis"]),
    "returns one analysis": (with_hook("return analysis('stats')"), ["returns a value of type Analysis; return a list of Analysis"]),
    "returns text": (with_hook("return 'stats'"), ["returns a value of type str"]),
    "returns a registry": (with_hook("return {'stats': analysis('stats')}"), ["a list with a value of type str in it"]),
    "returns another kind": (
        with_hook("return [Reader('.x', 'a:b')]"),
        ["a list with a value of type Reader in it; each must be of type Analysis"],
    ),
    "is a coroutine": (with_hook("return []").replace("def modelscope_analyses", "async def modelscope_analyses"), ["of type coroutine"]),
    "is a wrapper": (
        with_hook("return (yield)", marker="@hookimpl(wrapper=True)"),
        ["modelscope_analyses is a hook wrapper, which plugins cannot have"],
    ),
    "lacks the marker": (with_hook("return []", marker=""), ["modelscope_analyses lacks the @hookimpl marker, so it is never called"]),
    "misspells a marked hook": (
        with_hook("return []", hook="modelscope_analysis"),
        ["modelscope_analysis is not a hook; did you mean modelscope_analyses?"],
    ),
    "misspells an unmarked hook": (
        with_hook("return []", hook="modelscop_analyses", marker=""),
        ["modelscop_analyses is not a hook; did you mean modelscope_analyses?"],
    ),
    "implements no hook": (sources.HEAD, ["it implements no hook; there are modelscope_analyses, "]),
    "refuses its own analysis": (
        with_hook("return [analysis('Not A Name')]"),
        ["modelscope_analyses fails: ValueError: analysis name 'Not A Name'"],
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_plugin_that(kind: str, temporary_plugins: TemporaryPlugins) -> None:
    source, words = BROKEN[kind]
    temporary_plugins.write("bad", source)
    temporary_plugins.write("good", WORKING)
    host = temporary_plugins.host()
    assert [bound.id for bound in host.analyses()] == ["good.stats", "good.diff"]
    bad, good = host.report().plugins
    assert (bad.state, good.state) == ("broken", "ok")
    (problem,) = bad.problems
    for word in words:
        assert word in problem
    with pytest.raises(BadInput) as error:
        host.analysis("bad.stats")
    assert str(error.value).startswith("bad.stats: the plugin 'bad' (modelscope-bad 1.0) is broken: ")
    assert words[0] in str(error.value)
    assert str(error.value).endswith("`mscope plugins doctor` says more")


@pytest.mark.parametrize("kind", HALF_BROKEN)
def test_a_plugin_whose_hook(kind: str, temporary_plugins: TemporaryPlugins) -> None:
    source, words = HALF_BROKEN[kind]
    temporary_plugins.write("bad", source)
    temporary_plugins.write("good", WORKING)
    host = temporary_plugins.host()
    assert [bound.id for bound in host.analyses()] == ["good.stats", "good.diff"]
    bad, good = host.report().plugins
    assert (bad.state, good.state) == ("partly broken", "ok")
    (problem,) = bad.problems
    for word in words:
        assert word in problem
    with pytest.raises(BadInput, match="is broken"):
        host.analysis("bad.stats")


def test_a_plugin_with_a_broken_hook_keeps_its_others(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("bad", sources.RAISES_IN_HOOK)
    assert [reader.suffix for reader in temporary_plugins.host().readers()] == [".pipes"]


def test_a_misspelt_hook_beside_a_good_one_is_reported_and_the_good_one_works(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("half", WORKING + "\n@hookimpl\ndef modelscope_reader():\n    return []\n")
    host = temporary_plugins.host()
    assert host.analysis("half.stats").id == "half.stats"
    assert host.report().plugins[0].problems == ("modelscope_reader is not a hook; did you mean modelscope_readers?",)
    with pytest.raises(UsageError, match=r"did you mean half\.stats"):
        host.analysis("half.stat")


def test_a_generator_is_a_fine_hook(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("lazy", sources.LAZY)
    assert temporary_plugins.host().analysis("lazy.stats").analysis.name == "stats"


def test_keyboard_interrupt_is_the_users_and_passes(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("bad", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        temporary_plugins.host().load_all()


def test_an_error_that_cannot_be_shown_is_still_an_error(temporary_plugins: TemporaryPlugins) -> None:
    source = "class Rude(Exception):\n    def __str__(self):\n        raise ValueError\nraise Rude\n"
    temporary_plugins.write("bad", source)
    assert "Rude: its message cannot be read" in temporary_plugins.host().load("bad").problems[0]


def test_control_characters_in_an_error_are_neutralised(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("bad", "raise ValueError('a\\x1b[31mb\\u202ec')\n")
    problem = temporary_plugins.host().load("bad").problems[0]
    assert "\x1b" not in problem and "\u202e" not in problem
    assert "a\\x1b[31mb\\u202ec" in problem


@pytest.mark.parametrize("name", ["Probes", "a.b", "a b", "-a", "1a"])
def test_an_entry_point_name_that_could_not_begin_an_id_is_refused(name: str, temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write(name, WORKING, distribution="modelscope-odd")
    assert "is not lower-case words joined by dashes" in temporary_plugins.host().load(name).problems[0]


def test_an_entry_point_that_names_an_object_is_refused(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("odd", WORKING)
    entry_points = temporary_plugins.folder / "modelscope_odd-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text(entry_points.read_text().rstrip() + ":plugin\n")
    assert "it must name a module" in temporary_plugins.host().load("odd").problems[0]


@pytest.mark.parametrize(
    ("declaration", "problem"),
    [
        ("weights: dict[str, int] = {}", "param weights: dict[str, int] cannot be written on a command line"),
        ("path: __import__('pathlib').Path", "param path: Path does not say what the path is"),
        ("top: int = Field(0, ge=1)", "param top: its default 0 is refused; it takes an integer of at least 1"),
        ("top: int = Field(3, alias='k')", "param top: an alias would give it two names"),
        ("rows: list = []", "param rows: a list must say of what"),
    ],
)
def test_an_analysis_with_params_nobody_can_write_is_left_out(declaration: str, problem: str, temporary_plugins: TemporaryPlugins) -> None:
    source = f"{WORKING}\nclass Bad(BaseModel):\n    {declaration}\n".replace(
        'return [analysis("stats"), analysis("diff")]',
        'return [analysis("stats"), Analysis(name="bad", title="", summary="", params=Bad, run="a:b")]',
    )
    temporary_plugins.write("one", source)
    host = temporary_plugins.host()
    assert [bound.id for bound in host.analyses()] == ["one.stats"]
    assert host.report().plugins[0].problems[0].startswith(f"analysis 'bad': {problem}")
    with pytest.raises(BadInput) as error:
        host.analysis("one.bad")
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("hook", "value", "problem"),
    [
        ("modelscope_readers", "Reader('arrow', 'a:b')", "reader 'arrow': a suffix begins with a dot"),
        ("modelscope_readers", "Reader('.CSV', 'a:b')", "reader '.csv': the host reads this format itself"),
        ("modelscope_readers", "Reader('.x', 'no function')", "reader '.x': read='no function' is not 'package.module:name'"),
        ("modelscope_readers", "Reader(5, 'a:b')", "modelscope_readers returns a value whose suffix is no text"),
        ("modelscope_architectures", "Architecture('mlp', 'a:b')", "architecture 'mlp': the host builds this model type itself"),
        ("modelscope_architectures", "Architecture('x', 'a:b', 'c')", "architecture 'x': adapter='c' is not 'package.module:name'"),
        ("modelscope_panels", "Panel('x', 'X', print)", "panel 'x': widget=<built-in function print> is not 'package.module:name'"),
        (
            "modelscope_analyses",
            "Analysis(name='x', title=3, summary='', params=Params, run='a:b')",
            "analysis 'x': its title must be of type str",
        ),
        (
            "modelscope_analyses",
            "Analysis(name='x', title='', summary='', params=type('P', (), {'model_fields': {}}), run='a:b')",
            "analysis 'x': its params must be a pydantic model class",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_left_out(hook: str, value: str, problem: str, temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("one", with_hook(f"return [{value}]", hook))
    report = temporary_plugins.host().report().plugins[0]
    assert report.problems[0].startswith(problem)
    assert report.analyses + report.architectures + report.readers + report.panels == ()


def test_functions_that_are_not_there_are_found_without_importing_their_module(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.module("one_analyses", "import torch\nraise RuntimeError('never imported')\ndef stats(context, params): ...\n")
    value = "Analysis(name='{0}', title='', summary='', params=Params, run='{1}')"
    values = [value.format("a", "one_analyses:stats"), value.format("b", "one_analyses:stat"), value.format("c", "one_analysis:stats")]
    temporary_plugins.write("one", with_hook(f"return [{', '.join(values)}]"))
    problems = temporary_plugins.host().report().plugins[0].problems
    assert len(problems) == 2
    assert "defines no 'stat'; did you mean 'stats'?" in problems[0]
    assert problems[1] == "one_analysis:stats: there is no module one_analysis"
    assert "one_analyses" not in sys.modules


def test_a_plugin_that_prints_at_import_leaves_stdout_alone(temporary_plugins: TemporaryPlugins, capfd: pytest.CaptureFixture[str]) -> None:
    temporary_plugins.write("loud", sources.PRINTS_AT_IMPORT)
    assert not temporary_plugins.host().load("loud").problems
    print("after")
    captured = capfd.readouterr()
    assert captured.out == "after\n"
    assert "hello from print" in captured.err and "hello from a child" in captured.err


def test_a_plugin_that_imports_torch_at_its_top_works_and_is_warned_about(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.write("heavy", "import torch\n" + WORKING)
    temporary_plugins.write("later", "from torch import Tensor\n" + WORKING)
    temporary_plugins.write("light", WORKING)
    code = """
import json
from modelscope_app.plugin_host import PluginHost
report = PluginHost().report()
print(json.dumps({plugin.name: [plugin.state, plugin.warnings] for plugin in report.plugins}))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=temporary_plugins.environment())
    found = json.loads(ended.stdout)
    for name in ("heavy", "later"):
        state, warnings = found[name]
        assert state == "ok"
        assert any(warning.startswith("it imports torch at its top") for warning in warnings)
    assert found["light"] == ["ok", []]
