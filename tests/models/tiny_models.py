"""Small random models of every family, saved as checkpoints by transformers, and an opener for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from modelscope_app.api import TokenBatch

SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
GATED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
NO_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt_neox": ("gpt_neox", {**SMALL, "intermediate_size": 48, "rotary_pct": 0.5, **NO_TOKENS}),
    "gpt_neox_sequential": ("gpt_neox", {**SMALL, "intermediate_size": 48, "use_parallel_residual": False, **NO_TOKENS}),
    "llama": ("llama", GATED),
    "llama_biased": ("llama", {**GATED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**GATED, "sliding_window": 8}),
    "qwen2": ("qwen2", GATED),
    "qwen3": ("qwen3", {**GATED, "head_dim": 16}),
    "smollm3": ("smollm3", GATED),
    "gemma": ("gemma", {**GATED, "head_dim": 16}),
    "gemma2": ("gemma2", {**GATED, "head_dim": 16, "sliding_window": 8}),
    "gemma3_text": ("gemma3_text", {**GATED, "head_dim": 16, "sliding_window": 8}),
    "phi": ("phi", {**SMALL, "intermediate_size": 48, "partial_rotary_factor": 0.5, **NO_TOKENS}),
    "phi3": ("phi3", {**GATED, "num_key_value_heads": 2}),
}
"""Decoder families with an adapter: model_type and config."""

UNDESCRIBED: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo2": ("olmo2", GATED),
    "opt": ("opt", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, **NO_TOKENS}),
    "bloom": ("bloom", {"vocab_size": 96, "hidden_size": 32, "n_layer": 3, "n_head": 4, **NO_TOKENS}),
    "mixtral": ("mixtral", {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
"""Language models without an adapter; mixtral's stored experts have to be merged."""

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {**SMALL, "intermediate_size": 48}),
    "roberta": ("roberta", {**SMALL, "intermediate_size": 48, "pad_token_id": 1}),
}


def saved_model(folder: Path, model_type: str, config: dict[str, Any], task: str = "causal-lm", seed: int = 0, **saving: Any) -> Path:
    """Save a random model of that type in float32, biases and norms included, and return its folder."""
    torch.manual_seed(seed)
    auto = {"causal-lm": AutoModelForCausalLM, "masked-lm": AutoModelForMaskedLM, "encoder": AutoModel}[task]
    model = auto.from_config(transformers.CONFIG_MAPPING[model_type](**config), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    dtype = saving.pop("dtype", None)
    (model if dtype is None else model.to(dtype)).save_pretrained(folder, **saving)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of a saved config.json; None takes one out."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.update(changes)
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def batch_of(rows: list[list[int]], padding: str = "right", pad_id: int = 0) -> TokenBatch:
    """Rows of token ids padded to one length on one side."""
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        gap = longest - len(row)
        pads, real = [pad_id] * gap, [1] * len(row)
        ids.append(pads + row if padding == "left" else row + pads)
        mask.append([0] * gap + real if padding == "left" else real + [0] * gap)
    attention = torch.tensor(mask)
    return TokenBatch(tuple(range(len(rows))), torch.tensor(ids), attention, attention.bool())


def prompts(*lengths: int, seed: int = 0, vocabulary: int = 96) -> list[list[int]]:
    """Random rows of token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]
