"""Rows of a data file as token sequences.

| keys of a row           | tokens                                                  | completion_start                            |
|-------------------------|---------------------------------------------------------|---------------------------------------------|
| text                    | of the text, with the special tokens the tokenizer adds | 0                                           |
| prompt and completion   | of the prompt, then of the completion                   | first token of the completion               |
| messages                | of the conversation through the chat template           | first token of the last assistant message   |
| input_ids               | these                                                   | 0                                           |

A row has the keys of one line of this table; its other columns (a label, say) are free, and a key without a value counts as
absent. Rows of one file may be of different kinds.

Prompt and completion are tokenised apart, so that no token straddles the boundary; the special tokens the tokenizer adds stand
before the prompt and after the completion, as around one text. Nothing is put between the two: a completion that begins a new
word begins with its space.

The answer of a conversation starts where the template's rendering of the messages before it, with the assistant's turn opened,
ends. A conversation that ends with somebody else's message, or is one assistant message alone, has completion_start 0, as has
one whose template renders the earlier messages differently once the answer is there; of these a warning says how many.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from modelscope_app.api import BadInput, Example, Reader
from modelscope_app.data.examples_on_disk import ExamplesOnDisk
from modelscope_app.data.files import Rows, read_rows
from modelscope_app.data.json_lines import Row, RowsOnDisk
from modelscope_app.data.limits import TokenLimits
from modelscope_app.data.quoting import shown
from modelscope_app.data.tokenizer import CheckpointTokenizer

KINDS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "input_ids": ("input_ids",),
}
"""The keys that make a row of each kind."""

_KEYS = tuple(key for keys in KINDS.values() for key in keys)
_ROWS_AT_ONCE = 4096
"""Of a file that is not held in memory."""
_KINDS_IN_WORDS = "text, prompt and completion, messages, or input_ids"


class _Tokens(NamedTuple):
    """What a row becomes."""

    input_ids: Sequence[int]
    completion_start: int


class _Part(NamedTuple):
    """Rows that are tokenised together."""

    whole: Rows
    rows: Mapping[int, Row]
    """By id."""

    def bad_row(self, id: int, reason: str) -> BadInput:
        return self.whole.bad_row(id, reason)


class _Starts:
    """Conversations of which the chat template does not tell where the last answer begins."""

    def __init__(self) -> None:
        self.conversations = 0
        self.unknown = 0
        self.first_unknown = 0


def read_examples(
    path: str | Path,
    tokenizer: CheckpointTokenizer | None,
    readers: Sequence[Reader] = (),
    warn: Callable[[str], None] = warnings.warn,
    limits: TokenLimits | None = None,
) -> Sequence[Example]:
    """All rows of a data file, tokenised; see the module's table. `limits` are the tokenizer's unless given; without
    a vocabulary in them, the tokenizer's own counts. Of a large jsonl file they are kept on disk.

    Without a tokenizer, rows of `input_ids` alone are read. Raises BadInput naming file, line and reason for a row that is of no
    kind or of two, is empty, is not tokenised into anything, or goes beyond the limits.
    """
    rows = read_rows(path, readers)
    limits = limits or (tokenizer.limits if tokenizer else TokenLimits())
    if tokenizer is not None and limits.vocabulary is None:
        limits = limits._replace(vocabulary=tokenizer.vocabulary_size)
    starts = _Starts()
    examples: list[Example] = []
    on_disk = ExamplesOnDisk(rows.rows) if isinstance(rows.rows, RowsOnDisk) else None
    at_once = len(rows.rows) if on_disk is None else _ROWS_AT_ONCE
    for first in range(0, len(rows.rows), at_once):
        part = _Part(rows, dict(enumerate(rows.rows[first : first + at_once], first)))
        tokens = _tokens(part, tokenizer, starts)
        for id, row in part.rows.items():
            example = Example(id, tuple(tokens[id].input_ids), tokens[id].completion_start, row)
            _check_limits(part, example, limits)
            if on_disk is None:
                examples.append(example)
            else:
                on_disk.append(example.input_ids, example.completion_start)
    if starts.unknown:
        what = f"{starts.unknown} of {starts.conversations} conversations (first: {rows.place(starts.first_unknown)})"
        warn(f"{what}: the chat template does not tell where the last answer begins; all their tokens count as completion")
    return examples if on_disk is None else on_disk


def _tokens(rows: _Part, tokenizer: CheckpointTokenizer | None, starts: _Starts) -> dict[int, _Tokens]:
    of_kind: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for id, row in rows.rows.items():
        of_kind[_kind(rows, id, row)].append(id)
    tokens: dict[int, _Tokens] = {id: _given_ids(rows, id) for id in of_kind["input_ids"]}
    if tokenizer is not None:
        tokens |= _text_tokens(rows, of_kind["text"], tokenizer)
        tokens |= _completion_tokens(rows, of_kind["prompt"], tokenizer)
        return tokens | _conversation_tokens(rows, of_kind["messages"], tokenizer, starts)
    for id in rows.rows:
        if id not in tokens:
            raise rows.bad_row(id, "is text, and the checkpoint has no tokenizer; give rows of input_ids, or put tokenizer.json beside it")
    return tokens


def _kind(rows: _Part, id: int, row: Row) -> str:
    present = [key for key in _KEYS if row.get(key) is not None]
    for kind, keys in KINDS.items():
        if tuple(present) == keys:
            return kind
    if not present:
        found = f"only {', '.join(map(repr, row))}" if row else "no keys"
        raise rows.bad_row(id, f"has {found}; a row has {_KINDS_IN_WORDS}")
    if present in (["prompt"], ["completion"]):
        other = "completion" if present == ["prompt"] else "prompt"
        raise rows.bad_row(id, f"has {present[0]} without {other}; for one piece of text, name it text")
    raise rows.bad_row(id, f"has {' and '.join(present)}; a row has either {_KINDS_IN_WORDS}")


def _given_ids(rows: _Part, id: int) -> _Tokens:
    ids = rows.rows[id]["input_ids"]
    if not isinstance(ids, list):
        raise rows.bad_row(id, f"input_ids is {shown(ids)}, not a list of token ids")
    if not ids:
        raise rows.bad_row(id, "input_ids is empty")
    if set(map(type, ids)) != {int}:
        position = next(position for position, token in enumerate(ids) if type(token) is not int)
        raise rows.bad_row(id, f"input_ids[{position}] is {shown(ids[position])}, not a whole number")
    if min(ids) < 0:
        raise rows.bad_row(id, f"input_ids[{ids.index(min(ids))}] is {min(ids)}; token ids are counted from 0")
    return _Tokens(ids, 0)


def _text_tokens(rows: _Part, ids: Sequence[int], tokenizer: CheckpointTokenizer) -> dict[int, _Tokens]:
    bare = _bare_tokens(rows, ids, "text", tokenizer)
    return {id: _Tokens(tokenizer.with_added_tokens(tokens), 0) for id, tokens in zip(ids, bare, strict=True)}


def _completion_tokens(rows: _Part, ids: Sequence[int], tokenizer: CheckpointTokenizer) -> dict[int, _Tokens]:
    prompts = _bare_tokens(rows, ids, "prompt", tokenizer, may_be_empty=True)
    completions = _bare_tokens(rows, ids, "completion", tokenizer)
    tokens = {}
    for id, bare_prompt, completion in zip(ids, prompts, completions, strict=True):
        prompt = tokenizer.with_added_tokens(bare_prompt, open_ended=True)
        tokens[id] = _Tokens(tokenizer.with_added_tokens(prompt + completion), len(prompt))
    return tokens


def _bare_tokens(rows: _Part, ids: Sequence[int], key: str, tokenizer: CheckpointTokenizer, may_be_empty: bool = False) -> list[list[int]]:
    for id in ids:
        value = rows.rows[id][key]
        if not isinstance(value, str):
            raise rows.bad_row(id, f"{key} is {shown(value)}, not a string")
        if not value and not may_be_empty:
            raise rows.bad_row(id, f"{key} is empty")
    tokens = tokenizer.encode_bare([rows.rows[id][key] for id in ids])
    for id, bare in zip(ids, tokens, strict=True):
        if not bare and not may_be_empty:
            raise rows.bad_row(id, f"{key} is {shown(rows.rows[id][key])}, of which the tokenizer makes no token")
    return tokens


def _conversation_tokens(rows: _Part, ids: Sequence[int], tokenizer: CheckpointTokenizer, starts: _Starts) -> dict[int, _Tokens]:
    whole = tokenizer.all_chat_ids([_rendered(rows, id, tokenizer) for id in ids])
    tokens = {id: _Tokens(conversation, 0) for id, conversation in zip(ids, whole, strict=True)}
    openings = {id: _opening(rows.rows[id]["messages"], tokenizer) for id in ids if _ends_with_answer(rows.rows[id]["messages"])}
    tokenised = tokenizer.all_chat_ids([text or "" for text in openings.values()], answer_follows=True)
    starts.conversations += len(ids)
    for id, text, opening in zip(openings, openings.values(), tokenised, strict=True):
        conversation = tokens[id].input_ids
        if text is not None and len(opening) < len(conversation) and conversation[: len(opening)] == opening:
            tokens[id] = _Tokens(conversation, len(opening))
        else:
            starts.first_unknown = id if not starts.unknown else starts.first_unknown
            starts.unknown += 1
    for id in ids:
        if not tokens[id].input_ids:
            raise rows.bad_row(id, "messages are rendered into nothing by the chat template")
    return tokens


def _rendered(rows: _Part, id: int, tokenizer: CheckpointTokenizer) -> str:
    try:
        return tokenizer.chat_text(rows.rows[id]["messages"])
    except BadInput as error:
        raise rows.bad_row(id, str(error)) from error


def _ends_with_answer(messages: Sequence[Row]) -> bool:
    return len(messages) > 1 and messages[-1]["role"] == "assistant"


def _opening(messages: Sequence[Row], tokenizer: CheckpointTokenizer) -> str | None:
    """What the answer of a conversation follows, or None where the template refuses to render it."""
    try:
        return tokenizer.chat_text(messages[:-1], answer_follows=True)
    except BadInput:
        return None


def _check_limits(rows: _Part, example: Example, limits: TokenLimits) -> None:
    largest = max(example.input_ids)
    if limits.vocabulary is not None and largest >= limits.vocabulary:
        position = example.input_ids.index(largest)
        raise rows.bad_row(example.id, f"token {position} has id {largest}, and the model's vocabulary ends at {limits.vocabulary - 1}")
    if limits.positions is not None and len(example.input_ids) > limits.positions:
        raise rows.bad_row(example.id, f"has {len(example.input_ids)} tokens, and the model takes {limits.positions}; shorten the row")
