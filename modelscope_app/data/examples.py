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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from modelscope_app.api import BadInput, Example, Reader
from modelscope_app.data.files import Row, Rows, read_rows, shown
from modelscope_app.data.limits import TokenLimits
from modelscope_app.data.tokenizer import CheckpointTokenizer

KINDS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "input_ids": ("input_ids",),
}
"""The keys that make a row of each kind."""

_KEYS = tuple(key for keys in KINDS.values() for key in keys)
_KINDS_IN_WORDS = "text, prompt and completion, messages, or input_ids"


class _Tokens(NamedTuple):
    """What a row becomes."""

    input_ids: Sequence[int]
    completion_start: int


def read_examples(
    path: str | Path,
    tokenizer: CheckpointTokenizer | None,
    readers: Sequence[Reader] = (),
    warn: Callable[[str], None] = warnings.warn,
    limits: TokenLimits | None = None,
) -> list[Example]:
    """All rows of a data file, tokenised; see the module's table. `limits` are the tokenizer's unless given; without
    a vocabulary in them, the tokenizer's own counts.

    Without a tokenizer, rows of `input_ids` alone are read. Raises BadInput naming file, line and reason for a row that is of no
    kind or of two, is empty, is not tokenised into anything, or goes beyond the limits.
    """
    rows = read_rows(path, readers)
    of_kind: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for id, row in enumerate(rows.rows):
        of_kind[_kind(rows, id, row)].append(id)
    tokens: dict[int, _Tokens] = {id: _given_ids(rows, id) for id in of_kind["input_ids"]}
    if tokenizer is None:
        untokenised = sorted(set(range(len(rows.rows))).difference(tokens))
        for id in untokenised[:1]:
            raise rows.bad_row(id, "is text, and the checkpoint has no tokenizer; give rows of input_ids, or put tokenizer.json beside it")
    else:
        tokens |= _text_tokens(rows, of_kind["text"], tokenizer)
        tokens |= _completion_tokens(rows, of_kind["prompt"], tokenizer)
        tokens |= _conversation_tokens(rows, of_kind["messages"], tokenizer, warn)
    limits = limits or (tokenizer.limits if tokenizer else TokenLimits())
    if tokenizer is not None and limits.vocabulary is None:
        limits = limits._replace(vocabulary=tokenizer.vocabulary_size)
    examples = [Example(id, tuple(tokens[id].input_ids), tokens[id].completion_start, row) for id, row in enumerate(rows.rows)]
    for example in examples:
        _check_limits(rows, example, limits)
    return examples


def _kind(rows: Rows, id: int, row: Row) -> str:
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


def _given_ids(rows: Rows, id: int) -> _Tokens:
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


def _text_tokens(rows: Rows, ids: Sequence[int], tokenizer: CheckpointTokenizer) -> dict[int, _Tokens]:
    bare = _bare_tokens(rows, ids, "text", tokenizer)
    return {id: _Tokens(tokenizer.with_added_tokens(tokens), 0) for id, tokens in zip(ids, bare, strict=True)}


def _completion_tokens(rows: Rows, ids: Sequence[int], tokenizer: CheckpointTokenizer) -> dict[int, _Tokens]:
    prompts = _bare_tokens(rows, ids, "prompt", tokenizer, may_be_empty=True)
    completions = _bare_tokens(rows, ids, "completion", tokenizer)
    tokens = {}
    for id, bare_prompt, completion in zip(ids, prompts, completions, strict=True):
        prompt = tokenizer.with_added_tokens(bare_prompt, open_ended=True)
        tokens[id] = _Tokens(tokenizer.with_added_tokens(prompt + completion), len(prompt))
    return tokens


def _bare_tokens(rows: Rows, ids: Sequence[int], key: str, tokenizer: CheckpointTokenizer, may_be_empty: bool = False) -> list[list[int]]:
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


def _conversation_tokens(rows: Rows, ids: Sequence[int], tokenizer: CheckpointTokenizer, warn: Callable[[str], None]) -> dict[int, _Tokens]:
    whole = tokenizer.all_chat_ids([_rendered(rows, id, tokenizer) for id in ids])
    tokens = {id: _Tokens(conversation, 0) for id, conversation in zip(ids, whole, strict=True)}
    openings = {id: _opening(rows.rows[id]["messages"], tokenizer) for id in ids if _ends_with_answer(rows.rows[id]["messages"])}
    tokenised = tokenizer.all_chat_ids([text or "" for text in openings.values()], answer_follows=True)
    unknown_starts = []
    for id, text, opening in zip(openings, openings.values(), tokenised, strict=True):
        conversation = tokens[id].input_ids
        if text is not None and len(opening) < len(conversation) and conversation[: len(opening)] == opening:
            tokens[id] = _Tokens(conversation, len(opening))
        else:
            unknown_starts.append(id)
    for id in ids:
        if not tokens[id].input_ids:
            raise rows.bad_row(id, "messages are rendered into nothing by the chat template")
    if unknown_starts:
        what = f"{len(unknown_starts)} of {len(ids)} conversations (first: {rows.place(unknown_starts[0])})"
        warn(f"{what}: the chat template does not tell where the last answer begins; all their tokens count as completion")
    return tokens


def _rendered(rows: Rows, id: int, tokenizer: CheckpointTokenizer) -> str:
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


def _check_limits(rows: Rows, example: Example, limits: TokenLimits) -> None:
    largest = max(example.input_ids)
    if limits.vocabulary is not None and largest >= limits.vocabulary:
        position = example.input_ids.index(largest)
        raise rows.bad_row(example.id, f"token {position} has id {largest}, and the model's vocabulary ends at {limits.vocabulary - 1}")
    if limits.positions is not None and len(example.input_ids) > limits.positions:
        raise rows.bad_row(example.id, f"has {len(example.input_ids)} tokens, and the model takes {limits.positions}; shorten the row")
