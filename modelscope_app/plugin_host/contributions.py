"""What one plugin returns from one hook, called alone and checked value by value.

A hook may be a generator, which raises only when it is consumed; so it is consumed here, inside the isolation. A hook that
fails contributes nothing. A value that is wrong is left out with a sentence, and the others stay.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from modelscope_app.api import Analysis, Architecture, Checkpoints, Panel, Reader
from modelscope_app.plugin_host.isolation import attempt
from modelscope_app.plugin_host.loading import Loaded
from modelscope_app.plugin_host.options import param_fields
from modelscope_app.plugin_host.parsing import wrong_default

Value = TypeVar("Value", Analysis, Architecture, Panel, Reader)

MOST_VALUES = 1000
"""More than this from one hook is an endless generator."""

OWN_MODEL_TYPES = frozenset({"mlp"})
"""Model types the host builds itself."""
OWN_SUFFIXES = frozenset({".jsonl", ".ndjson", ".parquet", ".csv", ".txt"})
"""Data files the host reads itself."""

_KEYS: Mapping[type, str] = {Analysis: "name", Architecture: "model_type", Panel: "name", Reader: "suffix"}
"""The attribute that tells values of a kind apart."""

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Contributions(Generic[Value]):
    """The good values of one hook of one plugin, and what was wrong with the rest."""

    values: tuple[Value, ...] = ()
    problems: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    """Why a value was left out, by its key: an analysis' name, a model type, a suffix, a panel's name."""


def key_of(value: Analysis | Architecture | Panel | Reader) -> str:
    """What makes a value unique: a name, a model type, a suffix in lower case."""
    key: str = getattr(value, _KEYS[type(value)])
    return key.lower() if isinstance(value, Reader) else key


def contributions(plugin: Loaded, hook: str, kind: type[Value]) -> Contributions[Value]:
    """Call `hook` of one plugin. Raises nothing: what goes wrong is in `problems`."""
    if plugin.manager is None or hook not in plugin.hooks:
        return Contributions()
    caller = getattr(plugin.manager.hook, hook)
    called = attempt(lambda: _consumed(caller(), kind))
    if called.value is None:
        return Contributions(problems=(f"{hook} fails: {called.error}",))
    values, problem = called.value
    if problem is not None:
        return Contributions(problems=(f"{hook} {problem}",))
    counts = Counter(key_of(value) for value in values)
    refused = {key: f"{hook} returns {count} values called {key!r}; none of them counts" for key, count in counts.items() if count > 1}
    good: list[Value] = []
    for value in values:
        key = key_of(value)
        if key in refused:
            continue
        reason = _refusal(value)
        if reason is None:
            good.append(value)
        else:
            refused[key] = f"{kind.__name__.lower()} {key!r}: {reason}"
    return Contributions(tuple(good), tuple(refused.values()), refused)


def _consumed(results: list[Any], kind: type[Value]) -> tuple[list[Value], str | None]:
    """The values a hook returned, or what is wrong with what it returned."""
    if not results:  # pluggy drops a None
        return [], f"returns None; return a list of {kind.__name__}"
    result = results[0]
    if isinstance(result, str | bytes | type) or not isinstance(result, Iterable):
        close = getattr(result, "close", None)
        if callable(close):
            close()  # an async hook gives a coroutine, which would complain when it is dropped
        return [], f"returns a value of type {type(result).__name__}; return a list of {kind.__name__}"
    values: list[Value] = []
    for value in result:
        if not isinstance(value, kind):
            return [], f"returns a list with a value of type {type(value).__name__} in it; each must be of type {kind.__name__}"
        if not isinstance(getattr(value, _KEYS[kind]), str):
            return [], f"returns a value whose {_KEYS[kind]} is no text"
        values.append(value)
        if len(values) > MOST_VALUES:
            return [], f"returns more than {MOST_VALUES} values; is it an endless generator?"
    return values, None


def _refusal(value: Analysis | Architecture | Panel | Reader) -> str | None:
    """Why a value cannot be used; None where it can."""
    if isinstance(value, Analysis):
        checked = attempt(lambda: _analysis_refusal(value))
        return checked.error or checked.value
    if isinstance(value, Architecture):
        if value.model_type in OWN_MODEL_TYPES:
            return "the host builds this model type itself"
        return _wrong_references(value, required=("build",), optional=("adapter",))
    if isinstance(value, Reader):
        if not re.fullmatch(r"\.\S+", value.suffix):
            return "a suffix begins with a dot, as .arrow"
        if value.suffix.lower() in OWN_SUFFIXES:
            return "the host reads this format itself"
        return _wrong_references(value, required=("read",))
    return _wrong_references(value, required=("widget",))


def _analysis_refusal(analysis: Analysis) -> str | None:
    if not (isinstance(analysis.params, type) and issubclass(analysis.params, BaseModel)):
        return "its params must be a pydantic model class"
    for attribute, kind in (("title", str), ("summary", str), ("checkpoints", Checkpoints), ("version", int)):
        if not isinstance(getattr(analysis, attribute), kind):
            return f"its {attribute} must be of type {kind.__name__}"
    try:
        param_fields(analysis.params)
    except TypeError as error:
        return str(error)
    return wrong_default(analysis.params)


def _wrong_references(value: object, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> str | None:
    for attribute in required + optional:
        reference = getattr(value, attribute)
        if reference is None and attribute in optional:
            continue
        if not isinstance(reference, str) or not _FUNCTION.fullmatch(reference):
            return f"{attribute}={reference!r} is not 'package.module:name'"
    return None
