"""The chat template of a checkpoint as text. It is a program in a template language; here it is read and never run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modelscope_app.api.errors import BadInput
from modelscope_app.checkpoints.header import open_regular
from modelscope_app.checkpoints.json_text import LARGEST_BYTES, object_in_file
from modelscope_app.checkpoints.tokenizer_files import CHAT_TEMPLATE_FOLDER

if TYPE_CHECKING:
    from modelscope_app.checkpoints.checkpoint import OpenCheckpoint


def chat_templates(checkpoint: OpenCheckpoint) -> list[tuple[str, str]]:
    """Name and text of each template, the one that is used first; empty where there is none. Raises BadInput.

    A file of its own goes before one inside tokenizer_config.json, as transformers does it.
    """
    return [(name, text) for name, text in _found(checkpoint) if text]


def _found(checkpoint: OpenCheckpoint) -> Iterator[tuple[str, str]]:
    files = checkpoint.tokenizer_files
    own = [name for name in files if name == "chat_template.jinja" or name.startswith(f"{CHAT_TEMPLATE_FOLDER}/")]
    for name in own:
        yield name, _text(checkpoint, name)
    if "chat_template.json" in files:
        yield from _in_object("chat_template.json", object_in_file(checkpoint.folder / "chat_template.json").get("chat_template"))
    if not own and "tokenizer_config.json" in files:
        yield from _in_object("tokenizer_config.json", object_in_file(checkpoint.folder / "tokenizer_config.json").get("chat_template"))


def _in_object(file: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield file, value
    elif isinstance(value, list):  # several templates, each with a name
        for item in value:
            if isinstance(item, dict) and isinstance(item.get("template"), str):
                yield f"{file}: {item.get('name')}", item["template"]


def _text(checkpoint: OpenCheckpoint, name: str) -> str:
    path = checkpoint.folder / name
    descriptor = open_regular(path)
    try:
        with os.fdopen(descriptor, "rb") as file:
            return file.read(LARGEST_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from None
