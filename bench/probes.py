"""Last-token activations of all layers of SmolLM2 on 64 prompts: how long, and how much memory beyond the model.

    python bench/probes.py [FOLDER] [--rounds 3] [--prompts 64] [--tokens 32]

| who                  | what is measured                                                                                        |
|----------------------|---------------------------------------------------------------------------------------------------------|
| mscope               | `ActivationPass` as the analyses call it: hooks that slice while the model runs, no LM head, small batches |
| hidden states        | all prompts as one batch through transformers' model(output_hidden_states=True), last tokens kept       |
| hidden states, body  | the same through model.model, which skips the LM head too                                               |
| pairs, prefix once   | `PairPass`: two answers after each of 12 questions, the question read once                              |
| pairs, read whole    | both answers read with their question                                                                   |

Every measurement is a process of its own, after a practice run on one prompt; the processes take turns, and medians are printed, one
JSON object a line. Extra memory is the growth of the resident set's high-water mark over what was resident before, by /proc. The
activations of all must agree to rounding, or nothing is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WHO = ("mscope", "hidden states", "hidden states, body", "pairs, prefix once", "pairs, read whole")
ALL_AT_ONCE = 10**6


def main() -> None:
    """Measure in turns and print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--measure", choices=WHO, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    folder = asked.folder or _smollm2()
    if asked.measure:
        print(json.dumps(measurement(asked.measure, folder, asked.prompts, asked.tokens)))
        return
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in WHO}
    for _ in range(asked.rounds):
        for who in WHO:
            found[who].append(_in_a_process(who, folder, asked.prompts, asked.tokens))
    sums = {who: results[0]["checksum"] for who, results in found.items()}
    for one, other in (("mscope", "hidden states"), ("mscope", "hidden states, body"), ("pairs, prefix once", "pairs, read whole")):
        assert abs(sums[one] - sums[other]) <= 1e-2 * abs(sums[other]), f"{one} and {other} do not agree: {sums}"
    medians = {
        who: {key: statistics.median(result[key] for result in results) for key in ("seconds", "extra_bytes")}
        for who, results in found.items()
    }
    for who, values in medians.items():
        _print(figure="activations", who=who, seconds=round(values["seconds"], 3), extra_mb=round(values["extra_bytes"] / 2**20, 1))
    ours, theirs, body = (medians[who] for who in ("mscope", "hidden states", "hidden states, body"))
    ratio = {key: ours[key] / theirs[key] for key in ours}
    _print(figure="seconds over hidden states", ratio=round(ratio["seconds"], 3), at_most=1.0, holds=ratio["seconds"] <= 1.0)
    _print(figure="extra memory over hidden states", ratio=round(ratio["extra_bytes"], 3), at_most=0.1, holds=ratio["extra_bytes"] <= 0.1)
    _print(figure="seconds over hidden states without the LM head", ratio=round(ours["seconds"] / body["seconds"], 3))
    _print(figure="extra memory over hidden states without the LM head", ratio=round(ours["extra_bytes"] / body["extra_bytes"], 3))
    pairs = medians["pairs, prefix once"]["seconds"] / medians["pairs, read whole"]["seconds"]
    _print(figure="pairs with their prefix read once over read whole", ratio=round(pairs, 3))


def measurement(who: str, folder: Path, prompts: int, tokens: int) -> dict[str, Any]:
    """Seconds, extra bytes and a checksum of one reading in this process."""
    import torch
    from modelscope_probes.reading import batch_tokens

    from modelscope_app.api import Example
    from modelscope_app.checkpoints import open_checkpoint
    from modelscope_app.data import length_bucketed
    from modelscope_app.jobs.memory import mark_peak, peak_bytes, resident_bytes
    from modelscope_app.models import build_model

    model = build_model(open_checkpoint(str(folder)), "cpu", "float32")
    module = model.module
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(tokens // 2, tokens + 1, (prompts,), generator=generator).tolist()
    rows = [torch.randint(100, 40_000, (length,), generator=generator).tolist() for length in lengths]
    examples = [Example(id, tuple(row), 0, {}) for id, row in enumerate(rows)]

    def read(chosen: list[Example]) -> torch.Tensor:
        if who.startswith("pairs"):
            return _pairs(who, model, [list(example.input_ids) for example in chosen][:12])
        tokens_at_once = batch_tokens(None, model.device) if who == "mscope" else ALL_AT_ONCE
        return _last_tokens(who, model, module, length_bucketed(chosen, tokens_at_once, "left"), len(chosen))

    read(examples[:1])
    mark_peak()
    before = resident_bytes()
    start = time.perf_counter()
    activations = read(examples)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "extra_bytes": max(peak_bytes() - before, 1), "checksum": float(activations.double().abs().sum())}


def _last_tokens(who: str, model: Any, module: Any, source: Any, count: int) -> Any:
    import torch
    from modelscope_probes.reading import ActivationPass

    layers, width = module.config.num_hidden_layers, module.config.hidden_size
    if who == "mscope":
        # the last layer before the final norm is no hidden state of transformers, so all but it are compared
        fold = ActivationPass(model, [f"resid_post.{layer}" for layer in range(layers - 1)], range(count), width, "last")
        state = fold.start()
        for ids in source.plan:
            state = fold.step(state, source.load(ids))
        return fold.finish(state)
    run: Callable[..., Any] = module.model if who.endswith("body") else module
    found = torch.zeros(count, layers - 1, width)
    for ids in source.plan:
        batch = source.load(ids)
        positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            states = run(
                batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, output_hidden_states=True, use_cache=False
            ).hidden_states
        found[list(ids)] = torch.stack([state[:, -1] for state in states[1:-1]], 1)
    return found


def _pairs(who: str, model: Any, questions: list[list[int]]) -> Any:
    import torch
    from modelscope_probes.prompts import Pair
    from modelscope_probes.reading import ActivationPass, PairPass

    from modelscope_app.api import Example
    from modelscope_app.data import length_bucketed

    sites = [f"resid_post.{layer}" for layer in range(model.module.config.num_hidden_layers - 1)]
    width = model.module.config.hidden_size
    pairs = [Pair(at, "", tuple(ids), (17,), (19,), "a", "b") for at, ids in enumerate(questions)]
    if who == "pairs, prefix once":
        fold = PairPass(model, sites, len(pairs), width)
        return fold.finish(fold.step(fold.start(), pairs))
    examples = [Example(2 * pair.id + side, (*pair.opening_ids, token), 0, {}) for pair in pairs for side, token in enumerate((17, 19))]
    whole = ActivationPass(model, sites, range(len(examples)), width, "last")
    source = length_bucketed(examples, ALL_AT_ONCE, "left")
    state = whole.start()
    for ids in source.plan:
        state = whole.step(state, source.load(ids))
    found = whole.finish(state)
    assert torch.isfinite(found).all()
    return found


def _in_a_process(who: str, folder: Path, prompts: int, tokens: int) -> dict[str, Any]:
    words = [sys.executable, __file__, str(folder), "--measure", who, "--prompts", str(prompts), "--tokens", str(tokens)]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def _smollm2() -> Path:
    sys.path.insert(0, str(HERE.parent / "tests" / "real"))
    from weights import smollm2  # type: ignore[import-not-found]

    folder: Path = smollm2()
    return folder


def _print(**figures: Any) -> None:
    print(json.dumps({"bench": "probes", **figures}), flush=True)


if __name__ == "__main__":
    main()
