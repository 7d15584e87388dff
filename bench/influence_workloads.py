"""What `bench/influence.py` measures on: a checkpoint and rows of data in a folder, for mscope and kronfluence alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MLP_SIZES = (784, 256, 256, 10)
TINY_LLAMA = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
_TEXT_LENGTHS = (16, 24)


def mlp(folder: Path, rows: int = 5000, queries: int = 100, sizes: Sequence[int] = MLP_SIZES) -> Path:
    """784-256-256-10, or other sizes, as it is initialised, on made digits: noise around a pattern for each of ten classes."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    layers = [torch.nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
    (folder / "model").mkdir()
    tensors = {f"layers.{at}.{name}": tensor.detach() for at, layer in enumerate(layers) for name, tensor in layer.named_parameters()}
    save_file(tensors, folder / "model" / "model.safetensors", {"format": "pt"})
    config = {"model_type": "mlp", "layer_sizes": list(sizes), "activation": "relu"}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(1)
    patterns = torch.rand(sizes[-1], sizes[0], generator=generator) < 0.2
    for name, count in (("train", rows), ("queries", queries)):
        labels = torch.randint(sizes[-1], (count,), generator=generator)
        features = patterns[labels] * torch.rand(count, sizes[0], generator=generator)
        features += (torch.rand(features.shape, generator=generator) < 0.05) * torch.rand(features.shape, generator=generator)
        _write(
            folder / f"{name}.jsonl",
            [{"features": row, "label": label} for row, label in zip(features.tolist(), labels.tolist(), strict=True)],
        )
    return _described(folder, folder / "model")


def tiny_llama(folder: Path, rows: int = 256, queries: int = 8, length: int = 64, **config: int) -> Path:
    """Four layers of random weights, on random tokens, all rows of one length."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**TINY_LLAMA, **config}))
    model.save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(1)
    for name, count in (("train", rows), ("queries", queries)):
        ids = torch.randint(model.config.vocab_size, (count, length), generator=generator)
        _write(folder / f"{name}.jsonl", [{"input_ids": row} for row in ids.tolist()])
    return _described(folder, folder / "model")


def smollm2(folder: Path, rows: int = 32, queries: int = 2) -> Path:
    """SmolLM2-135M, on pieces of this project's documentation; longest rows first, so that a batch has rows of like length."""
    import torch
    from tokenizers import Tokenizer

    checkpoint = _smollm2_folder()
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    text = "\n".join(path.read_text() for path in sorted((HERE.parent / "docs").rglob("*.md")))
    ids = tokenizer.encode(text[: 40 * (rows + queries) * _TEXT_LENGTHS[1]]).ids
    shortest, longest = _TEXT_LENGTHS
    lengths = torch.randint(shortest, longest + 1, (rows + queries,), generator=torch.Generator().manual_seed(0)).tolist()
    pieces = [ids[at * longest * 3 :][:length] for at, length in enumerate(lengths)]
    for name, part in (("train", pieces[:rows]), ("queries", pieces[rows:])):
        _write(folder / f"{name}.jsonl", [{"input_ids": row} for row in sorted(part, key=len, reverse=True)])
    return _described(folder, checkpoint)


def _described(folder: Path, checkpoint: Path) -> Path:
    (folder / "workload.json").write_text(json.dumps({"checkpoint": str(checkpoint)}))
    return folder


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _smollm2_folder() -> Path:
    sys.path.insert(0, str(HERE.parent / "tests" / "real"))
    from weights import smollm2 as fetched  # type: ignore[import-not-found]

    folder: Path = fetched()
    return folder
