"""Build the wheel, install it into an empty environment outside the checkout, and see that it works there.

`make wheel` runs this. The wheel is built from an isolated copy of what git tracks, so that a file nobody committed cannot
help, and pip brings only what it declares to need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Try it; 0 when the wheel shows every first-party plugin and runs an analysis."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = build(folder)
        scripts = install(wheel, folder)
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        environment |= {f"MSCOPE_{kind}_DIR": str(folder / kind) for kind in ("DATA", "CACHE", "CONFIG", "STATE")}

        def mscope(*words: str) -> str:
            ended = subprocess.run([scripts / "mscope", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
            if ended.returncode:
                raise SystemExit(f"mscope {' '.join(words)} exited {ended.returncode}:\n{ended.stdout}{ended.stderr}")
            return ended.stdout

        declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["modelscope_app"])
        listed = {plugin["name"] for plugin in json.loads(mscope("plugins", "list", "--json"))["plugins"]}
        plugins = json.loads(mscope("plugins", "doctor", "--json"))
        healthy = listed & {plugin["name"] for plugin in plugins["plugins"] if not plugin["problems"]}
        if declared - healthy:
            raise SystemExit(f"the wheel lacks the plugins {sorted(declared - healthy)}: {plugins}")
        sample = ROOT / "sample_checkpoints" / "digits-mlp"
        facts = json.loads(mscope("run", "weights.stats", str(sample), "--json", "--quiet"))["facts"]
        report = Path(mscope("runs", "export", "latest").strip())
        if "weights.stats" not in report.read_text():
            raise SystemExit(f"the wheel writes no report: {report}")
        print(f"{wheel.name}: plugins {', '.join(sorted(healthy))}; weights.stats found {facts['tensors']} tensors")
    return 0


def build(folder: Path) -> Path:
    """The wheel, built from what git tracks."""
    tree = folder / "tree"
    tree.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=tree, input=archive, check=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, tree], check=True)
    return next(folder.glob("*.whl"))


def install(wheel: Path, folder: Path) -> Path:
    """The scripts folder of a new environment with the wheel and what it declares to need, and nothing else."""
    venv.create(folder / "venv", with_pip=False)
    scripts = folder / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, "torch"], cwd=folder, check=True)
    subprocess.run([*pip, wheel], cwd=folder, check=True)
    return scripts


if __name__ == "__main__":
    sys.exit(main())
