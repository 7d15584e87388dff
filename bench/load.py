"""How long SmolLM2 takes from disk to a usable model with every tensor touched, and how much memory.

    python bench/load.py [FOLDER] [--rounds 7]

| who              | what is measured                                                                   |
|------------------|------------------------------------------------------------------------------------|
| mscope           | open_checkpoint and build_model                                                    |
| transformers     | AutoModelForCausalLM.from_pretrained(dtype="auto")                                 |
| safetensors      | safetensors.torch.load_file: tensors and no model, the floor                       |

Every measurement is a process of its own and excludes imports; the three take turns, and medians are printed, one JSON object
a line. A tensor counts as touched when one value of each 4 KiB page was read.

Peak memory is the growth of the resident set's high-water mark (VmHWM, set back by /proc/self/clear_refs after the imports), over
the bytes of the model's tensors; it counts pages of mapped files too. All three map the files, so a model is usable before its
bytes are copied. mscope goes on to copy them in a thread of its own: `settled_seconds` is when that is done, and the peak includes
it. `warm` finds the files in the page cache; `cold` asks the kernel to drop them first (posix_fadvise).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WHO = ("mscope", "transformers", "safetensors")


def main() -> None:
    """Measure in turns and print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", choices=WHO, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder or _smollm2()
    if arguments.measure:
        print(json.dumps(measurement(arguments.measure, folder)))
        return
    for cache in ("warm", "cold"):
        found: dict[str, list[dict[str, Any]]] = {who: [] for who in WHO}
        for round_ in range(arguments.rounds + 1):
            for who in WHO:
                if cache == "cold":
                    _drop_from_page_cache(folder)
                result = _in_a_process(who, folder)
                if round_:  # the first round only warms caches
                    found[who].append(result)
        seconds = {who: statistics.median(result["seconds"] for result in results) for who, results in found.items()}
        for who, results in found.items():
            line = {
                "bench": "load",
                "who": who,
                "page_cache": cache,
                "seconds": round(seconds[who], 4),
                "over_transformers": round(seconds[who] / seconds["transformers"], 3),
                "settled_seconds": round(statistics.median(result["settled_seconds"] for result in results), 4),
                "peak_over_weights": round(statistics.median(result["peak_bytes"] / result["weights_bytes"] for result in results), 3),
                "weights_bytes": results[0]["weights_bytes"],
                "rounds": arguments.rounds,
                "checkpoint": folder.name,
            }
            print(json.dumps(line), flush=True)


def measurement(who: str, folder: Path) -> dict[str, Any]:
    """Seconds, peak bytes and bytes of weights of one load in this process."""
    load = _loader(who, folder)
    gc.collect()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    tensors, owner = load()
    _touch(tensors)
    seconds = time.perf_counter() - start
    if who == "mscope":
        owner.settled()
    settled = time.perf_counter() - start
    peak = _memory("VmHWM") - before
    weights = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}
    return {"seconds": seconds, "settled_seconds": settled, "peak_bytes": peak, "weights_bytes": sum(weights.values())}


def _loader(who: str, folder: Path) -> Any:
    """A function that loads, with every import it will need already done."""
    import torch
    import transformers
    from transformers.models.auto import modeling_auto

    config_class = transformers.CONFIG_MAPPING[json.loads((folder / "config.json").read_text())["model_type"]]
    for table in (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING, modeling_auto.MODEL_MAPPING):
        table.get(config_class, None)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.zeros(1).sum()
    if who == "safetensors":
        from safetensors.torch import load_file

        return lambda: ([tensor for file in sorted(folder.glob("*.safetensors")) for tensor in load_file(file).values()], None)
    if who == "transformers":

        def with_transformers() -> Any:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True, use_safetensors=True)
            return list(model.parameters()), model

        return with_transformers
    from modelscope_app.checkpoints import open_checkpoint
    from modelscope_app.models import build_model

    def with_mscope() -> Any:
        model = build_model(open_checkpoint(folder), device="cpu")
        return list(model.unsettled_module.parameters()), model

    return with_mscope


def _touch(tensors: list[Any]) -> None:
    import torch

    for tensor in tensors:
        tensor.detach().reshape(-1).view(torch.uint8)[::4096].sum()


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _drop_from_page_cache(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _in_a_process(who: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, str(folder), "--measure", who]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{who}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _smollm2() -> Path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "real"))
    from weights import smollm2  # type: ignore[import-not-found]

    folder: Path = smollm2()
    return folder


if __name__ == "__main__":
    main()
