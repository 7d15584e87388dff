"""What a process that lives on notices of files that were changed behind its back, and what it is right to overlook."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelscope_app.jobs import staleness
from modelscope_app.jobs.staleness import ImportedFiles


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path`; what was imported from it is forgotten."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(staleness, "_LOADED", time.time())
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__dict__", {}).get("__file__")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def changed(site: Path) -> Callable[[], str | None]:
    """What has changed below `site`, whose files alone this test is about."""
    files = ImportedFiles()

    def found() -> str | None:
        path = files.changed()
        assert path is None or path.startswith(str(site)), f"{path} was changed while the tests ran"
        return path

    return found


def _wait_for_the_clock() -> None:
    """Until a file written now would be younger than one written before: file systems count in ticks of some milliseconds."""
    time.sleep(0.05)


def test_nothing_changed_is_nothing(site: Path, changed: Callable[[], str | None]) -> None:
    assert changed() is None
    _wait_for_the_clock()
    assert changed() is None


@pytest.mark.parametrize("change", ["written", "written in place", "touched", "replaced", "removed", "became a folder"])
def test_a_change_of_an_imported_file_is_noticed(site: Path, changed: Callable[[], str | None], change: str) -> None:
    file = site / "edited.py"
    file.write_text("VALUE = 1\n")
    _wait_for_the_clock()
    assert changed() is None, "what was written before it is imported is what is imported"
    importlib.import_module("edited")
    assert changed() is None
    before = file.stat()
    _wait_for_the_clock()
    match change:
        case "written":
            file.write_text("VALUE = 22\n")
        case "written in place":
            file.write_text("VALUE = 2\n")
        case "touched":
            file.touch()
        case "replaced":
            (site / "new").write_text("VALUE = 2\n")
            os.utime(site / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
            (site / "new").replace(file)
        case "removed":
            file.unlink()
        case "became a folder":
            file.unlink()
            file.mkdir()
    assert changed() == str(file)
    assert changed() == str(file), "and it stays so"


def test_a_change_between_the_import_and_the_next_look_is_noticed(site: Path, changed: Callable[[], str | None]) -> None:
    file = site / "edited.py"
    file.write_text("VALUE = 1\n")
    _wait_for_the_clock()
    assert changed() is None
    importlib.import_module("edited")
    before = file.stat()
    _wait_for_the_clock()
    file.write_text("VALUE = 2\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as an archive or a copy that keeps times sets it
    assert changed() == str(file)


def test_a_file_that_a_clock_ahead_has_written_is_not_stale_for_ever(site: Path, changed: Callable[[], str | None]) -> None:
    file = site / "edited.py"
    file.write_text("VALUE = 1\n")
    os.utime(file, (time.time() + 3600, time.time() + 3600))
    _wait_for_the_clock()
    assert changed() is None
    importlib.import_module("edited")
    assert changed() is None and changed() is None


def test_every_module_of_a_package_is_watched(site: Path, changed: Callable[[], str | None]) -> None:
    (site / "parts" / "inner").mkdir(parents=True)
    for name in ("__init__.py", "one.py", "inner/__init__.py", "inner/two.py"):
        (site / "parts" / name).write_text("")
    (site / "spaced").mkdir()
    (site / "spaced" / "three.py").write_text("")  # a namespace package has no file of its own
    _wait_for_the_clock()
    importlib.invalidate_caches()
    assert changed() is None
    for name in ("parts.one", "parts.inner.two", "spaced.three"):
        importlib.import_module(name)
    assert changed() is None
    _wait_for_the_clock()
    (site / "parts" / "never_imported.py").write_text("")
    assert changed() is None
    (site / "spaced" / "three.py").write_text("VALUE = 1\n")
    assert changed() == str(site / "spaced" / "three.py")
    (site / "spaced" / "three.py").unlink()
    (site / "parts" / "inner" / "two.py").write_text("VALUE = 1\n")
    assert changed() in (str(site / "parts" / "inner" / "two.py"), str(site / "spaced" / "three.py"))


@pytest.mark.parametrize("suffix", ["dist-info", "egg-info"])
def test_distributions_that_come_change_and_go_are_noticed(site: Path, tmp_path: Path, suffix: str) -> None:
    files = ImportedFiles()
    metadata = site / f"lens-1.0.{suffix}"
    metadata.mkdir()
    assert files.changed() == str(metadata)
    files = ImportedFiles()
    (metadata / "entry_points.txt").write_text("[modelscope_app]\nlens = lens\n")
    metadata.rename(site / f"lens-1.1.{suffix}")
    assert files.changed() in (str(metadata), str(site / f"lens-1.1.{suffix}"))
    files = ImportedFiles()
    assert files.changed() is None
    _wait_for_the_clock()
    (site / f"lens-1.1.{suffix}" / "entry_points.txt").write_text("[modelscope_app]\nlens = lens2\n")
    assert files.changed() == str(site / f"lens-1.1.{suffix}" / "entry_points.txt")
    files = ImportedFiles()
    (site / f"lens-1.1.{suffix}" / "entry_points.txt").unlink()
    (site / f"lens-1.1.{suffix}").rmdir()
    assert files.changed() is not None


def test_other_files_that_come_and_go_in_a_folder_of_plugins_are_overlooked(site: Path) -> None:
    (site / "lens-1.0.dist-info").mkdir()
    files = ImportedFiles()
    for name in ("__pycache__", "other"):
        (site / name).mkdir()
        assert files.changed() is None
    (site / "notes.txt").write_text("")
    assert files.changed() is None


def test_a_folder_on_the_path_that_comes_into_being_is_noticed_once_it_holds_a_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "later"))
    monkeypatch.setattr(staleness, "_LOADED", time.time())
    files = ImportedFiles()
    (tmp_path / "later").mkdir()
    assert files.changed() is None
    (tmp_path / "later" / "lens-1.0.dist-info").mkdir()
    assert files.changed() == str(tmp_path / "later" / "lens-1.0.dist-info")


def test_settings_that_come_change_and_go_are_noticed(site: Path, own_folders: Path) -> None:
    files = ImportedFiles()
    config = own_folders / "config" / "config.toml"
    config.parent.mkdir()
    assert files.changed() is None
    config.write_text("")
    assert files.changed() == str(config)
    files = ImportedFiles()
    config.write_text('[plugins]\ndisabled = ["weights"]\n')
    assert files.changed() == str(config)
    files = ImportedFiles()
    config.unlink()
    assert files.changed() == str(config)


def test_what_an_installed_library_writes_and_imports_for_itself_is_overlooked(site: Path, changed: Callable[[], str | None]) -> None:
    """Kernels that torch compiles come as `torch.` modules of files it has just written."""
    assert changed() is None
    kernel = site / "kernel.py"
    kernel.write_text("VALUE = 1\n")
    import torch

    name = "torch.a_kernel_written_for_this_test"
    assert torch.__file__ is not None
    spec = importlib.util.spec_from_file_location(name, kernel)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    assert changed() is None
    kernel.write_text("VALUE = 22\n")
    assert changed() is None


def test_modules_of_every_odd_kind_are_no_trouble(site: Path, changed: Callable[[], str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy:
        def __getattr__(self, name: str) -> object:
            raise AssertionError("a lazy module was woken")

    for name, module in {"odd_none": None, "odd_object": object(), "odd_lazy": Lazy()}.items():
        monkeypatch.setitem(sys.modules, name, module)
    relative = type(sys)("odd_relative")
    relative.__file__ = "odd_relative.py"
    monkeypatch.setitem(sys.modules, "odd_relative", relative)
    assert changed() is None


CHANGED_WHILE_IMPORTED = """
import sys, time
from modelscope_app.jobs.staleness import ImportedFiles
sys.path.insert(0, sys.argv[1])
import early
with open(early.__file__, "a") as file:
    file.write("# edited while other modules were still being imported\\n")
time.sleep(0.05)
print(ImportedFiles().changed())
"""


def test_an_edit_before_the_first_look_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text("VALUE = 1\n")
    _wait_for_the_clock()
    ended = subprocess.run(
        [sys.executable, "-P", "-c", CHANGED_WHILE_IMPORTED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.strip() == str(tmp_path / "early.py")
