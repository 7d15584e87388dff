"""Real tokenizers, made on the fly and saved as a checkpoint folder holds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = ["the cat sat on the mat", "hello world", "user assistant system", "two plus two is four", "naïve café 😀"]


@dataclass(frozen=True)
class CheckpointFolder:
    """As much of a checkpoint as a tokenizer is loaded from."""

    path: Path
    config: dict[str, Any] | None = None


MakeCheckpoint = Callable[..., CheckpointFolder]


def byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 5, trainer)
    return tokenizer


def word_level() -> Tokenizer:
    words = ["<unk>", "<s>", *sorted({word for sentence in SENTENCES for word in sentence.split()}), ":"]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def metaspace_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 5, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "the", "cat", "sat", "on", "mat", "##s", "hello", "world"]
    tokenizer = Tokenizer(models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]", "[PAD]"])
    return tokenizer


ALGORITHMS = {"bpe": byte_level_bpe, "words": word_level, "metaspace": metaspace_bpe, "wordpiece": word_piece}


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Saves a tokenizer into a folder of its own: `around` names the special tokens put before and after a text."""

    def make(
        algorithm: str = "bpe",
        around: tuple[str, str] = ("", ""),
        template: str | None = None,
        config: dict[str, Any] | None = None,
        name: str = "checkpoint",
        **tokenizer_config: Any,
    ) -> CheckpointFolder:
        tokenizer = ALGORITHMS[algorithm]()
        before, after = around
        if before or after:
            single = " ".join(part for part in (before, "$A", after) if part)
            special = [(token, tokenizer.token_to_id(token)) for token in around if token]
            tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
        folder = tmp_path / name
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        stated = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer_config}
        if before:
            stated.setdefault("bos_token", before)
        if template is not None:
            stated["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(stated))
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        return CheckpointFolder(folder, config)

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes | list[Any]], Path]:
    """Writes a data file: text, bytes, or rows as one JSON object a line."""

    def write_file(name: str, content: str | bytes | list[Any]) -> Path:
        file = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write_file
