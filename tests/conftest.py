"""Every test gets folders of its own, so nothing of the user's is read or written."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("mscope")
    for kind in ("DATA", "CACHE", "CONFIG", "STATE", "RUNTIME"):
        monkeypatch.setenv(f"MSCOPE_{kind}_DIR", str(folder / kind.lower()))
    monkeypatch.setenv("NO_COLOR", "1")
    return folder
