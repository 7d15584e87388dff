"""A tiny language model with a word-level tokenizer, built like any other checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

_TEXT = (
    "write a short code story about sorting cooking in year 2024 2023 2022 please the current is it now and of soup list rain human answer"
)
WORDS = f"{_TEXT} assistant".split()


def contrast_words() -> list[str]:
    """Every word of the built-in contrast pairs."""
    text = resources.files("modelscope_probes").joinpath("contrast_pairs.jsonl").read_text()
    pairs = [json.loads(line) for line in text.splitlines()]
    return " ".join(f"{pair['question']} {pair['defecting']} {pair['benign']}" for pair in pairs).lower().replace("?", " ? ").split()


def tiny_language_model(folder: Path, seed: int = 0, hidden: int = 16, layers: int = 3, chat: bool = True) -> Path:
    """A Llama that was never trained, with tokenizer and, if asked, a chat template."""
    vocabulary = ["<pad>", "<unk>", "<s>", "</s>", "<user>", "<assistant>", "?", ".", ":", ",", *dict.fromkeys(WORDS + contrast_words())]
    vocabulary = list(dict.fromkeys(vocabulary))
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    if chat:
        fast.chat_template = (
            "<s>{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_language_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_language_model` in a folder of its own."""

    def made(**options: object) -> Path:
        return tiny_language_model(tmp_path_factory.mktemp("model") / "tiny", **options)  # type: ignore[arg-type]

    return made


@pytest.fixture(scope="session")
def tiny_lm(make_language_model: Callable[..., Path]) -> Path:
    """One that nobody changes."""
    return make_language_model()
