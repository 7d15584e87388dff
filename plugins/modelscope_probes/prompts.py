"""What probes read: prompts with their labels, and pairs of answers to one question.

| template | a question q is rendered as                          | an answer a follows as |
|----------|------------------------------------------------------|------------------------|
| chat     | the checkpoint's chat template, the assistant's turn opened | `a`             |
| plain    | `Human: q`, an empty line, `Assistant:`              | ` a`                   |
| none     | q as it stands                                       | ` a`                   |
| auto     | chat where the checkpoint has a template, else plain |                        |

`prompt` is one question; `messages` are a conversation, of which the last message is the user's; `text` and `input_ids` are read as they
stand. What is read at the end of a prompt is the last token before the answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from modelscope_app.api import BadInput, DataRows, Example, Tokenizer

Template = Literal["auto", "chat", "plain", "none"]
_PLAIN_ROLES = {"user": "Human", "assistant": "Assistant", "system": "System"}


class Prompt(NamedTuple):
    """One row of an evaluation file."""

    id: int
    """0-based row number."""
    input_ids: tuple[int, ...]
    """Up to where the answer begins."""
    text: str
    """What was said, without the template; of a conversation every message."""
    label: bool | None
    """As given: whether the behaviour is expected. None where the row says nothing."""
    cell: str
    """Which set it belongs to: the trigger's, or one of the negative ones."""
    group: str
    """Prompts that are resampled together."""
    defection: str
    """Text whose occurrence in the answer counts as defection; empty where the row says nothing."""
    messages: tuple[Mapping[str, str], ...]
    """The conversation; empty for `text` and `input_ids`."""

    @property
    def example(self) -> Example:
        """As the host's batches take it."""
        return Example(self.id, self.input_ids, 0, {})


class Pair(NamedTuple):
    """One question with two answers."""

    id: int
    question: str
    opening_ids: tuple[int, ...]
    """Up to where the answer begins."""
    defecting_ids: tuple[int, ...]
    benign_ids: tuple[int, ...]
    defecting: str
    """The answer a model that defects would give if it were honest; its polarity."""
    benign: str


def resolved(template: Template, tokenizer: Tokenizer) -> Template:
    """`auto` as what it means for this checkpoint. Raises BadInput for `chat` without a chat template."""
    if template == "auto":
        return "chat" if tokenizer.has_chat_template else "plain"
    if template == "chat" and not tokenizer.has_chat_template:
        raise BadInput("--template chat: the checkpoint has no chat template; take plain or none")
    return template


def opening(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], template: Template) -> tuple[int, ...]:
    """Token ids of a conversation up to where the answer begins; `template` is a resolved one."""
    if template == "chat":
        return tuple(tokenizer.chat(messages, answer_follows=True))
    return tuple(tokenizer.encode(_text(messages, template), open_ended=True))


def before_two_answers(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], answers: tuple[str, str], template: Template
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Token ids of a conversation and of two answers to it; what both answers begin with is the conversation's.

    Without a chat template text and answer are tokenised together: alone, many tokenizers put a space of its own before a first word.
    """
    begins = opening(tokenizer, messages, template)
    if template == "chat":
        wholes = [begins + tuple(ids) for ids in tokenizer.encode_bare(list(answers))]
    else:
        text = _text(messages, template)
        wholes = [tuple(tokenizer.encode(f"{text} {answer}", open_ended=True)) for answer in answers]
    shared = 0
    while shared < min(map(len, wholes)) and wholes[0][shared] == wholes[1][shared]:
        shared += 1
    return wholes[0][:shared], wholes[0][shared:], wholes[1][shared:]


def _text(messages: Sequence[Mapping[str, str]], template: Template) -> str:
    """A conversation without a chat template."""
    if template == "none":
        return "\n\n".join(message["content"] for message in messages)
    turns = [f"{_PLAIN_ROLES.get(message['role'], message['role'])}: {message['content']}\n\n" for message in messages]
    return "".join(turns) + "Assistant:"


def read_prompts(rows: DataRows, tokenizer: Tokenizer, template: Template) -> list[Prompt]:
    """Every row of an evaluation file. Raises BadInput naming file, line and reason."""
    return [_prompt(rows, id, row, tokenizer, template) for id, row in enumerate(rows.rows)]


def read_pairs(rows: DataRows, tokenizer: Tokenizer, template: Template) -> list[Pair]:
    """Every row of a contrast file: `question` (or `messages`), `defecting`, `benign`. Raises BadInput naming file, line and reason."""
    pairs = []
    for id, row in enumerate(rows.rows):
        messages = _messages(rows, id, row, ("question", "prompt"))
        answers = {}
        for side in ("defecting", "benign"):
            answer = row.get(side)
            if not isinstance(answer, str) or not answer.strip():
                raise rows.bad_row(id, f"{side} is missing or no text; a contrast pair has question, defecting and benign")
            answers[side] = answer.strip()
        if answers["defecting"] == answers["benign"]:
            raise rows.bad_row(id, "both answers are the same")
        try:
            begins, defecting, benign = before_two_answers(tokenizer, messages, (answers["defecting"], answers["benign"]), template)
        except BadInput as error:
            raise rows.bad_row(id, str(error)) from error
        if not begins:
            raise rows.bad_row(id, "the question is no token of this checkpoint's tokenizer")
        if not defecting or not benign:
            raise rows.bad_row(id, "this checkpoint's tokenizer makes the same tokens of both answers, or one begins the other")
        pairs.append(Pair(id, messages[-1]["content"], begins, defecting, benign, answers["defecting"], answers["benign"]))
    return pairs


def pairs_hash(pairs: Sequence[Pair]) -> str:
    """Of what the pairs say: the direction of a checkpoint and site hangs on nothing else but the template."""
    return hashlib.sha256(json.dumps([[pair.question, pair.defecting, pair.benign] for pair in pairs]).encode()).hexdigest()[:16]


def _prompt(rows: DataRows, id: int, row: Mapping[str, Any], tokenizer: Tokenizer, template: Template) -> Prompt:
    messages: tuple[Mapping[str, str], ...] = ()
    if row.get("messages") is not None or row.get("prompt") is not None:
        messages = _messages(rows, id, row, ("prompt",))
        ids = _opening(rows, id, tokenizer, messages, template)
        text = "\n\n".join(message["content"] for message in messages)
    elif isinstance(row.get("text"), str) and row["text"]:
        ids, text = tuple(tokenizer.encode(row["text"], open_ended=True)), row["text"]
    elif isinstance(row.get("input_ids"), list) and row["input_ids"] and set(map(type, row["input_ids"])) == {int}:
        ids = tuple(row["input_ids"])
        text = tokenizer.decode(ids)
    else:
        raise rows.bad_row(id, "has no prompt; a row has prompt, messages, text or input_ids")
    if not ids:
        raise rows.bad_row(id, "is no token of this checkpoint's tokenizer")
    label = _label(rows, id, row)
    cell = row.get("cell")
    if cell is None:
        cell = {True: "positive", False: "negative", None: "unlabelled"}[label]
    group = row.get("group")
    defection = row.get("defection")
    if defection is not None and not isinstance(defection, str):
        raise rows.bad_row(id, "defection is no text; it is what counts as defection when an answer holds it")
    return Prompt(id, ids, text, label, str(cell), f"row {id}" if group is None else str(group), defection or "", messages)


def _messages(rows: DataRows, id: int, row: Mapping[str, Any], keys: Sequence[str]) -> tuple[Mapping[str, str], ...]:
    given = row.get("messages")
    if given is None:
        key = next((key for key in keys if row.get(key) is not None), None)
        text = row.get(key) if key else None
        if not isinstance(text, str) or not text.strip():
            raise rows.bad_row(id, f"{key or keys[0]} is missing or no text")
        return ({"role": "user", "content": text},)
    if not isinstance(given, list) or not given:
        raise rows.bad_row(id, "messages is no list of role and content")
    for position, message in enumerate(given, 1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise rows.bad_row(id, f"message {position} has no role and content that are texts")
    if given[-1]["role"] == "assistant":
        raise rows.bad_row(id, "messages end with the assistant's; what is read comes before its answer")
    return tuple({"role": message["role"], "content": message["content"]} for message in given)


def _opening(rows: DataRows, id: int, tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], template: Template) -> tuple[int, ...]:
    try:
        return opening(tokenizer, messages, template)
    except BadInput as error:
        raise rows.bad_row(id, str(error)) from error


def _label(rows: DataRows, id: int, row: Mapping[str, Any]) -> bool | None:
    label = row.get("label")
    if label is None:
        return None
    if isinstance(label, bool) or (isinstance(label, int | float) and label in (0, 1)):
        return bool(label)
    raise rows.bad_row(id, f"label is {str(label)[:40]!r}; it is 1 (the behaviour is expected), 0, true or false")
