"""`mscope plugins new`: what it writes works as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from modelscope_app.api import BadInput, UsageError
from modelscope_app.plugin_host.scaffold import new_plugin


def install(project: Path) -> None:
    """Write the metadata that `pip install -e` would, as the project's pyproject.toml says."""
    described = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    metadata = project / f"{described['name'].replace('-', '_')}-{described['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {described['name']}\nVersion: {described['version']}\n")
    lines = []
    for group, entries in described["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {module}" for name, module in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


def test_a_new_plugin_passes_its_own_test(tmp_path: Path) -> None:
    created = new_plugin("token-lens", tmp_path / "lens")
    install(created.folder)
    environment = {**os.environ, "PYTHONPATH": str(created.folder), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error::pytest.PytestAssertRewriteWarning"],
        cwd=created.folder,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout


def test_a_new_plugin_is_checked_and_formatted(tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    created = new_plugin("lens", tmp_path / "lens")
    for words in (["check", "--select", "E,F,W,B,UP,SIM"], ["format", "--check"]):
        ended = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--line-length", "140", str(created.folder)], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_it_writes_the_files_of_a_plugin_and_no_placeholder(tmp_path: Path) -> None:
    created = new_plugin("token-lens", tmp_path / "deep" / "lens")
    names = [str(path.relative_to(created.folder)) for path in created.files]
    package = "modelscope_token_lens"
    assert set(names) == {
        "pyproject.toml",
        "README.md",
        "conftest.py",
        "tests/test_analyses.py",
        *(f"{package}/{name}.py" for name in ("__init__", "plugin", "params", "analyses")),
    }
    assert all("{{" not in path.read_text() for path in created.files)
    project = tomllib.loads((created.folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"modelscope_app": {"token-lens": f"{package}.plugin"}}


def test_the_folder_is_named_after_the_plugin_unless_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_plugin("lens").folder == tmp_path / "modelscope-lens"


@pytest.mark.parametrize("existing", ["folder", "file"])
def test_what_exists_is_never_written_into(existing: str, tmp_path: Path) -> None:
    target = tmp_path / "lens"
    if existing == "folder":
        target.mkdir()
    else:
        target.write_text("mine")
    with pytest.raises(BadInput, match="exists already; name a folder that does not, with --folder"):
        new_plugin("lens", target)
    assert list(tmp_path.iterdir()) == [target]
    assert not target.is_dir() or not list(target.iterdir())


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        new_plugin("lens", tmp_path / "file" / "lens")


@pytest.mark.parametrize("name", ["", "Lens", "2lens", "token_lens", "a--b", "../x", "lens-", "class", "a b"])
def test_a_name_that_cannot_begin_an_id_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be a plugin's name"):
        new_plugin(name, tmp_path / "lens")
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_installed_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a plugin called 'lens' is installed already, with modelscope-lens"):
        new_plugin("lens", tmp_path / "lens", {"lens": "modelscope-lens"})
