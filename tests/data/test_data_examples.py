"""Rows as token sequences, each kind by itself, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest

from modelscope_app.api import BadInput, Example
from modelscope_app.data import CheckpointTokenizer, TokenLimits, load_tokenizer, read_examples, token_limits

MakeCheckpoint = Callable[..., Any]
Write = Callable[[str, Any], Path]

CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HELLO = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "the cat sat"}


@pytest.fixture
def tokenizer(make_checkpoint: MakeCheckpoint) -> CheckpointTokenizer:
    return load_tokenizer(make_checkpoint(around=("<s>", ""), template=CHAT, eos_token="</s>"))


def texts(example: Example, tokenizer: CheckpointTokenizer) -> tuple[str, str]:
    """What an example reads as, before and from its completion."""
    return tokenizer.decode(example.input_ids[: example.completion_start]), tokenizer.decode(example.input_ids[example.completion_start :])


def refusal(path: Path, tokenizer: CheckpointTokenizer | None, **options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        read_examples(path, tokenizer, **options)
    return str(caught.value)


def test_each_kind_of_row_becomes_its_tokens_in_file_order(write: Write, tokenizer: CheckpointTokenizer) -> None:
    rows = [
        {"messages": [HELLO, ANSWER], "label": 1},
        {"text": "hello world"},
        {"input_ids": [5, 6, 7]},
        {"prompt": "two plus two is", "completion": " four"},
        {"text": "the mat", "prompt": None},
    ]
    examples = read_examples(write("rows.jsonl", rows), tokenizer)
    assert [example.id for example in examples] == [0, 1, 2, 3, 4]
    assert [example.row for example in examples] == rows
    assert [texts(example, tokenizer) for example in examples[:2]] == [
        ("<s><|user|>hello</s><|assistant|>", "the cat sat</s>"),
        ("", "<s>hello world"),
    ]
    assert examples[2].input_ids == (5, 6, 7)
    assert texts(examples[3], tokenizer) == ("<s>two plus two is", " four")
    assert texts(examples[4], tokenizer) == ("", "<s>the mat")


def test_many_rows_are_tokenised_as_one_by_one(write: Write, tokenizer: CheckpointTokenizer) -> None:
    rows = [{"text": f"the cat {number} sat " + "on " * (number % 7)} for number in range(2500)]
    examples = read_examples(write("rows.jsonl", rows), tokenizer)
    assert [list(example.input_ids) for example in examples] == [tokenizer.encode(row["text"]) for row in rows]


def test_special_tokens_stand_around_prompt_and_completion_together(make_checkpoint: MakeCheckpoint, write: Write) -> None:
    tokenizer = load_tokenizer(make_checkpoint("wordpiece", around=("[CLS]", "[SEP]")))
    (example,) = read_examples(write("rows.jsonl", [{"prompt": "the cat", "completion": "sat"}]), tokenizer)
    assert texts(example, tokenizer) == ("[CLS] the cat", "sat [SEP]")


def test_an_empty_prompt_leaves_everything_but_bos_to_the_completion(write: Write, tokenizer: CheckpointTokenizer) -> None:
    (example,) = read_examples(write("rows.jsonl", [{"prompt": "", "completion": "hello"}]), tokenizer)
    assert texts(example, tokenizer) == ("<s>", "hello")


def test_a_rendered_conversation_given_as_text_has_one_bos(write: Write, tokenizer: CheckpointTokenizer) -> None:
    (example,) = read_examples(write("rows.jsonl", [{"text": "<s><|user|>hello</s>"}]), tokenizer)
    assert example.input_ids.count(tokenizer.bos_id) == 1


@pytest.mark.parametrize(
    ("messages", "before"),
    [
        ([HELLO], ""),
        ([ANSWER], ""),
        ([HELLO, ANSWER, HELLO], ""),
        ([HELLO, ANSWER, HELLO, ANSWER], "<s><|user|>hello</s><|assistant|>the cat sat</s><|user|>hello</s><|assistant|>"),
    ],
)
def test_the_completion_of_a_conversation_is_its_last_answer(
    write: Write, tokenizer: CheckpointTokenizer, messages: list[Any], before: str
) -> None:
    heard: list[str] = []
    (example,) = read_examples(write("rows.jsonl", [{"messages": messages}]), tokenizer, warn=heard.append)
    assert texts(example, tokenizer)[0] == before
    assert heard == []


@pytest.mark.parametrize(
    "template",
    [
        # earlier messages are rendered differently once the answer is there
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
        # no rendering without an answer
        "{% if messages[-1]['role'] != 'assistant' %}{{ raise_exception('no answer') }}{% endif %}{{ messages[0]['content'] }}",
        # the answer is left out
        "{{ messages[0]['content'] }}",
    ],
)
def test_a_template_that_hides_where_the_answer_begins_is_warned_about_once(
    make_checkpoint: MakeCheckpoint, write: Write, template: str
) -> None:
    tokenizer = load_tokenizer(make_checkpoint(template=template))
    heard: list[str] = []
    file = write("rows.jsonl", [{"text": "hello"}, {"messages": [HELLO, ANSWER]}, {"messages": [HELLO, ANSWER]}])
    examples = read_examples(file, tokenizer, warn=heard.append)
    assert [example.completion_start for example in examples] == [0, 0, 0]
    assert len(heard) == 1
    assert heard[0].startswith(f"2 of 2 conversations (first: {file}, line 2)")


def test_conversations_are_read_without_a_template(make_checkpoint: MakeCheckpoint, write: Write) -> None:
    heard: list[str] = []
    tokenizer = load_tokenizer(make_checkpoint(around=("<s>", "</s>")), heard.append)
    examples = read_examples(write("rows.jsonl", [{"messages": [HELLO, ANSWER]}] * 3), tokenizer, warn=heard.append)
    assert texts(examples[2], tokenizer) == ("<s>user: hello\nassistant:", " the cat sat\n</s>")
    assert len(heard) == 1


def test_messages_of_a_parquet_file_lose_the_keys_it_filled_up(tmp_path: Path, tokenizer: CheckpointTokenizer) -> None:
    rows = [{"messages": [HELLO | {"name": "x"}, ANSWER]}, {"messages": [HELLO, ANSWER]}]
    polars.DataFrame(rows, schema_overrides=None, infer_schema_length=None).write_parquet(tmp_path / "rows.parquet")
    examples = read_examples(tmp_path / "rows.parquet", tokenizer)
    assert texts(examples[1], tokenizer) == ("<s><|user|>hello</s><|assistant|>", "the cat sat</s>")


def test_texts_of_csv_and_txt_files_are_examples(write: Write, tokenizer: CheckpointTokenizer) -> None:
    (from_csv,) = read_examples(write("rows.csv", "prompt,completion,label\n12,34,1\n"), tokenizer)
    assert texts(from_csv, tokenizer) == ("<s>12", "34")
    (from_txt,) = read_examples(write("rows.txt", "\nhello\n"), tokenizer)
    assert (from_txt.id, texts(from_txt, tokenizer)) == (0, ("", "<s>hello"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "has no keys; a row has text, prompt and completion, messages, or input_ids"),
        ({"label": 1, "body": "x"}, "has only 'label', 'body'; a row has text"),
        ({"text": None}, "has only 'text'; a row has text"),
        ({"text": "x", "input_ids": [1]}, "has text and input_ids; a row has either"),
        ({"text": "x", "prompt": "y", "completion": "z"}, "has text and prompt and completion"),
        ({"prompt": "y", "completion": "z", "messages": [HELLO]}, "has prompt and completion and messages"),
        ({"prompt": "x"}, "has prompt without completion"),
        ({"completion": "x"}, "has completion without prompt"),
        ({"text": ""}, "text is empty"),
        ({"text": 7}, "text is 7, a number, not a string"),
        ({"text": ["x"]}, "text is ['x'], a list, not a string"),
        ({"prompt": "x", "completion": ""}, "completion is empty"),
        ({"prompt": 1, "completion": "x"}, "prompt is 1, a number"),
        ({"messages": "x"}, "messages is not a list"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [HELLO, {"role": "user", "content": 3}]}, "content of message 2 is 3, a number, not a string"),
        ({"input_ids": []}, "input_ids is empty"),
        ({"input_ids": "1 2"}, "input_ids is '1 2', a string, not a list"),
        ({"input_ids": [1, 2.0]}, "input_ids[1] is 2.0, a number, not a whole number"),
        ({"input_ids": [1, True]}, "input_ids[1] is True, a boolean"),
        ({"input_ids": [1, None]}, "input_ids[1] is None"),
        ({"input_ids": [1, -3]}, "input_ids[1] is -3; token ids are counted from 0"),
        ({"input_ids": [1, 999]}, "token 1 has id 999, and the model's vocabulary ends at"),
    ],
)
def test_a_bad_row_is_named_with_file_line_and_reason(
    write: Write, tokenizer: CheckpointTokenizer, row: dict[str, Any], reason: str
) -> None:
    file = write("rows.jsonl", [{"text": "hello"}, row, {"text": "world"}])
    message = refusal(file, tokenizer)
    assert message.startswith(f"{file}, line 2: ")
    assert reason in message


def test_a_text_without_tokens_is_refused(make_checkpoint: MakeCheckpoint, write: Write) -> None:
    words = load_tokenizer(make_checkpoint("words", around=("<s>", "")))
    assert "text is '  ', a string, of which the tokenizer makes no token" in refusal(write("rows.jsonl", [{"text": "  "}]), words)


def test_a_template_that_refuses_a_row_names_the_row(make_checkpoint: MakeCheckpoint, write: Write) -> None:
    template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('begin with a user') }}{% endif %}x"
    tokenizer = load_tokenizer(make_checkpoint(template=template))
    file = write("rows.jsonl", [{"messages": [HELLO]}, {"messages": [ANSWER]}])
    assert refusal(file, tokenizer) == f"{file}, line 2: the chat template refuses these messages (begin with a user)"


def test_a_conversation_rendered_into_nothing_is_refused(make_checkpoint: MakeCheckpoint, write: Write) -> None:
    tokenizer = load_tokenizer(make_checkpoint(template="{# nothing #}"))
    assert "rendered into nothing" in refusal(write("rows.jsonl", [{"messages": [HELLO]}]), tokenizer)


def test_a_checkpoint_without_tokenizer_reads_rows_of_token_ids_and_no_others(write: Write) -> None:
    file = write("rows.jsonl", [{"input_ids": [1, 2]}, {"input_ids": [63]}])
    assert [example.input_ids for example in read_examples(file, None, limits=TokenLimits(vocabulary=64))] == [(1, 2), (63,)]
    assert "line 2: token 0 has id 63" in refusal(file, None, limits=TokenLimits(vocabulary=63))
    message = refusal(write("mixed.jsonl", [{"input_ids": [1]}, {"text": "x"}]), None)
    assert "line 2: is text, and the checkpoint has no tokenizer; give rows of input_ids" in message


def test_a_row_longer_than_the_model_takes_is_refused(make_checkpoint: MakeCheckpoint, write: Write) -> None:
    checkpoint = make_checkpoint("words", config={"model_type": "gpt2", "vocab_size": 100, "n_positions": 3})
    tokenizer = load_tokenizer(checkpoint)
    assert len(read_examples(write("rows.jsonl", [{"text": "the cat sat"}]), tokenizer)) == 1
    assert "line 1: has 4 tokens, and the model takes 3" in refusal(write("rows.jsonl", [{"text": "the cat sat on"}]), tokenizer)


def test_a_tokenizer_that_is_larger_than_the_model_is_noticed(make_checkpoint: MakeCheckpoint, write: Write) -> None:
    tokenizer = load_tokenizer(make_checkpoint("words", config={"model_type": "gpt2", "vocab_size": 3}))
    assert "and the model's vocabulary ends at 2" in refusal(write("rows.jsonl", [{"text": "the cat"}]), tokenizer)


def test_limits_come_from_the_config_or_its_text_part(make_checkpoint: MakeCheckpoint) -> None:
    def limits(name: str, config: dict[str, Any] | None) -> TokenLimits:
        return token_limits(make_checkpoint(name=name, config=config))

    assert limits("a", {"vocab_size": 7, "max_position_embeddings": 8}) == (7, 8)
    assert limits("b", {"text_config": {"vocab_size": 7}, "vocab_size": None}) == (7, None)
    assert limits("c", {"vocab_size": True, "n_positions": "many", "text_config": 3}) == (None, None)
    assert limits("d", None) == (None, None)
