"""Files beside a checkpoint's weights that decide what a text's token ids are. The fingerprint covers every one of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

DEFINING_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
    "spm_char.model",
    "source.spm",
    "target.spm",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
)
"""A checkpoint with none of these has no tokenizer."""

CHAT_TEMPLATE_FOLDER = "additional_chat_templates"
_OTHER_FILES = (
    "merges.txt",
    "bpe.codes",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab-src.json",
    "vocab-tgt.json",
    "target_vocab.json",
    "entity_vocab.json",
)
_NAMED = frozenset((*DEFINING_FILES, *_OTHER_FILES))
_VARIANTS = re.compile(r"tokenizer\.[\w.-]+\.json|tokenizer\.model\.[\w.-]+|[\w.-]+\.tiktoken", re.ASCII)
"""A tokenizer.json for some version of transformers (`tokenizer.4.0.0.json`), Mistral's versions, OpenAI's ranks."""
_TEMPLATES = re.compile(r"[\w.-]+\.jinja", re.ASCII)


def tokenizer_files(folder: Path) -> tuple[str, ...]:
    """Paths of the tokenizer's files, relative to `folder`: the known names first, then variants, then further chat templates."""
    present = _file_names(folder)
    named = [name for name in (*DEFINING_FILES, *_OTHER_FILES) if name in present]
    variants = sorted(name for name in present - _NAMED if _VARIANTS.fullmatch(name))
    templates = sorted(name for name in _file_names(folder / CHAT_TEMPLATE_FOLDER) if _TEMPLATES.fullmatch(name))
    return (*named, *variants, *(f"{CHAT_TEMPLATE_FOLDER}/{name}" for name in templates))


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a file that makes a tokenizer, and not only files that go with one."""
    return any(name in DEFINING_FILES or _VARIANTS.fullmatch(name) for name in tokenizer_files(folder))


def _file_names(folder: Path) -> set[str]:
    """Names of the files in a folder, links to files included; empty where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()
