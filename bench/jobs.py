"""What the service costs: from submitting a job to its first fold step, jobs that do nothing, and events to several clients.

    python bench/jobs.py [FOLDER] [--rounds 15] [--jobs 1000] [--events 10000]

| figure   | what is measured                                                                                                |
|----------|-----------------------------------------------------------------------------------------------------------------|
| cold     | from starting the process `mscope run` to the first fold step on SmolLM2                                          |
| resident | from `Client.submit` to the first fold step, SmolLM2 resident in its worker; the two take turns                   |
| tiny     | the same on a language model of 100 kB, which is what the service itself costs                                    |
| nothing  | jobs that do nothing, submitted one after the other by one client, until all are done                             |
| events   | a job's events to three clients at once: none lost, none out of order, and the service's memory before and after  |

Each line of output is one JSON object. The service is one of its own, in folders of its own.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelscope_app.jobs import Client

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--events", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mscope-bench-") as folder:
        own_folders(Path(folder))
        from modelscope_app.jobs import Client

        with Client() as client:
            try:
                starting(client, arguments.folder or _smollm2(), arguments.rounds)
                tiny(client, _tiny_model(Path(folder)), arguments.rounds)
                nothing(client, arguments.jobs)
                events(client, arguments.events)
            finally:
                client.shutdown(force=True)


def starting(client: Client, model: Path, rounds: int) -> None:
    """Cold and resident starts in turns."""
    cold, resident = [], []
    _first_step(client, model)
    for _ in range(rounds):
        cold.append(_cold_start(model))
        resident.append(_first_step(client, model))
    for who, seconds in (("cold", cold), ("resident", resident)):
        _print(bench="jobs", figure=who, seconds=statistics.median(seconds), least=min(seconds), most=max(seconds), rounds=rounds)
    _print(bench="jobs", figure="cold over resident", ratio=statistics.median(cold) / statistics.median(resident))


def tiny(client: Client, model: Path, rounds: int) -> None:
    """The service's own share."""
    _first_step(client, model)
    seconds = [_first_step(client, model) for _ in range(rounds)]
    _print(bench="jobs", figure="tiny", seconds=statistics.median(seconds), least=min(seconds), most=max(seconds), rounds=rounds)


def nothing(client: Client, count: int) -> None:
    """Many jobs on the queue at once."""
    client.wait(client.submit("bench-jobs.nothing").run)
    began = time.perf_counter()
    runs = [client.submit("bench-jobs.nothing").run for _ in range(count)]
    submitted = time.perf_counter() - began
    client.wait(runs[-1])
    seconds = time.perf_counter() - began
    states = {job.run: job.state for job in client.jobs()}
    done = sum(states.get(run) == "done" for run in runs)
    _print(bench="jobs", figure="nothing", jobs=count, done=done, seconds_each=seconds / count, submitting_each=submitted / count)


def events(client: Client, count: int) -> None:
    """Three clients follow one job from its beginning."""
    from modelscope_app.jobs import Client

    service = client.health().pid
    before = _resident_kib(service)
    run = client.submit("bench-jobs.events", params={"count": count}).run
    found: list[list[int]] = [[], [], []]
    began = time.perf_counter()

    def follow(sequences: list[int]) -> None:
        with Client() as own:
            sequences += [event["seq"] for event in own.events(run, follow=True)]

    threads = [threading.Thread(target=follow, args=(sequences,)) for sequences in found]
    for thread in threads:
        thread.start()
    most = before
    while any(thread.is_alive() for thread in threads):
        most = max(most, _resident_kib(service))
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    whole = [sequences == list(range(len(sequences))) and len(sequences) > count for sequences in found]
    growth = (most - before) / 1024
    figures = {"events": len(found[0]), "clients": len(found), "whole": all(whole), "seconds": seconds}
    _print(bench="jobs", figure="events", **figures, service_mb=before / 1024, growth_mb=growth)


def _first_step(client: Client, model: Path) -> float:
    """Seconds from submitting to the first fold step."""
    began = time.time()
    job = client.submit("bench-jobs.step", [str(model)])
    ended = client.wait(job.run)
    assert ended.state == "done", ended.error
    facts = json.loads((Path(ended.folder) / "facts.json").read_text())
    return float(facts["began"]) - began


def _cold_start(model: Path) -> float:
    began = time.time()
    words = [sys.executable, "-m", "modelscope_app.cli.main", "run", "bench-jobs.step", str(model), "--json", "--quiet"]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(json.loads(ended.stdout)["facts"]["began"]) - began


def own_folders(folder: Path) -> None:
    """Folders and a plugin of the benchmark's own; the fingerprint cache is warm after the first job."""
    for kind in ("DATA", "CACHE", "CONFIG", "STATE", "RUNTIME"):
        os.environ[f"MSCOPE_{kind}_DIR"] = str(folder / kind.lower())
    information = folder / "site" / "bench_jobs-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-jobs\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[modelscope_app]\nbench-jobs = bench_jobs\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), str(HERE / "jobs_plugin")])


def _tiny_model(folder: Path) -> Path:
    """A Llama of two layers, with a tokenizer of its own."""
    words = [sys.executable, "-c", _MAKE_TINY, str(folder / "tiny")]
    subprocess.run(words, check=True, capture_output=True)
    return folder / "tiny"


_MAKE_TINY = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
words = Tokenizer(models.WordLevel({f"w{id}": id for id in range(64)}, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(sys.argv[1])
"""


def _smollm2() -> Path:
    sys.path.insert(0, str(HERE.parent / "tests" / "real"))
    from weights import smollm2  # type: ignore[import-not-found]

    folder: Path = smollm2()
    return folder


def _resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def _print(**values: Any) -> None:
    print(json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}), flush=True)


if __name__ == "__main__":
    main()
