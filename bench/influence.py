"""Influence scores beside kronfluence 1.0.1: how long, how much memory, and whether both say the same.

    python bench/influence.py --kronfluence PYTHON [--only mlp,tiny_llama,smollm2] [--rounds 3] [--limit 600] [--json FILE]

PYTHON is that of an environment which has kronfluence (and torch and transformers of the same versions); without it only mscope is
measured.

| workload   | what is scored                                                                                        | promised      |
|------------|-------------------------------------------------------------------------------------------------------|---------------|
| mlp        | 784-256-256-10, 5,000 rows, 100 queries                                                               | 20 times      |
| tiny_llama | four layers of width 128, feed-forward weights, 256 sequences of 64 tokens, 8 queries                  | 2 times       |
| smollm2    | SmolLM2-135M, its 90 feed-forward weights, 32 texts of 16 to 24 tokens, 2 queries (takes many minutes) | 1.5 times, at |
|            |                                                                                                       | no more memory |

Both fit EK-FAC with the empirical Fisher in float32 (eigendecompositions in float64), damp by a tenth of the mean eigenvalue, and give
every pair's score and every row's self-influence, which are compared: the largest difference over the largest value. Sides take turns,
every measurement is a process of its own with the same number of threads, and the least of the rounds counts.

mscope is `mscope run influence.scores` as a user types it, with what it does not share with kronfluence switched off (baselines, groups
of duplicates). `seconds` of both are from the first pass over the data to the scores on disk, as the run's events and kronfluence's calls
tell; starting Python, importing torch, reading data and building the model are not in them, and are told beside: `process_seconds` and
`process_cpu_seconds` are those of the whole process, `peak_mb` its highest resident memory.

kronfluence gets the batch sizes it is fastest with, found phase by phase in a process before, which is not counted; fixed ones with
SmolLM2, where one try takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
TUNED = {"mlp": ("2,4,8,16,64", 128), "tiny_llama": ("1,4,8,16,32,64", 128)}
"""Batch sizes kronfluence is tried with, and on how many rows."""
FIXED = {"smollm2": "covariance=32,lambda=4,pairwise=32,queries=2,self=4"}
"""Where trying takes longer than measuring: matrices this wide fill the processor with any batch, and small ones keep memory low."""
PROMISED = {"mlp": 20.0, "tiny_llama": 2.0, "smollm2": 1.5}
AGREES_WITHIN = 1e-3
"""Largest difference over largest value: both sum in float32, in another order."""


class Process(NamedTuple):
    """A process that ended, or was ended by the time limit."""

    lines: list[dict[str, Any]]
    """Of JSON that it printed."""
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    is_complete: bool


def main() -> None:
    """Measure in turns, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kronfluence", metavar="PYTHON")
    parser.add_argument("--only", default="mlp,tiny_llama", help="workloads, separated by commas; smollm2 by its name alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=600, help="seconds after which a process of kronfluence is ended")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch-size", type=int, help="of mscope, instead of what it takes by itself")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    os.environ |= {name: str(asked.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    found = [measured(name, asked) for name in asked.only.split(",")]
    facts = {"threads": asked.threads, "rounds": asked.rounds, "load": round(os.getloadavg()[0], 2), **versions()}
    if asked.json:
        asked.json.write_text(json.dumps({"facts": facts, "workloads": found}, indent=1))
    print(json.dumps({"bench": "influence", "figure": "facts", **facts}))
    for one in found:
        for figure in one["figures"]:
            print(json.dumps({"bench": "influence", "workload": one["workload"], **figure}))
        print(table(one))


def measured(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Everything about one workload."""
    import influence_workloads

    with tempfile.TemporaryDirectory(prefix="mscope-bench-") as temporary:
        folder = getattr(influence_workloads, name)(Path(temporary))
        ours: list[dict[str, Any]] = []
        theirs: list[dict[str, Any]] = []
        batches = _tuned(asked.kronfluence, folder, name, asked.limit) if asked.kronfluence else ""
        for turn in range(asked.rounds):
            ours.append(of_mscope(folder, folder / f"run-{turn}", asked.batch_size))
            if asked.kronfluence:
                theirs.append(of_kronfluence(asked.kronfluence, folder, batches, asked.limit))
        agreement = compared(folder, folder / f"run-{asked.rounds - 1}") if theirs and all(one["is_complete"] for one in theirs) else None
    return {
        "workload": name,
        "kronfluence_batches": batches,
        "mscope": ours,
        "kronfluence": theirs,
        "figures": list(_figures(name, ours, theirs, agreement)),
    }


def of_mscope(folder: Path, out: Path, batch_size: int | None, more: Sequence[str] = ()) -> dict[str, Any]:
    """One `mscope run`, with a cache of its own, which is empty."""
    about = json.loads((folder / "workload.json").read_text())
    words = [sys.executable, "-m", "modelscope_app.cli.main", "run", "influence.scores", about["checkpoint"]]
    words += ["--train", str(folder / "train.jsonl"), "--queries", str(folder / "queries.jsonl"), "--fisher", "empirical"]
    words += ["--no-baselines", "--no-group-duplicates", "--dtype", "float32", "--device", "cpu", "--out", str(out), "--json", "--quiet"]
    words += [*more, *(["--batch-size", str(batch_size)] if batch_size else [])]
    with tempfile.TemporaryDirectory() as cache:
        ended = _run(words, {"MSCOPE_CACHE_DIR": cache, "MSCOPE_DATA_DIR": cache})
    if not ended.is_complete:
        raise SystemExit(f"mscope failed: {(out / 'log.txt').read_text() if out.exists() else ended.lines}")
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    marks = [(event["name"], event["time"]) for event in events if event["kind"] in ("stage", "table")]
    first_table = next(at for at, event in enumerate(marks) if event[0] == "pairwise")
    marks = marks[: first_table + 1]
    phases = {name: round(after[1] - time, 3) for (name, time), after in pairwise(marks)}
    return {"seconds": marks[-1][1] - marks[0][1], "phases": phases, **_of_process(ended)}


def of_kronfluence(python: str, folder: Path, batches: str, limit: int) -> dict[str, Any]:
    """One process that fits and scores; what it had done by the time limit, where that ends it."""
    ended = _run([python, str(HERE / "influence_peer.py"), str(folder), "--phase-batches", batches], {}, limit)
    phases = {line["phase"]: round(line["seconds"], 3) for line in ended.lines if "seconds" in line and line["phase"] != "reading"}
    reading = next(line["seconds"] for line in ended.lines if line.get("phase") == "reading")
    seconds = sum(phases.values()) if ended.is_complete else limit - reading
    return {"seconds": seconds, "phases": phases, **_of_process(ended)}


def compared(folder: Path, run: Path) -> dict[str, float]:
    """Largest differences over largest values, of pairs and of self-influence, which is in the score over its root."""
    import polars as pl
    import torch
    from safetensors.torch import load_file

    theirs = load_file(folder / "peer.safetensors")
    pairs = pl.read_parquet(run / "tables" / "pairwise.parquet").sort("query", "example")
    scores = torch.tensor(pairs["score"].to_list(), dtype=torch.float64).reshape(theirs["pairwise"].shape)
    relatif = torch.tensor(pairs["relatif"].to_list(), dtype=torch.float64).reshape(scores.shape)
    own = (scores / relatif).square().median(0).values
    return {"pairwise": _difference(scores, theirs["pairwise"]), "self": _difference(own, theirs["self"])}


def versions() -> dict[str, str]:
    """Of what computes here."""
    import torch

    return {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}


def table(found: Mapping[str, Any]) -> str:
    """Phases of both, of their fastest rounds."""
    lines = [f"{found['workload']}:"]
    for who in ("mscope", "kronfluence"):
        if found[who]:
            best = min(found[who], key=lambda one: float(one["seconds"]))
            phases = "  ".join(f"{name} {seconds:.2f}" for name, seconds in best["phases"].items())
            limited = "" if best["is_complete"] else " (time limit)"
            lines.append(f"  {who:<12}{best['seconds']:9.2f} s{limited}  {best['peak_mb']:7.0f} MB   {phases}")
    return "\n".join(lines)


def _figures(
    name: str, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], agreement: Mapping[str, float] | None
) -> Any:
    for who, rounds in (("mscope", ours), ("kronfluence", theirs)):
        if rounds:
            least = {key: min(one[key] for one in rounds) for key in ("seconds", "process_seconds", "process_cpu_seconds", "peak_mb")}
            median = statistics.median(one["seconds"] for one in rounds)
            yield {"figure": who, **{key: round(value, 3) for key, value in least.items()}, "median_seconds": round(median, 3)}
    if not theirs:
        return
    ratio = min(one["seconds"] for one in theirs) / min(one["seconds"] for one in ours)
    is_whole = all(one["is_complete"] for one in theirs)
    yield {
        "figure": "times faster",
        "ratio": round(ratio, 2),
        "at_least": PROMISED[name],
        "holds": ratio >= PROMISED[name],
        "whole": is_whole,
    }
    process = {key: min(one[key] for one in theirs) / min(one[key] for one in ours) for key in ("process_seconds", "process_cpu_seconds")}
    yield {"figure": "times faster, whole process", **{key: round(value, 2) for key, value in process.items()}}
    memory = min(one["peak_mb"] for one in ours) / min(one["peak_mb"] for one in theirs)
    promised = {"at_most": 1.0, "holds": memory <= 1.0} if name == "smollm2" else {}
    yield {"figure": "memory over kronfluence's", "ratio": round(memory, 3), **promised}
    if agreement is not None:
        yield {"figure": "largest difference", **agreement, "at_most": AGREES_WITHIN, "holds": max(agreement.values()) <= AGREES_WITHIN}


def _tuned(python: str, folder: Path, name: str, limit: int) -> str:
    if name in FIXED:
        return FIXED[name]
    sizes, rows = TUNED[name]
    ended = _run([python, str(HERE / "influence_peer.py"), str(folder), "--tune", sizes, "--rows", str(rows)], {}, 4 * limit)
    best = next((line["best"] for line in ended.lines if "best" in line), None)
    if best is None:
        raise SystemExit(f"kronfluence could not be tuned within {4 * limit} s: {ended.lines[-3:]}")
    return ",".join(f"{phase}={size}" for phase, size in best.items())


def _run(words: Sequence[str], environment: Mapping[str, str], limit: float | None = None) -> Process:
    """A process with what it took by the kernel's own accounts."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.DEVNULL, env={**os.environ, **environment})
        timer = threading.Timer(limit, process.kill) if limit else None
        if timer:
            timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if timer:
            timer.cancel()
        output.seek(0)
        lines = [json.loads(line) for line in output if line.startswith("{")]
    seconds, cpu = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    return Process(lines, seconds, cpu, usage.ru_maxrss * 1024, process.returncode == 0)


def _of_process(ended: Process) -> dict[str, Any]:
    return {
        "process_seconds": ended.seconds,
        "process_cpu_seconds": ended.cpu_seconds,
        "peak_mb": ended.peak_bytes / 2**20,
        "is_complete": ended.is_complete,
    }


def _difference(found: Any, expected: Any) -> float:
    return float((found - expected.double()).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
