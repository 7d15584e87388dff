"""The fixtures; `modelscope_app.testing` says what each is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from modelscope_app.api import FinishedRun
from modelscope_app.plugin_host import PluginHost
from modelscope_app.testing.runs import run_in_own_process
from modelscope_app.testing.temporary_plugins import TemporaryPlugins
from modelscope_app.testing.tiny_checkpoints import write_checkpoint


@pytest.fixture
def mscope_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with this test's own data, cache, config and state folders in it."""
    folder = tmp_path_factory.mktemp("mscope")
    for kind in ("DATA", "CACHE", "CONFIG", "STATE"):
        monkeypatch.setenv(f"MSCOPE_{kind}_DIR", str(folder / kind.lower()))
    monkeypatch.delenv("MSCOPE_DISABLE_PLUGINS", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    return folder


@pytest.fixture
def installed_host(mscope_folders: Path) -> PluginHost:
    """The plugin host of this environment, with nothing disabled."""
    return PluginHost(disabled=())


@pytest.fixture
def temporary_plugins(
    mscope_folders: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TemporaryPlugins]:
    """Plugins written from source text; `temporary_plugins.host()` sees them and no others."""
    plugins = TemporaryPlugins(tmp_path_factory.mktemp("plugins"))
    monkeypatch.syspath_prepend(str(plugins.folder))
    yield plugins
    plugins.forget_modules()


@pytest.fixture
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a checkpoint folder and returns it: `tiny_checkpoint(tensors, config=None)`."""

    def make(tensors: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Path:
        return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), tensors, config)

    return make


@pytest.fixture
def run_analysis(
    mscope_folders: Path, temporary_plugins: TemporaryPlugins, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., FinishedRun]:
    """Runs an analysis as a user does and returns the finished run; `RunFailed` says how it failed."""

    def run(id: str, *checkpoints: str | Path, **options: Any) -> FinishedRun:
        return run_in_own_process(id, checkpoints, options, tmp_path_factory.mktemp("run"), temporary_plugins.environment())

    return run
