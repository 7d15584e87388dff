"""Reading what lies in a run folder: anybody may have written there, so shapes are checked once, here.

Whatever is not as it should be is a BadInput that names the file. Non-finite numbers are read as null, which is how they are
written. A pipe or a device standing where a file should be is refused, not waited for.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from modelscope_app.api import BadInput
from modelscope_app.runs.atomic import finite

Value = TypeVar("Value")

_WORDS: Mapping[Any, str] = {str: "text", int: "an integer", float: "a number", bool: "true or false", NoneType: "null"}


def file_bytes(path: Path, start: int = 0) -> bytes:
    """The content of a regular file from byte `start` on. Raises FileNotFoundError where there is none, BadInput where it
    cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadInput(f"{path}: not readable (it is no regular file)")
            stream.seek(start)
            return stream.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadInput(f"{path}: not readable ({error.strerror})") from None


def json_value(path: Path) -> Any:
    """What a JSON file holds. Raises FileNotFoundError, BadInput."""
    try:
        return finite(json.loads(file_bytes(path)))
    except RecursionError:
        raise BadInput(f"{path}: not readable (it is nested too deeply)") from None
    except ValueError as error:
        raise BadInput(f"{path}: not readable as JSON ({error})") from None


def shaped(kind: type[Value], value: Any) -> Value:
    """The dataclass `kind` from the object JSON holds for it. Raises ValueError with the field that is missing, unknown or wrong."""
    if not isinstance(value, Mapping):
        raise ValueError("it is no JSON object")
    described: Any = kind
    hints = _hints(described)
    if unknown := [name for name in value if name not in hints]:
        raise ValueError(f"it has {unknown[0]!r}, which means nothing here")
    if missing := [name for name in _required(described) if name not in value]:
        raise ValueError(f"it has no {missing[0]!r}")
    for name, item in value.items():
        if not fits(item, hints[name]):
            raise ValueError(f"{name!r} is {_said(item)} and should be {_wanted(hints[name])}")
    return kind(**value)


def check_fields(value: Any) -> None:
    """Raise ValueError where a field of a dataclass holds what its annotation does not allow."""
    described: Any = type(value)
    for name, hint in _hints(described).items():
        if not fits(getattr(value, name), hint):
            raise ValueError(f"{name!r} is {_said(getattr(value, name))} and should be {_wanted(hint)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; an integer is a number too, and true is neither.

    >>> fits({"bins": 5}, Mapping[str, int]), fits({"bins": True}, Mapping[str, int]), fits(5, float | None)
    (True, False, True)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is Mapping:
        return isinstance(value, Mapping) and all(fits(key, inner[0]) and fits(item, inner[1]) for key, item in value.items())
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(item, inner[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


@cache
def _required(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING)


def _wanted(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_wanted(one) for one in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is Mapping:
        return "an object"
    if origin is tuple:
        return "a list"
    return _WORDS.get(hint, "an object")


def _said(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else f"{text[:39]}…"
