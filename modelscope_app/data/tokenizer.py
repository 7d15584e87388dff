"""A checkpoint's tokenizer: text and conversations to token ids, with each special token there once.

Special tokens around a text are those the tokenizer adds itself (a BOS, say, or BERT's [CLS] and [SEP]). A text that already
begins with them, because someone rendered a chat template into a data file, does not get them again. A chat template writes
its special tokens itself, so what it renders is tokenised without adding any.

A checkpoint without a chat template still takes conversations, with a warning: each message becomes the line `role: content`,
and the whole is tokenised as a text.

Nothing of the checkpoint is executed: tokenizer code it brings is refused, and templates run in transformers' sandbox. A
template that writes today's date is told 26 July 2024, or a run could not be repeated tomorrow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_app.api import BadInput, Checkpoint
from modelscope_app.checkpoints.tokenizer_files import has_tokenizer
from modelscope_app.data.limits import TokenLimits, token_limits
from modelscope_app.data.quoting import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS_PER_CALL = 1000
_DIRECTIVES = (
    {"%-d": "26", "%d": "26", "%-m": "7", "%m": "07", "%B": "July", "%b": "Jul", "%Y": "2024", "%y": "24"}
    | {"%A": "Friday", "%a": "Fri"}
    | {"%H": "00", "%M": "00", "%S": "00"}
)
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{directive}', '{value}')" for directive, value in _DIRECTIVES.items())
    + " }}{% endmacro %}\n"
)
"""Jinja that hides the sandbox's clock. The line break at its end is eaten (`trim_blocks`), so nothing else of a template changes."""


class MissingTokenizer(BadInput):
    """The checkpoint has no tokenizer files at all; rows of token ids can still be read."""


def load_tokenizer(checkpoint: Checkpoint, warn: Callable[[str], None] = warnings.warn) -> CheckpointTokenizer:
    """The tokenizer beside a checkpoint's weights. `warn` takes each of its warnings, once.

    Raises MissingTokenizer where there are no tokenizer files, and BadInput where they cannot be used.
    """
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if not has_tokenizer(folder):
        raise MissingTokenizer(
            f"{folder}: has no tokenizer; put its tokenizer.json and tokenizer_config.json there, or use rows of input_ids"
        )
    return CheckpointTokenizer(_hugging_face_tokenizer(folder), folder, token_limits(checkpoint), warn)


def _hugging_face_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        with _quiet_transformers():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if "trust_remote_code" in str(error):
            reason = "it needs Python code from the checkpoint, which is never run"
        else:
            reason = f"{type(error).__name__}: {_first_line(error)}"
        raise BadInput(f"{folder}: its tokenizer cannot be loaded ({reason}); it is best saved as tokenizer.json") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


class CheckpointTokenizer:
    """The `Tokenizer` of `modelscope_app.api`, over one of transformers'."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: Path, limits: TokenLimits, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self.limits = limits
        """What ids and lengths the model takes, as far as its config says."""
        self._tokenizer = tokenizer
        self._warn = warn
        self._warned: set[str] = set()
        self._token_texts: dict[int, str] = {}
        vocabulary = tokenizer.get_vocab()
        self._size = max(vocabulary.values(), default=-1) + 1
        self._before, self._after = self._added_tokens(vocabulary)

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id it makes, added tokens included. A model's embedding may have more rows."""
        return self._size

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, where there is one."""
        return None if self._tokenizer.bos_token_id is None else int(self._tokenizer.bos_token_id)

    @property
    def adds_bos(self) -> bool:
        """Whether `encode` begins a text with it."""
        return self.bos_id is not None and self._before[:1] == [self.bos_id]

    @property
    def pad_id(self) -> int:
        """The id put on padding: the padding token, else EOS, else BOS, else 0; never one the model has no embedding for.

        Padding is masked everywhere, so the choice changes no result.
        """
        tokenizer = self._tokenizer
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
        vocabulary = self.limits.vocabulary or self._size
        return next((id for id in candidates if id is not None and 0 <= id < vocabulary), 0)

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint brings a chat template."""
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str, open_ended: bool = False) -> list[int]:
        """Token ids with the special tokens the tokenizer adds itself; `open_ended` leaves out those at the end."""
        return self.with_added_tokens(self.encode_bare([text])[0], open_ended)

    def encode_bare(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with no special token that is not written in it. Raises BadInput for a broken string."""
        ids: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            chunk = list(texts[start : start + _TEXTS_PER_CALL])
            try:
                encoded = self._tokenizer(
                    chunk, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
                )
            except (TypeError, UnicodeEncodeError):
                raise BadInput("a text holds half a surrogate pair, which is no character") from None
            ids.extend(encoded["input_ids"])
        return ids

    def with_added_tokens(self, ids: Sequence[int], open_ended: bool = False) -> list[int]:
        """Bare ids between the special tokens the tokenizer adds, unless these are there already.

        `open_ended` leaves out those at the end, for a text that something follows.
        """
        whole = list(ids)
        if self._before and whole[: len(self._before)] != self._before:
            whole = self._before + whole
        if self._after and not open_ended and whole[-len(self._after) :] != self._after:
            whole = whole + self._after
        return whole

    def decode(self, ids: Sequence[int]) -> str:
        """Text of these ids, special tokens included. Ids the tokenizer does not know are left out."""
        known = [int(id) for id in ids if 0 <= id < self._size]
        return str(self._tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def token(self, id: int) -> str:
        """Text of one token as it stands in running text; untrusted.

        A token that is no whole character by itself comes back as its vocabulary entry, an unknown id as `<id 50300>`.
        """
        if id not in self._token_texts:
            self._token_texts[id] = self._token_text(id)
        return self._token_texts[id]

    def _token_text(self, id: int) -> str:
        entry = self._tokenizer.convert_ids_to_tokens(id) if 0 <= id < self._size else None
        if entry is None:
            return f"<id {id}>"
        # Many decoders drop the space before the first token of a text, so the token is read in second place.
        alone, doubled = self.decode([id]), self.decode([id, id])
        text = doubled[len(alone) :] if doubled.startswith(alone) else alone
        return entry if not text or "\ufffd" in text else text

    def chat(self, messages: Sequence[Mapping[str, str]], answer_follows: bool = False) -> list[int]:
        """Token ids of a conversation, ending where the assistant's answer begins if `answer_follows`. No second BOS.

        Raises BadInput for messages that are no conversation, or that the template refuses.
        """
        return self.chat_ids(self.chat_text(messages, answer_follows), answer_follows)

    def chat_text(self, messages: object, answer_follows: bool = False) -> str:
        """A conversation rendered through the chat template, or as `role: content` lines where there is none."""
        checked = _checked_messages(messages)
        if not self.has_chat_template:
            self._warn_once(f"{self.folder}: has no chat template; messages are read as plain lines of `role: content`")
            lines = "".join(f"{message['role']}: {message['content']}\n" for message in checked)
            return lines + "assistant:" if answer_follows else lines
        try:
            template = self._tokenizer.get_chat_template()
            if "strftime_now" in template:
                self._warn_once(f"{self.folder}: its chat template writes today's date; 26 July 2024 is written every day")
                template = _FIXED_DATE + template
            rendered = self._tokenizer.apply_chat_template(
                checked, chat_template=template, tokenize=False, add_generation_prompt=answer_follows
            )
        except Exception as error:  # a template is a program of the checkpoint's author and may raise anything
            raise BadInput(f"the chat template refuses these messages ({_first_line(error)})") from error
        return str(rendered)

    def chat_ids(self, text: str, answer_follows: bool = False) -> list[int]:
        """Token ids of what `chat_text` returned."""
        return self.all_chat_ids([text], answer_follows)[0]

    def all_chat_ids(self, texts: Sequence[str], answer_follows: bool = False) -> list[list[int]]:
        """Token ids of many such texts."""
        bare = self.encode_bare(texts)
        return bare if self.has_chat_template else [self.with_added_tokens(ids, open_ended=answer_follows) for ids in bare]

    def _added_tokens(self, vocabulary: Mapping[str, int]) -> tuple[list[int], list[int]]:
        """The special tokens put before and after a text, seen on the first text that has tokens of its own."""
        for probe in chain(("a",), vocabulary):
            bare = self._tokenizer.encode(probe, add_special_tokens=False)
            whole = self._tokenizer.encode(probe, add_special_tokens=True)
            for start in range(len(whole) - len(bare) + 1):
                if bare and whole[start : start + len(bare)] == bare:
                    return whole[:start], whole[start + len(bare) :]
        return [], []

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self._warn(message)


def _checked_messages(messages: object) -> list[dict[str, Any]]:
    """`messages` as a list of dicts with string `role` and `content`; further keys are kept, keys without a value are not."""
    if not isinstance(messages, list | tuple):
        raise BadInput("messages is not a list of {role, content}")
    if not messages:
        raise BadInput("messages is empty")
    checked = []
    for position, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise BadInput(f"message {position} is not an object with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                found = "missing" if message.get(key) is None else f"{shown(message[key])}, not a string"
                raise BadInput(f"{key} of message {position} is {found}")
        checked.append({key: value for key, value in message.items() if value is not None})
    return checked
