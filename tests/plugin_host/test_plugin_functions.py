"""`package.module:function` strings, loaded where a job runs and checked where none does."""

from __future__ import annotations

import sys

import pytest

from modelscope_app.api import BadInput, JobFailed
from modelscope_app.plugin_host import load_function
from modelscope_app.plugin_host.functions import missing_function
from modelscope_app.testing import TemporaryPlugins

pytest_plugins = ["modelscope_app.testing"]

SOURCE = """
import os.path as paths
from json import dumps as to_text
try:
    import a_module_that_is_not_there as fast
except ImportError:
    def fast(): ...
if paths:
    class Widget: ...
else:
    async def later(): ...
first, (second, *rest) = 1, (2, 3)
typed: int = 4
declared: int
def run(context, params): return "ran"
"""


def test_the_function_a_reference_names_is_imported_and_returned(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.module("lens_analyses", SOURCE)
    assert load_function("lens_analyses:run")(None, None) == "ran"


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("no colon", "'no colon' is not package.module:function"),
        ("lens_analyses:", "is not package.module:function"),
        ("lens_analyses:a.b", "is not package.module:function"),
        ("../etc:run", "is not package.module:function"),
        (":run", "is not package.module:function"),
        ("lens_nowhere:run", "lens_nowhere, which lens_nowhere:run names, does not import: ModuleNotFoundError: No module named"),
        ("lens_analyses:rum", "lens_analyses has no function 'rum'; did you mean 'run'?"),
        ("lens_analyses:first", "lens_analyses:first is of type int and cannot be called"),
        ("lens_raises:run", "lens_raises, which lens_raises:run names, does not import: ZeroDivisionError: division by zero"),
        ("lens_exits:run", "does not import: SystemExit: 3"),
    ],
)
def test_a_reference_to_nothing_is_a_sentence(reference: str, sentence: str, temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.module("lens_analyses", SOURCE)
    temporary_plugins.module("lens_raises", "1 / 0\n")
    temporary_plugins.module("lens_exits", "raise SystemExit(3)\n")
    with pytest.raises(JobFailed) as error:
        load_function(reference)
    assert sentence in str(error.value)


def test_an_error_for_people_raised_at_import_stays_as_it_is(temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.module("lens_asks", "from modelscope_app.api import BadInput\nraise BadInput('install sox')\n")
    with pytest.raises(BadInput, match=r"^install sox$"):
        load_function("lens_asks:run")


@pytest.mark.parametrize("name", ["paths", "to_text", "fast", "Widget", "later", "first", "second", "rest", "typed", "run"])
def test_whatever_a_module_binds_at_its_top_counts_as_there(name: str, temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.module("lens_analyses", SOURCE)
    assert missing_function(f"lens_analyses:{name}") is None
    assert "lens_analyses" not in sys.modules


@pytest.mark.parametrize("name", ["declared", "json", "dumps", "a_module_that_is_not_there"])
def test_what_it_only_mentions_does_not(name: str, temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.module("lens_analyses", SOURCE)
    assert "defines no" in (missing_function(f"lens_analyses:{name}") or "")


@pytest.mark.parametrize("source", ["from json import *", "def __getattr__(name): return print"])
def test_a_module_that_could_hold_any_name_gets_the_benefit_of_the_doubt(source: str, temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.module("lens_any", source)
    assert missing_function("lens_any:run") is None


def test_a_module_in_a_package_is_found_without_importing_the_package(temporary_plugins: TemporaryPlugins) -> None:
    package = temporary_plugins.folder / "lens_package" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "analyses.py").write_text("def run(): ...\n")
    assert missing_function("lens_package.inner.analyses:run") is None
    assert "defines no 'walk'" in (missing_function("lens_package.inner.analyses:walk") or "")
    assert (
        missing_function("lens_package.outer.analyses:run")
        == "lens_package.outer.analyses:run: there is no module lens_package.outer.analyses"
    )
    assert missing_function("lens_package.inner.analyses.deep:run") is not None
    assert not [name for name in sys.modules if name.startswith("lens_package")]


@pytest.mark.parametrize("source", ["def run(:\n", "\0"])
def test_a_module_that_does_not_parse_is_said_to(source: str, temporary_plugins: TemporaryPlugins) -> None:
    temporary_plugins.module("lens_wrong", source)
    assert "cannot be read as Python" in (missing_function("lens_wrong:run") or "")


def test_a_function_of_a_compiled_module_is_not_looked_for() -> None:
    assert missing_function("math:no_such_function") is None


def test_the_check_agrees_with_the_import_on_first_party_analyses() -> None:
    assert missing_function("modelscope_app.plugin_host.functions:load_function") is None
    assert load_function("modelscope_app.plugin_host.functions:load_function") is load_function
