"""A preparer whose plugins have changed on disk says so and ends; the next one has the new ones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from preparer_process import PreparerProcess

from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import found_runs

pytest_plugins = ["preparer_process"]

Start = Callable[..., PreparerProcess]


def assert_stale(preparer: PreparerProcess, analysis: str = "submitted.plain") -> None:
    runs = len(found_runs().runs)
    assert preparer.prepare(analysis, id=7) == {"say": "stale", "id": 7}
    assert preparer.hear() is None and preparer.exit_code() == 0
    assert len(found_runs().runs) == runs


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_an_edited_plugin_is_noticed_and_the_next_preparer_has_the_new_one(start_preparer: Start, plugin_site: Path) -> None:
    preparer = start_preparer()
    for _ in range(3):
        preparer.prepared("submitted.plain")
    edit(plugin_site / "submitted.py", "rows: int = Field(4,", "rows: int = Field(5,")
    assert_stale(preparer)
    said = start_preparer().prepared("submitted.plain")
    assert RunFolder.open(Path(said["folder"])).job.params["rows"] == 5


def test_an_edit_that_keeps_size_and_time_of_a_file_that_was_replaced_is_noticed(start_preparer: Start, plugin_site: Path) -> None:
    preparer = start_preparer()
    preparer.prepared("submitted.plain")
    file = plugin_site / "submitted.py"
    before, text = file.stat(), file.read_text()
    file.with_suffix(".new").write_text(text.replace("rows: int = Field(4,", "rows: int = Field(5,"))
    file.with_suffix(".new").replace(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_stale(preparer)


def test_a_module_beside_the_plugin_is_watched_too(start_preparer: Start, plugin_site: Path) -> None:
    (plugin_site / "beside.py").write_text("FACTOR = 1\n")
    edit(plugin_site / "submitted.py", "import os\n", "import os\nfrom beside import FACTOR\n")
    preparer = start_preparer()
    preparer.prepared("submitted.plain")
    preparer.prepared("submitted.plain")
    (plugin_site / "beside.py").write_text("FACTOR = 22\n")
    assert_stale(preparer)


def test_an_edit_before_the_plugin_was_imported_needs_no_new_process(start_preparer: Start, plugin_site: Path) -> None:
    preparer = start_preparer()
    preparer.prepared("weights.stats", Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp")
    edit(plugin_site / "submitted.py", "rows: int = Field(4,", "rows: int = Field(5,")
    time.sleep(0.1)  # an edit in the same instant as the import might have come after it
    said = preparer.prepared("submitted.plain")
    assert RunFolder.open(Path(said["folder"])).job.params["rows"] == 5
    preparer.prepared("submitted.plain")


def test_a_removed_plugin_file_is_noticed(start_preparer: Start, plugin_site: Path) -> None:
    preparer = start_preparer()
    preparer.prepared("submitted.plain")
    (plugin_site / "submitted.py").unlink()
    assert_stale(preparer)
    assert start_preparer().prepare("submitted.plain")["exit_code"] == 3


def test_a_broken_plugin_that_was_mended_is_noticed(start_preparer: Start, plugin_site: Path) -> None:
    good = (plugin_site / "submitted.py").read_text()
    (plugin_site / "submitted.py").write_text("from nowhere import anything\n")
    preparer = start_preparer()
    assert "is broken" in preparer.prepare("submitted.plain")["error"]
    (plugin_site / "submitted.py").write_text(good)
    assert_stale(preparer)
    start_preparer().prepared("submitted.plain")


def test_a_plugin_that_was_installed_meanwhile_is_noticed(start_preparer: Start, plugin_site: Path) -> None:
    preparer = start_preparer()
    preparer.prepared("submitted.plain")
    metadata = plugin_site / "second-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: second\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[modelscope_app]\nsecond = submitted\n")
    assert_stale(preparer, "second.plain")
    start_preparer().prepared("second.plain")


def test_entry_points_written_anew_are_noticed(start_preparer: Start, plugin_site: Path) -> None:
    preparer = start_preparer()
    preparer.prepared("submitted.plain")
    (plugin_site / "submitted-1.0.dist-info" / "entry_points.txt").write_text("[modelscope_app]\nother = submitted\n")
    assert_stale(preparer)
    start_preparer().prepared("other.plain")


def test_a_plugin_that_was_disabled_meanwhile_is_noticed(start_preparer: Start, own_folders: Path) -> None:
    preparer = start_preparer()
    preparer.prepared("submitted.plain")
    (own_folders / "config").mkdir()
    (own_folders / "config" / "config.toml").write_text('[plugins]\ndisabled = ["submitted"]\n')
    assert_stale(preparer)
    assert "is disabled" in start_preparer().prepare("submitted.plain")["error"]


def test_files_nobody_imported_are_none_of_its_business(start_preparer: Start, plugin_site: Path) -> None:
    preparer = start_preparer(PYTHONDONTWRITEBYTECODE="")
    preparer.prepared("submitted.plain")
    assert (plugin_site / "__pycache__").is_dir(), "importing wrote into the folder itself"
    (plugin_site / "notes.py").write_text("never imported\n")
    (plugin_site / "folder").mkdir()
    preparer.prepared("submitted.plain")
    (plugin_site / "notes.py").unlink()
    preparer.prepared("submitted.plain")
