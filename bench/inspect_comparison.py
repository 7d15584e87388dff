"""Whole processes, from exec to exit, on a mixture of experts of 18,000 tensors in 200 shards of small real data.

| who       | what runs                                                                                    |
|-----------|----------------------------------------------------------------------------------------------|
| mscope    | `mscope inspect FOLDER --json`                                                               |
| bare      | `inspect_bare.py`: click and rich, the same reading, parsing and printing, nothing checked   |
| modelinfo | `modelinfo FOLDER/model.safetensors.index.json` of modelinfo-cli, in an environment of its own |

They take turns, in an order that rotates; a ratio is the median of the ratios within the turns. The files are in the page cache.
One JSON object a line; a figure that could not be measured is null and says why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TENSORS, SHARDS = 18_000, 200
LAYERS, EXPERTS, LAYERS_WITH_SHARED_EXPERT = 48, 122, 31
SHAPE = (4, 8)
MODELINFO = "modelinfo-cli==1.4.4"
MOST_TIMES_BARE = 1.5


def main() -> None:
    """Make the checkpoint, check that bare and mscope print the same, time them in turns, print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    cache = Path(tempfile.gettempdir()) / f"mscope-bench-{os.getuid()}"
    folder = checkpoint(cache / f"inspect-{TENSORS}-{SHARDS}-v1")
    commands = {
        "mscope": [*_mscope(), "inspect", str(folder), "--json"],
        "bare": [sys.executable, "-P", str(Path(__file__).with_name("inspect_bare.py")), str(folder)],
    }
    why_not = None
    try:
        commands["modelinfo"] = [str(_modelinfo(cache)), str(folder / "model.safetensors.index.json")]
    except (OSError, subprocess.CalledProcessError) as error:
        why_not = str(error).splitlines()[0] if str(error) else type(error).__name__
    outputs = {who: _output(command) for who, command in commands.items()}
    _print("inspect.same_output_as_bare", json.loads(outputs["mscope"]) == json.loads(outputs["bare"]))
    seconds = _take_turns(commands, rounds)
    for who in ("mscope", "bare", "modelinfo"):
        if who in seconds:
            _print(f"inspect.{who}_seconds", round(statistics.median(seconds[who]), 4), rounds=rounds, minimum=round(min(seconds[who]), 4))
        else:
            _print(f"inspect.{who}_seconds", None, why=why_not)
    for who in ("bare", "modelinfo"):
        if who not in seconds:
            _print(f"inspect.mscope_over_{who}", None, why=why_not)
            continue
        ratio = statistics.median(mine / theirs for mine, theirs in zip(seconds["mscope"], seconds[who], strict=True))
        target: dict[str, Any] = {"at_most": MOST_TIMES_BARE, "holds": ratio <= MOST_TIMES_BARE} if who == "bare" else {}
        _print(f"inspect.mscope_over_{who}", round(ratio, 3), **target)


def checkpoint(folder: Path) -> Path:
    """A sharded mixture of experts with the names such models have, made once."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent))
    names = _tensor_names()
    per_shard = TENSORS // SHARDS
    weight_map = {}
    for number in range(SHARDS):
        shard = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        of_shard = names[number * per_shard : (number + 1) * per_shard]
        _write_shard(part / shard, of_shard)
        weight_map |= dict.fromkeys(of_shard, shard)
    total_size = TENSORS * SHAPE[0] * SHAPE[1] * 2
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (part / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 8,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts": EXPERTS,
        "vocab_size": 4,
        "tie_word_embeddings": False,
    }
    (part / "config.json").write_text(json.dumps(config, indent=2))
    part.rename(folder)
    return folder


def _tensor_names() -> list[str]:
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    for layer in range(LAYERS):
        inside = ["input_layernorm", "post_attention_layernorm", "mlp.gate", *(f"self_attn.{part}_proj" for part in "qkvo")]
        experts = [f"mlp.experts.{expert}" for expert in range(EXPERTS)]
        if layer < LAYERS_WITH_SHARED_EXPERT:
            experts.append("mlp.shared_expert")
        inside += [f"{expert}.{part}_proj" for expert in experts for part in ("gate", "up", "down")]
        names += [f"model.layers.{layer}.{module}.weight" for module in inside]
    if len(names) != TENSORS:
        raise SystemExit(f"the recipe makes {len(names)} tensors and should make {TENSORS}")
    return names


def _write_shard(path: Path, names: list[str]) -> None:
    size = SHAPE[0] * SHAPE[1] * 2
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for number, name in enumerate(names):
        header[name] = {"dtype": "BF16", "shape": list(SHAPE), "data_offsets": [number * size, (number + 1) * size]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(len(names) * size))


def _mscope() -> list[str]:
    script = Path(sys.executable).with_name("mscope")
    return [str(script)] if script.exists() else [sys.executable, "-m", "modelscope_app.cli.main"]


def _modelinfo(cache: Path) -> Path:
    """modelinfo-cli's command in an environment of its own, made on first use. Raises where it cannot be installed."""
    environment = cache / MODELINFO
    command = environment / "bin" / "modelinfo"
    if not command.exists():
        for step in (
            [sys.executable, "-m", "venv", "--clear", environment],
            [environment / "bin" / "python", "-m", "pip", "install", "--quiet", MODELINFO],
        ):
            done = subprocess.run(list(map(str, step)), capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
                raise OSError(f"{MODELINFO} cannot be installed: {' '.join(reason)}")
    return command


def _take_turns(commands: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {who: [] for who in commands}
    order = list(commands)
    for _ in range(rounds):
        for who in order:
            start = time.perf_counter()
            _output(commands[who])
            seconds[who].append(time.perf_counter() - start)
        order = [*order[1:], order[0]]
    return seconds


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _print(figure: str, value: object, **more: object) -> None:
    print(json.dumps({"figure": figure, "value": value, **more}), flush=True)


if __name__ == "__main__":
    main()
