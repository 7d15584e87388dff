"""Influence beyond what fits: a scan at low rank against the exact one, and the memory of ten times as many rows.

    python bench/influence_scale.py [--only rank,rows] [--queries 64] [--rows 100000]

| figure | what is measured                                                                                                          |
|--------|---------------------------------------------------------------------------------------------------------------------------|
| rank   | `mscope run influence.scores --rank 32` and without, on the tiny Llama of `bench/influence.py`: seconds of the scan, and   |
|        | the correlation of its scores with exact ones that the run tells                                                          |
| rows   | peak memory of the process with `--top-k 50` on an mlp of 32-64-10, at a tenth of the rows and at all of them              |

One JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import influence_workloads
from influence import of_mscope

HERE = Path(__file__).parent
TOP_K, RANK = 50, 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="rank,rows")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--rows", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mscope-bench-") as folder:
        if "rank" in asked.only:
            rank(Path(folder) / "rank", asked.queries)
        if "rows" in asked.only:
            rows(Path(folder), asked.rows)


def rank(folder: Path, queries: int) -> None:
    """The scan alone, exact and at low rank."""
    folder.mkdir()
    influence_workloads.tiny_llama(folder, queries=queries)
    exact = of_mscope(folder, folder / "exact", None)
    low = of_mscope(folder, folder / "low", None, ["--rank", str(RANK)])
    facts = json.loads((folder / "low" / "facts.json").read_text())
    scans = {who: found["phases"]["scores-0"] for who, found in (("exact", exact), ("low", low))}
    told = {name: facts[name] for name in ("rank", "rank_kept", "rank_correlation", "rank_candidates")}
    _print(figure="rank", queries=queries, exact_seconds=scans["exact"], low_rank_seconds=scans["low"], **told)


def rows(folder: Path, count: int) -> None:
    """Peak memory at a tenth of the rows and at all of them."""
    peaks = {}
    for part in (count // 10, count):
        own = folder / f"rows-{part}"
        own.mkdir()
        # Elsewhere: a process that is begun counts what its parent held as its own peak.
        made = f"influence_workloads.mlp(Path({str(own)!r}), rows={part}, queries=20, sizes=(32, 64, 10))"
        subprocess.run([sys.executable, "-c", f"import influence_workloads; from pathlib import Path; {made}"], cwd=HERE, check=True)
        found = of_mscope(own, own / "run", None, ["--top-k", str(TOP_K)])
        peaks[part] = found["peak_mb"]
        _print(figure="rows", rows=part, seconds=found["seconds"], peak_mb=found["peak_mb"])
    _print(figure="memory of ten times the rows", difference_mb=peaks[count] - peaks[count // 10])


def _print(**values: Any) -> None:
    shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
    print(json.dumps({"bench": "influence_scale", **shown}), flush=True)


if __name__ == "__main__":
    main()
