"""The least a script with click and rich does to print what `mscope inspect --json` prints: no check, no error, no option.

    python -P bench/inspect_bare.py FOLDER

It reads, parses and prints the same JSON for a sharded folder as `inspect_comparison.py` makes it, and believes every byte.
"""

import json
import math
import os
import re
import sys
from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

SHOWN = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_experts",
    "vocab_size",
    "tie_word_embeddings",
)


@click.command()
@click.argument("folder")
@click.option("--table", is_flag=True)
def main(folder: str, table: bool) -> None:
    path = Path(folder).absolute()
    files = sorted(set(json.loads((path / "model.safetensors.index.json").read_bytes())["weight_map"].values()))
    config = json.loads((path / "config.json").read_bytes())
    metadata, shards, alike, names = {}, [], Counter(), []
    for name in files:
        with (path / name).open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            size = os.fstat(file.fileno()).st_size
        metadata |= header.pop("__metadata__", {})
        shards.append({"file": name, "tensors": len(header), "bytes": size})
        for tensor, entry in header.items():
            begin, end = entry["data_offsets"]
            pattern = re.sub(r"(?<=\.)[0-9]+(?=\.)", "*", tensor)
            names.append((tensor, pattern))
            alike[pattern, entry["dtype"], tuple(entry["shape"]), end - begin] += 1

    paths = {}
    level = names
    while level:
        level = list({path.rpartition(".")[0]: pattern.rpartition(".")[0] for path, pattern in level if "." in path}.items())
        paths |= level
    times = Counter(paths.values())
    by_dtype, by_module = {}, {}
    for (pattern, dtype, shape, size), count in alike.items():
        parameters = count * math.prod(shape)
        row = by_dtype.setdefault(dtype, {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += count
        row["parameters"] += parameters
        row["bytes"] += count * size
        while "." in pattern:
            pattern = pattern.rpartition(".")[0]
            row = by_module.setdefault(pattern, {"path": pattern, "times": times[pattern], "tensors": 0, "parameters": 0, "bytes": 0})
            row["tensors"] += count
            row["parameters"] += parameters
            row["bytes"] += count * size
    modules = [by_module[path] for path in sorted(by_module, key=lambda path: path.split("."))]
    result = {
        "path": str(path),
        "name": path.name,
        "kind": "sharded",
        "architectures": config["architectures"],
        "model_type": config["model_type"],
        "parameters": sum(row["parameters"] for row in by_dtype.values()),
        "tensors": len(names),
        "bytes": sum(row["bytes"] for row in by_dtype.values()),
        "layers": max((row for row in modules if row["path"].endswith(".*")), key=lambda row: row["parameters"])["times"],
        "by_dtype": by_dtype,
        "by_module": modules,
        "shards": shards,
        "other_files": [],
        "metadata": metadata,
        "tied": [],
        "tokenizer": {"files": [], "chat_template": False},
        "config": {key: config[key] for key in SHOWN},
        "series": None,
        "fingerprint": None,
    }
    if not table:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    drawn = Table(box=None)
    for heading in ("path", "times", "tensors", "parameters", "bytes"):
        drawn.add_column(heading)
    for row in modules:
        drawn.add_row(*map(str, row.values()))
    Console().print(drawn)


if __name__ == "__main__":
    main()
