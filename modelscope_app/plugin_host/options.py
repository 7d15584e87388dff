"""The params of an analysis as seen from outside: one declaration for the command line, forms, params files and docs.

    class Params(BaseModel):
        top_k: int = Field(16, ge=1, le=1024, description="how many to keep")

is the option `--top-k`, which takes an integer from 1 to 1024 (default 16).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, RootModel
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic.fields import FieldInfo

from modelscope_app.api import Meaning
from modelscope_app.plugin_host.option_types import OptionType, option_type

DEPENDENT_DEFAULT = "from other options"
"""Text of a default that is computed from other params."""


@dataclass(frozen=True, slots=True)
class ParamField:
    """One param, as every front end needs to know it."""

    name: str
    """The attribute of the params model."""
    option: str
    """As on the command line: `--top-k`."""
    type: OptionType
    """What its values may be."""
    default: Any
    """The value it has when it is not given; None also for a required one."""
    default_text: str
    """The default as it would be written, `empty` for no text or no elements, `required` where there is none."""
    required: bool
    help: str
    """What its author says about it."""

    @property
    def takes(self) -> str:
        """What it takes, in words: `an integer from 1 to 1024`."""
        return self.type.takes

    @property
    def choices(self) -> tuple[str, ...]:
        """All the values there are, as they are written; empty where they cannot be listed."""
        return () if self.type.scalars else tuple(str(choice) for choice in self.type.choices)

    @property
    def is_flag(self) -> bool:
        """Whether `--name` and `--no-name` are its two values."""
        return self.type.scalars == {bool} and not self.type.is_list and not self.type.is_optional

    @property
    def is_list(self) -> bool:
        """Whether it takes several values, separated by commas."""
        return self.type.is_list

    @property
    def meaning(self) -> Meaning | None:
        """What its text (or each text of its list) stands for."""
        return self.type.meaning

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "name": self.name,
            "option": self.option,
            "takes": self.takes,
            "default": json_value(self.default),
            "required": self.required,
            "help": self.help,
            "choices": list(self.choices),
            "flag": self.is_flag,
            "list": self.is_list,
            "meaning": self.meaning.kind if self.meaning else None,
            "selections": list(self.meaning.selections) if self.meaning else [],
        }


class ParamRow(NamedTuple):
    """One line of a table of options."""

    option: str
    takes: str
    default: str
    help: str


@lru_cache(maxsize=256)
def param_fields(model: type[BaseModel]) -> tuple[ParamField, ...]:
    """The params of a model in the order they are declared.

    Raises TypeError with a sentence for a declaration that not every front end can offer: a type that cannot be written on
    a command line, an alias, a name hidden behind another's `--no-` form.
    """
    if issubclass(model, RootModel):
        raise TypeError(f"{model.__name__}: params must have named fields, which a RootModel has not")
    if not model.__pydantic_complete__:
        try:
            model.model_rebuild()
        except (PydanticUndefinedAnnotation, NameError) as error:
            raise TypeError(f"{model.__name__}: a type is not importable where the params are declared ({error})") from None
    fields = tuple(_param_field(name, info) for name, info in model.model_fields.items())
    for field in fields:
        if field.is_flag and f"no_{field.name}" in model.model_fields:
            raise TypeError(f"param {field.name}: {field.option} has the form --no-{field.option[2:]}, which is another param; rename one")
    return fields


def params_table(model: type[BaseModel]) -> tuple[ParamRow, ...]:
    """The options of a model as rows of text for tables in docs and terminals."""
    return tuple(ParamRow(field.option, field.takes, field.default_text, field.help) for field in param_fields(model))


def params_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a model's params. A default that is not finite is text, since JSON has no such number."""
    schema: dict[str, Any] = json_value(model.model_json_schema())
    return schema


def params_json(params: BaseModel) -> dict[str, Any]:
    """Params as job.json keeps them: every field, JSON-ready, and paths made absolute.

    Absolute become a checkpoint (but not `hf:org/name`), a data file, a file, and a run where it is a path rather than an id.
    `parse_params` reads it back into an equal value, as long as the paths already were absolute.
    """
    return {field.name: _stored(getattr(params, field.name), field.meaning) for field in param_fields(type(params))}


def json_value(value: Any) -> Any:
    """A param's value as JSON keeps it: fractions and what is not finite as text, choices as they are written."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    return value


def written(value: Any) -> str:
    """A param's value as it would be written on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(written(item) for item in value)
    return str(json_value(value))


def _param_field(name: str, info: FieldInfo) -> ParamField:
    if info.alias or info.validation_alias:
        raise TypeError(f"param {name}: an alias would give it two names; name the field itself {info.alias or info.validation_alias}")
    try:
        type_ = option_type(info.annotation, info.metadata)
    except TypeError as error:
        raise TypeError(f"param {name}: {error}") from None
    required = info.is_required()
    if required:
        default, default_text = None, "required"
    elif info.default_factory is not None and info.default_factory_takes_validated_data:
        default, default_text = None, DEPENDENT_DEFAULT
    else:
        default = info.get_default(call_default_factory=True)
        default_text = written(default) or "empty"
    return ParamField(
        name=name,
        option="--" + name.replace("_", "-"),
        type=type_,
        default=default,
        default_text=default_text,
        required=required,
        help=" ".join((info.description or "").split()),
    )


def _stored(value: Any, meaning: Meaning | None) -> Any:
    if isinstance(value, list | tuple):
        return [_stored(item, meaning) for item in value]
    if isinstance(value, str) and not isinstance(value, enum.Enum) and meaning is not None and _is_path(value, meaning.kind):
        return str(Path(value).expanduser().absolute())
    return json_value(value)


def _is_path(value: str, kind: Literal["checkpoint", "run", "data-file", "file", "site", "selection"]) -> bool:
    if kind == "run":
        return bool(value) and ("/" in value or "\\" in value or Path(value).exists())
    if kind == "checkpoint":
        return bool(value) and not value.startswith("hf:")
    return kind in ("data-file", "file") and bool(value)
