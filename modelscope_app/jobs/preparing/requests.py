"""What a preparer is asked, checked: whoever can open the service's socket can write anything there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_app.api import UsageError, neutralised

_LARGEST_SEED = 2**63 - 1
_LONGEST_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Prepare:
    """Check it all, and make a queued run of it."""

    analysis: str
    checkpoints: tuple[str, ...]
    params: Mapping[str, Any]
    device: str
    dtype: str
    seed: int
    out: str | None
    cwd: str | None

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Prepare:
        """From a message. Raises UsageError naming the key that is missing or wrong."""
        cwd = _value(message, "cwd", _is_text_or_null, "text or null")
        if cwd is not None and not Path(cwd).is_absolute():
            raise UsageError(f"cwd {_shown(cwd)}: takes the absolute path of a folder")
        return cls(
            analysis=_value(message, "analysis", _is_text, "text"),
            checkpoints=tuple(_value(message, "checkpoints", _are_texts, "a list of text")),
            params=_value(message, "params", lambda value: isinstance(value, dict), "an object"),
            device=_value(message, "device", _is_text, "text"),
            dtype=_value(message, "dtype", _is_text, "text"),
            seed=_value(message, "seed", _is_seed, "an integer from 0 to 2^63 - 1"),
            out=_value(message, "out", _is_text_or_null, "text or null"),
            cwd=cwd,
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """Check it all, and say what it would need; nothing is made of it."""

    analysis: str
    checkpoints: tuple[str, ...]
    params: Mapping[str, Any]
    device: str
    dtype: str
    cwd: str | None

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Estimate:
        """From a message with all that a submission has. Raises UsageError naming the key that is missing or wrong."""
        asked = Prepare.read(message)
        return cls(asked.analysis, asked.checkpoints, asked.params, asked.device, asked.dtype, asked.cwd)


@dataclass(frozen=True, slots=True)
class Readmit:
    """Make a run that was lost, cancelled or failed, or never began, a queued one."""

    folder: str

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Readmit:
        """From a message. Raises UsageError naming the key that is missing or wrong."""
        folder = _value(message, "folder", _is_text, "text")
        if not Path(folder).is_absolute():
            raise UsageError(f"folder {_shown(folder)}: takes the absolute path of a run folder")
        return cls(folder)


def read_message(line: bytes) -> dict[str, Any]:
    """The object in a line. Raises UsageError where there is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON ({error})") from None
    if not isinstance(message, dict):
        raise UsageError("the request is no JSON object")
    return message


def read_request(message: Mapping[str, Any]) -> Prepare | Readmit | Estimate:
    """What is asked. Raises UsageError naming the key that is missing or wrong."""
    kinds: Mapping[str, type[Prepare] | type[Readmit] | type[Estimate]] = {"prepare": Prepare, "readmit": Readmit, "estimate": Estimate}
    _value(message, "id", lambda value: isinstance(value, str | int) and not isinstance(value, bool), "text or an integer")
    wanted = _value(message, "do", _is_text, "text")
    if wanted not in kinds:
        raise UsageError(f"do {_shown(wanted)}: takes {' or '.join(kinds)}")
    return kinds[wanted].read(message)


def _value(message: Mapping[str, Any], key: str, is_right: Callable[[Any], bool], wanted: str) -> Any:
    if key not in message:
        raise UsageError(f"the request has no {key!r}")
    value = message[key]
    if not is_right(value):
        raise UsageError(f"{key!r} in the request is {_shown(value)} and should be {wanted}")
    return value


def _is_text(value: Any) -> bool:
    """Text that a command line could hold."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _is_text_or_null(value: Any) -> bool:
    return value is None or _is_text(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_SEED


def _shown(value: Any) -> str:
    return neutralised(json.dumps(value), longest=_LONGEST_SHOWN)
