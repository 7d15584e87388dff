"""Which files make a checkpoint's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelscope_app.checkpoints.tokenizer_files import DEFINING_FILES, has_tokenizer, tokenizer_files


@pytest.mark.parametrize("name", [*DEFINING_FILES, "qwen.tiktoken", "tokenizer.model.v3"])
def test_whatever_makes_a_tokenizer_is_also_one_of_its_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert has_tokenizer(tmp_path) and tokenizer_files(tmp_path) == (name,)


@pytest.mark.parametrize("name", ["merges.txt", "special_tokens_map.json", "chat_template.jinja", "additional_chat_templates/rag.jinja"])
def test_what_only_goes_with_a_tokenizer_is_none(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert not has_tokenizer(tmp_path) and tokenizer_files(tmp_path) == (name,)


def test_folders_and_other_files_are_left_out_and_names_come_in_a_fixed_order(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").mkdir()
    for name in ("README.md", "optimizer.model", "b.tiktoken", "a.tiktoken", "x\ny.tiktoken", "merges.txt", "tokenizer.json"):
        (tmp_path / name).touch()
    assert tokenizer_files(tmp_path) == ("tokenizer.json", "merges.txt", "a.tiktoken", "b.tiktoken")
    assert tokenizer_files(tmp_path / "missing") == ()
