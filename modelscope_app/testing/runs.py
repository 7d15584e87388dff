"""Running an analysis the way a user does: `mscope run`, in a process of its own, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelscope_app.api import FinishedRun
from modelscope_app.plugin_host.options import json_value
from modelscope_app.runs.folder import RunFolder

TIMEOUT_SECONDS = 300


class RunFailed(AssertionError):
    """`mscope run` did not exit with 0."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(f"mscope run exited with {exit_code}: {message}")
        self.exit_code = exit_code
        """2 usage, 3 bad input, 4 the job failed."""
        self.message = message
        """What it wrote to stderr."""


def run_in_own_process(
    id: str, checkpoints: Sequence[str | Path], options: Mapping[str, Any], folder: Path, environment: Mapping[str, str]
) -> FinishedRun:
    """Run the analysis `id` with its results in `folder/run`. Raises RunFailed unless it exits with 0."""
    params = folder / "params.json"
    params.write_text(json.dumps({name: json_value(value) for name, value in options.items()}), encoding="utf-8")
    words = [
        "run",
        id,
        *map(str, checkpoints),
        "--params",
        str(params),
        "--out",
        str(folder / "run"),
        "--device",
        "cpu",
        "--json",
        "--quiet",
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "modelscope_app.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env=dict(environment),
        check=False,
    )
    if ended.returncode:
        raise RunFailed(ended.returncode, ended.stderr.strip())
    return RunFolder.open(folder / "run")
