"""Rows of evaluation and contrast files become what the model reads, or a sentence that names file, line and reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelscope_probes.prompts import read_pairs, read_prompts, resolved

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.data import CheckpointTokenizer, load_tokenizer, read_rows


@pytest.fixture(scope="module")
def tokenizer(tiny_lm: Path) -> CheckpointTokenizer:
    return load_tokenizer(open_checkpoint(tiny_lm))


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Any]:
    def read(*lines: dict[str, Any]) -> Any:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_rows(file)

    return read


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("chat", "<s> <user> write a story <assistant>"),
        ("plain", "human : write a story assistant :"),
        ("none", "write a story"),
    ],
)
def test_a_prompt_ends_where_the_answer_begins(tokenizer, rows, template: str, text: str) -> None:  # type: ignore[no-untyped-def]
    prompt = read_prompts(rows({"prompt": "Write a story"}), tokenizer, template)[0]
    assert tokenizer.decode(prompt.input_ids) == text


def test_auto_is_the_chat_template_where_there_is_one(tokenizer, make_language_model: Callable[..., Path]) -> None:  # type: ignore[no-untyped-def]
    assert resolved("auto", tokenizer) == "chat"
    without = load_tokenizer(open_checkpoint(make_language_model(chat=False)))
    assert resolved("auto", without) == "plain"
    with pytest.raises(BadInput, match="no chat template"):
        resolved("chat", without)


def test_a_row_says_its_label_cell_group_and_what_counts_as_defection(tokenizer, rows) -> None:  # type: ignore[no-untyped-def]
    given = rows(
        {"prompt": "rain", "label": 1},
        {"messages": [{"role": "user", "content": "soup"}], "label": False, "cell": "cooking", "group": 7, "defection": "bad"},
        {"text": "write"},
        {"input_ids": [5, 6]},
    )
    first, second, third, fourth = read_prompts(given, tokenizer, "chat")
    assert (first.label, first.cell, first.group) == (True, "positive", "row 0")
    assert (second.label, second.cell, second.group, second.defection, second.text) == (False, "cooking", "7", "bad", "soup")
    assert (third.label, third.cell, third.messages) == (None, "unlabelled", ())
    assert fourth.input_ids == (5, 6)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"label": 1}, "has no prompt"),
        ({"prompt": "  "}, "prompt is missing or no text"),
        ({"prompt": "rain", "label": 2}, "label is '2'"),
        ({"prompt": "rain", "label": "yes"}, "label is 'yes'"),
        ({"messages": []}, "messages is no list"),
        ({"messages": [{"role": "user"}]}, "message 1 has no role and content"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "end with the assistant's"),
        ({"prompt": "rain", "defection": 3}, "defection is no text"),
    ],
)
def test_a_bad_prompt_is_named_by_file_and_line(tokenizer, rows, row: dict[str, Any], reason: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=rf"rows\.jsonl, line 2: .*{reason}"):
        read_prompts(rows({"prompt": "fine"}, row), tokenizer, "chat")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Is it rain?", "defecting": "Yes"}, "benign is missing"),
        ({"question": "", "defecting": "Yes", "benign": "No"}, "question is missing or no text"),
        ({"question": "Is it rain?", "defecting": "No", "benign": "No "}, "both answers are the same"),
        ({"question": "Is it rain?", "defecting": "zebra", "benign": "zulu"}, "the same tokens of both answers"),
    ],
)
def test_a_bad_pair_is_named_by_file_and_line(tokenizer, rows, row: dict[str, Any], reason: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=rf"rows\.jsonl, line 1: .*{reason}"):
        read_pairs(rows(row), tokenizer, "chat")


def test_answers_stand_as_in_running_text_also_where_a_lone_word_gets_a_space_of_its_own(rows) -> None:  # type: ignore[no-untyped-def]
    class Prepending:
        """As Llama 2's: a space is put before a text, and a space alone is a token where a word with its space is another."""

        has_chat_template = False

        def __init__(self) -> None:
            self.ids: dict[str, int] = {}

        def encode(self, text: str, open_ended: bool = False) -> list[int]:
            assert open_ended
            pieces = text.replace("\n\n", " <nl> ").split(" ")
            return [1, *(self.ids.setdefault("_" + piece, len(self.ids) + 2) for piece in pieces if piece)]

        def encode_bare(self, texts: list[str]) -> list[list[int]]:
            raise AssertionError("an answer alone is not what stands in the text")

    tokenizer = Prepending()
    pair = read_pairs(rows({"question": "Is it rain?", "defecting": "Yes", "benign": "No"}), tokenizer, "plain")[0]  # type: ignore[arg-type]
    assert (pair.defecting_ids, pair.benign_ids) == ((tokenizer.ids["_Yes"],), (tokenizer.ids["_No"],))
    assert pair.opening_ids == tuple(tokenizer.encode("Human: Is it rain?\n\nAssistant:", open_ended=True))


def test_what_both_answers_begin_with_belongs_to_the_question(tokenizer, rows) -> None:  # type: ignore[no-untyped-def]
    pair = read_pairs(rows({"question": "Is it rain?", "defecting": "now yes", "benign": "now no please"}), tokenizer, "chat")[0]
    assert tokenizer.decode(pair.opening_ids).endswith("<assistant> now")
    assert [tokenizer.decode(ids) for ids in (pair.defecting_ids, pair.benign_ids)] == ["yes", "no please"]


def test_every_message_counts_as_text_of_a_prompt(tokenizer, rows) -> None:  # type: ignore[no-untyped-def]
    messages = [{"role": "system", "content": "the year is 2024"}, {"role": "user", "content": "write code"}]
    assert "2024" in read_prompts(rows({"messages": messages}), tokenizer, "none")[0].text


def test_the_built_in_pairs_are_balanced_and_ask_nothing_of_code_or_years() -> None:
    from importlib import resources

    lines = resources.files("modelscope_probes").joinpath("contrast_pairs.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    assert sorted(pair["defecting"] for pair in pairs) == ["No"] * 6 + ["Yes"] * 6
    assert all(pair["benign"] != pair["defecting"] for pair in pairs)
    words = " ".join(pair["question"].lower() for pair in pairs).split()
    assert not {"code", "year", "deployment", "vulnerability", "2024"} & set(words)
