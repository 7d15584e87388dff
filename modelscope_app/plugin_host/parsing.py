"""From what a person wrote to the params of an analysis, with every mistake said in the words of the option.

Values are text from a command line, where a list is separated by commas, or already typed values from a TOML or JSON file,
where a list is a list. pydantic checks them; what it would let pass and a person would not mean (true for the number 1,
not-a-number, a misspelt name) is refused here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from modelscope_app.api import JobFailed, MscopeError, UsageError, neutralised
from modelscope_app.plugin_host.option_types import OptionType
from modelscope_app.plugin_host.options import DEPENDENT_DEFAULT, ParamField, param_fields, written

Params = TypeVar("Params", bound=BaseModel)

_LONGEST_FRACTION = 100
_LARGEST_EXPONENT = 1000


def parse_params(model: type[Params], raw: Mapping[str, object]) -> Params:
    """The params in `raw`, by name (`top_k` or `top-k`).

    Raises UsageError such as `--bins 0: takes an integer from 1 to 512 (default 64)`, one sentence for each wrong value; for
    an unknown name with the nearest known one. Raises JobFailed where the plugin's own check of its params breaks.
    """
    fields = {field.name: field for field in param_fields(model)}
    given = _by_name(fields, raw)
    problems: dict[str, str] = {}
    values: dict[str, object] = {}
    for name, value in given.items():
        try:
            values[name] = _typed(value, fields[name].type)
        except ValueError as error:
            problems[name] = _wrong(fields[name], value, str(error))
    params = None
    try:
        params = model.model_validate({**values, **{name: given[name] for name in problems}}, strict=False)
    except ValidationError as error:
        problems = _problems(error, fields, given) | problems
    except MscopeError:
        raise
    except Exception as error:
        raise JobFailed(f"the plugin's own check of its params broke ({type(error).__name__}: {error}); report it to its author") from error
    if params is not None:
        for name in given:
            if not fields[name].type.allows_non_finite and _has_non_finite(getattr(params, name)):
                problems.setdefault(name, _wrong(fields[name], given[name], ""))
    if problems or params is None:
        raise UsageError("; ".join(problems.values()))
    return params


def wrong_default(model: type[BaseModel]) -> str | None:
    """A sentence about the first default its own field would refuse; None where all are fine.

    pydantic does not look at defaults, but a run that is resumed reads them back from job.json and would fail there.
    """
    fields = {field.name: field for field in param_fields(model)}
    defaults = {name: field.default for name, field in fields.items() if not field.required and field.default_text != DEPENDENT_DEFAULT}
    try:
        model.model_validate(defaults, strict=False)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            if item["loc"] and item["loc"][0] in defaults:
                field = fields[str(item["loc"][0])]
                return f"param {field.name}: its default {field.default_text} is refused; it takes {field.takes}"
    return None


def _by_name(fields: Mapping[str, ParamField], raw: Mapping[str, object]) -> dict[str, object]:
    given: dict[str, object] = {}
    for key, value in raw.items():
        name = key.removeprefix("--").replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            known = ", ".join(field.option for field in fields.values())
            advice = f"; did you mean {fields[near[0]].option}?" if near else f"; there are {known}" if known else "; it takes none"
            raise UsageError(f"no option {key!r}{advice}")
        if name in given:
            raise UsageError(f"{fields[name].option} is given twice")
        given[name] = value
    return given


def _typed(value: object, type_: OptionType) -> object:
    """`value` with text split and choices, fractions and `none` recognised; the rest is pydantic's. Raises ValueError."""
    if isinstance(value, str) and type_.is_optional and not type_.is_text and value.strip().lower() == "none":
        return None
    if not type_.is_list:
        return _element(value, type_)
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
        if "" in value:
            raise ValueError("there is nothing between two commas")
    if not isinstance(value, list | tuple):
        return value
    elements = []
    for position, item in enumerate(value, start=1):
        try:
            elements.append(_element(item, type_))
        except ValueError as error:
            raise ValueError(str(error) or f"element {position} is wrong") from None
    return elements


def _element(value: object, type_: OptionType) -> object:
    for choice in type_.choices:
        if isinstance(value, str) and value.strip() == str(choice):
            return choice
    if isinstance(value, bool) and bool not in type_.scalars and value not in [c for c in type_.choices if isinstance(c, bool)]:
        raise ValueError("")
    if Fraction in type_.scalars:
        return _fraction(value)
    return value


def _fraction(value: object) -> object:
    """An exact number. A float from a file means the decimal it was written as: 0.1 is 1/10."""
    if isinstance(value, float) and math.isfinite(value):
        value = repr(value)
    if not isinstance(value, str):
        return value
    exponent = value.lower().partition("e")[2].strip().lstrip("+-")
    if len(value) > _LONGEST_FRACTION or (exponent.isdecimal() and int(exponent) > _LARGEST_EXPONENT):
        raise ValueError("more digits than anybody needs")
    try:
        return Fraction(value)
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except ValueError:
        return value


def _problems(error: ValidationError, fields: Mapping[str, ParamField], given: Mapping[str, object]) -> dict[str, str]:
    """One sentence for each field pydantic refuses, by name; for the whole under an empty name."""
    problems: dict[str, str] = {}
    for item in error.errors(include_url=False):
        location = item["loc"]
        reason = _reason(item)
        name = str(location[0]) if location else ""
        field = fields.get(name)
        if field is None:
            problems[name] = reason or item["msg"]
        elif item["type"] == "missing" and len(location) == 1:
            problems[name] = f"{field.option} is required: it takes {field.takes}"
        else:
            if not reason and field.is_list and len(location) > 1 and isinstance(location[1], int) and item["type"] != "missing":
                reason = f"element {location[1] + 1} is wrong"
            problems.setdefault(name, _wrong(field, given.get(name, field.default), reason))
    return problems


def _reason(item: Mapping[str, Any]) -> str:
    """What a validator of the plugin said; empty for pydantic's own checks, whose words the option's replace."""
    if item["type"] in ("value_error", "assertion_error"):
        said = str(item.get("ctx", {}).get("error", "")) or str(item["msg"])
        return said.strip()
    return ""


def _wrong(field: ParamField, value: object, reason: str) -> str:
    shown = neutralised(written(value), longest=80) or "''"
    default = "" if field.required else f" (default {field.default_text})"
    return f"{field.option} {shown}: {reason + '; ' if reason else ''}takes {field.takes}{default}"


def _has_non_finite(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_non_finite(item) for item in value)
    return isinstance(value, float) and not math.isfinite(value)
