"""Whole `mscope` processes over a plugin that is installed for the test alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Mscope


@pytest.fixture
def survivor_environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds the plugin `survivor`."""
    site = tmp_path / "site"
    (site / "survivor-1.0.dist-info").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("survivor.py"), site)
    (site / "survivor-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: survivor\nVersion: 1.0\n")
    (site / "survivor-1.0.dist-info" / "entry_points.txt").write_text("[modelscope_app]\nsurvivor = survivor\n")
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def mscope(survivor_environment: dict[str, str]) -> Mscope:
    """Run `mscope` to its end."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "modelscope_app.cli.main", *map(str, arguments)]
        return subprocess.run(words, env={**survivor_environment, **environment}, capture_output=True, text=True, timeout=120, check=False)

    return run
