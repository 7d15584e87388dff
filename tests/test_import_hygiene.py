"""What may be imported by what, looked up in `sys.modules` of a real process. lint-imports checks the same statically."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "polars", "textual", "matplotlib", "numpy", "safetensors"}
SAMPLE = Path(__file__).resolve().parents[1] / "sample_checkpoints" / "digits-mlp"

_REPORT = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr))
"""


def imported(code: str) -> set[str]:
    """Top-level modules that running `code` leaves in sys.modules."""
    ended = subprocess.run([sys.executable, "-c", f"{_REPORT}\n{code}"], capture_output=True, text=True, env=os.environ.copy(), check=False)
    assert "Traceback" not in ended.stderr, ended.stderr
    return set(json.loads(ended.stderr.splitlines()[-1]))


def command(*words: object) -> str:
    return f"from modelscope_app.cli.main import main; main({[str(word) for word in words]})"


HELP = [["--help"], ["--version"], ["run", "--help"], ["runs", "--help"], ["service", "--help"], ["service", "status"]]


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    assert not imported(command(*words)) & HEAVY


def test_the_top_level_help_imports_no_plugin() -> None:
    assert "modelscope_weights" not in imported(command("--help"))


@pytest.mark.parametrize("words", [["inspect", SAMPLE, "--json"], ["inspect", SAMPLE, "--tensors"]], ids=["json", "text"])
def test_inspect_imports_nothing_heavy(words: list[object]) -> None:
    assert not imported(command(*words)) & HEAVY


@pytest.mark.parametrize("words", [["plugins", "list"], ["plugins", "doctor"], ["analyses"], ["analyses", "weights.stats"]], ids=" ".join)
def test_looking_at_plugins_imports_nothing_heavy(words: list[str]) -> None:
    assert not imported(command(*words)) & HEAVY


def test_a_wrong_option_is_found_before_torch_is_imported() -> None:
    assert "torch" not in imported(command("run", "weights.stats", SAMPLE, "--bins", "0"))


def test_a_missing_checkpoint_is_found_before_torch_is_imported() -> None:
    assert "torch" not in imported(command("run", "weights.stats", "/nowhere/at/all"))


def test_the_contract_for_plugin_authors_imports_the_standard_library_pluggy_and_pydantic_alone() -> None:
    allowed = {"pluggy", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "modelscope_app"}
    found = imported("import modelscope_app.api") - set(sys.stdlib_module_names)
    assert {name for name in found if not name.startswith("_")} <= allowed


PACKAGES = [
    *("checkpoints", "cli.main", "runs.folder", "runs.index", "plugin_host", "rendering"),
    *("jobs", "jobs.submission", "jobs.execute", "jobs.client", "jobs.starting"),
]


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_does_not_import_torch(package: str) -> None:
    assert not imported(f"import modelscope_app.{package}") & {"torch", "transformers", "textual", "polars", "matplotlib"}


TUI = [
    "tui.app",
    "tui.workspace",
    "tui.run.screen",
    "tui.library.screen",
    "tui.jobs.screen",
    "tui.run_list",
    "tui.checkpoint.tensor_detail",
]


@pytest.mark.parametrize("module", TUI)
def test_the_app_imports_nothing_heavy_but_textual(module: str) -> None:
    assert not imported(f"import modelscope_app.{module}") & ((HEAVY - {"textual"}) | {"pyarrow", "textual_plot", "textual_fastdatatable"})


_SHOWN = """
import asyncio
from modelscope_app.tui.app import MscopeApp
from modelscope_app.tui.checkpoint.overview_page import OverviewPage
async def show():
    app = MscopeApp({path!r})
    async with app.run_test() as pilot:
        while "4,810 in 4 tensors" not in app.export_screenshot().replace("&#160;", " "):
            await pilot.pause(0.02)
asyncio.run(show())
"""


def test_the_overview_is_on_the_screen_before_torch_or_a_plugin_is_imported() -> None:
    found = imported(_SHOWN.format(path=str(SAMPLE)))
    assert not found & {"torch", "transformers", "polars", "numpy", "modelscope_weights"}
