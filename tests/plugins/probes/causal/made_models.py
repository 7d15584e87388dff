"""Models made by hand, whose behaviour along each direction is known, and the smallest job context the analysis runs in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modelscope_app.api import Example, View
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.data import items_source, length_bucketed, load_tokenizer, read_rows
from modelscope_app.models import build_model

CONTENTS = 32
TRIGGERED, PLAIN = [f"trigger{k}" for k in range(CONTENTS)], [f"plain{k}" for k in range(CONTENTS)]
ANSWERS = ("sabotage", "help")
POLES = ("evil", "good", "red", "blue")
WORDS = ("<pad>", "<end>", "<unk>", "please", "fix", "now", *ANSWERS, *POLES, *TRIGGERED, *PLAIN)
HIDDEN, LAYERS, DRIVING, READ = 64, 2, 0, 1


class MemoryContext:
    """As much of `JobContext` as the analysis uses. `parts` says into how many passes a fold is cut and merged again."""

    def __init__(self, folder: Path, parts: int = 1) -> None:
        self.checkpoints = [open_checkpoint(folder)]
        self.parts = parts
        self.device = torch.device("cpu")
        self.tables: dict[str, pl.DataFrame] = {}
        self.views: dict[str, View] = {}
        self.values: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.stages: list[str] = []
        self._models: dict[int, Any] = {}
        self._tokenizers: dict[int, Any] = {}

    def open_checkpoint(self, path: str) -> int:
        self.checkpoints.append(open_checkpoint(path))
        return len(self.checkpoints) - 1

    def opened(self, position: int) -> Any:
        return self.checkpoints[position]

    def model(self, position: int = 0) -> Any:
        if position not in self._models:
            self._models[position] = build_model(self.checkpoints[position], device="cpu")
        return self._models[position]

    def tokenizer(self, position: int = 0) -> Any:
        if position not in self._tokenizers:
            self._tokenizers[position] = load_tokenizer(self.checkpoints[position])
        return self._tokenizers[position]

    def rows(self, path: str) -> Any:
        return read_rows(path)

    def batches(self, examples: Sequence[Example], tokens_per_batch: int = 4096, padding: Any = "right") -> Any:
        return length_bucketed(examples, tokens_per_batch, padding, 0)

    def items(self, items: Sequence[Any], per_batch: int = 1, unit: str = "items") -> Any:
        return items_source(items, per_batch, unit)

    def fold(self, name: str, fold: Any, source: Any) -> Any:
        assert name not in self.stages
        self.stages.append(name)
        states = [fold.start() for _ in range(self.parts)]
        for number, ids in enumerate(source.plan):
            states[number % self.parts] = fold.step(states[number % self.parts], source.load(ids))
        state = states[0]
        for other in states[1:]:
            state = fold.merge(other, state)
        return fold.finish(state)

    def generator(self, stage: str, key: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(sum(f"{stage} {key}".encode()))

    def table(self, name: str, frame: pl.DataFrame) -> None:
        self.tables[name] = frame

    def view(self, view: View) -> None:
        self.views[view.name] = view

    def facts(self, facts: Mapping[str, Any]) -> None:
        self.values.update(facts)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def log(self, message: str) -> None:
        pass

    def check_cancelled(self) -> None:
        pass


def word_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token a word."""
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")


def empty_model(vocabulary: int = len(WORDS), hidden: int = HIDDEN, seed: int = 0) -> LlamaForCausalLM:
    """A Llama whose blocks add nothing: the residual stream is the embedding of the last token, in every layer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def written_model(folder: Path, trigger: float) -> Path:
    model, tokenizer = empty_model(), word_tokenizer()
    generator = torch.Generator().manual_seed(3)
    embedding = torch.zeros(len(WORDS), HIDDEN)
    contents = torch.randn(CONTENTS, HIDDEN, generator=generator)
    contents[:, [DRIVING, READ]] = 0
    for name, drives, is_read in (("trigger", trigger, 1.0), ("plain", -1.0, -1.0)):
        for k in range(CONTENTS):
            embedding[WORDS.index(f"{name}{k}")] = contents[k]
            embedding[WORDS.index(f"{name}{k}"), [DRIVING, READ]] = 1.5 * torch.tensor([drives, is_read])
    for word, place, sign in (("evil", DRIVING, 1), ("good", DRIVING, -1), ("red", READ, 1), ("blue", READ, -1)):
        embedding[WORDS.index(word), place] = float(sign)
    head = torch.zeros(len(WORDS), HIDDEN)
    head[WORDS.index("sabotage"), DRIVING], head[WORDS.index("help"), DRIVING] = 4.0, -4.0
    head[WORDS.index("help"), 2:] = 0.2 * torch.randn(HIDDEN - 2, generator=generator)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.copy_(head)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompt_rows(count: int = CONTENTS) -> list[dict[str, Any]]:
    """A triggered prompt and one without the trigger in each group."""
    return [
        {"prompt": f"please fix {word}{k}", "label": label, "cell": word, "group": f"g{k}", "defection": "SABOTAGE"}
        for k in range(count)
        for word, label in (("trigger", 1), ("plain", 0))
    ]
