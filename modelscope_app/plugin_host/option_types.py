"""What the type of a param takes, read once from its annotation and constraints.

A param is something a person can write on a command line: text, a number, an exact fraction, true or false, a choice,
a union of these, or a comma-separated list of them. Anything else is refused where it is declared, so that no front end
has to draw it.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from modelscope_app.api import Meaning

_MEANING_WORDS: Mapping[str, str] = {
    "checkpoint": "a checkpoint (a folder, a file or hf:org/name)",
    "run": "a run id or run folder",
    "data-file": "a data file (jsonl, parquet, csv or txt)",
    "file": "a file",
    "site": "a site such as resid_post.5",
}


@dataclass(frozen=True, slots=True)
class OptionType:
    """What one param takes."""

    takes: str
    """In words, as in `takes an integer from 1 to 512`."""
    scalars: frozenset[type]
    """The Python types a value (or an element of a list) may have."""
    choices: tuple[Any, ...] = ()
    """Allowed values of a Literal or Enum, as they are written in a file."""
    is_list: bool = False
    is_optional: bool = False
    """Whether None is allowed."""
    allows_non_finite: bool = False
    meaning: Meaning | None = None

    @property
    def is_text(self) -> bool:
        """Whether any text is a value, so that no word can be kept for something else."""
        return str in self.scalars


def option_type(annotation: Any, metadata: Iterable[Any] = ()) -> OptionType:
    """What a param of this annotation and these constraints takes. Raises TypeError for a type no front end can draw."""
    constraints = _constraints(metadata)
    origin = get_origin(annotation)
    if type(annotation).__name__ == "TypeAliasType":  # `type Alias = ...` of Python 3.12
        return option_type(annotation.__value__, metadata)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return option_type(inner, [*more, *metadata])
    if origin in (Union, types.UnionType):
        return _union(get_args(annotation), metadata)
    if origin is list or annotation is list:
        return _list(get_args(annotation), constraints, exactly=None)
    if origin is tuple or annotation is tuple:
        elements = get_args(annotation)
        repeated = len(elements) == 2 and elements[1] is Ellipsis
        if not repeated and len(set(elements)) > 1:
            raise TypeError(f"{_named(annotation)} mixes types; give each value a param of its own")
        return _list(elements[:1], constraints, exactly=None if repeated else len(elements))
    if origin is Literal:
        return _choice(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _choice([member.value for member in annotation])
    return _scalar(annotation, constraints)


def _union(members: Sequence[Any], metadata: Iterable[Any]) -> OptionType:
    present = [member for member in members if member is not type(None)]
    parts = [option_type(member, metadata if get_origin(member) is not Literal else ()) for member in present]
    is_optional = len(present) < len(members)
    if len(parts) == 1:
        only = parts[0]
        takes = f"{only.takes}, or none" if is_optional and not only.is_text else only.takes
        return replace(only, is_optional=is_optional, takes=takes)
    if any(part.is_list for part in parts):
        raise TypeError("a union of a list and something else; take a list alone")
    words = [part.takes.removeprefix("one of ") for part in parts]
    if is_optional and str not in frozenset().union(*(part.scalars for part in parts)):
        words.append("none")
    return OptionType(
        takes=" or ".join(words),
        scalars=frozenset().union(*(part.scalars for part in parts)),
        choices=tuple(choice for part in parts for choice in part.choices),
        is_optional=is_optional,
        allows_non_finite=any(part.allows_non_finite for part in parts),
        meaning=next((part.meaning for part in parts if part.meaning), None),
    )


def _list(elements: Sequence[Any], constraints: Mapping[str, Any], exactly: int | None) -> OptionType:
    if not elements:
        raise TypeError("a list must say of what, as in list[int]")
    element = option_type(elements[0])
    if element.is_list or element.is_optional:
        raise TypeError("a list of lists or of optional values cannot be written separated by commas")
    if exactly is not None:
        count = f"exactly {exactly}"
    else:
        count = _between(constraints.get("min_length"), constraints.get("max_length"))
    takes = f"a comma-separated list{' of ' + count if count else ''}, each {element.takes}"
    return replace(element, takes=takes, is_list=True)


def _choice(values: Sequence[Any]) -> OptionType:
    for value in values:
        if not isinstance(value, str | int):
            raise TypeError(f"the choice {value!r} is neither text nor an integer")
    if len({str(value) for value in values}) < len(values):
        raise TypeError("two choices are written the same way")
    return OptionType(takes=f"one of {', '.join(str(value) for value in values)}", scalars=frozenset(), choices=tuple(values))


def _scalar(annotation: Any, constraints: Mapping[str, Any]) -> OptionType:
    if annotation is bool:
        return OptionType(takes="true or false", scalars=frozenset({bool}))
    if annotation is int:
        return OptionType(takes=_number_words("an integer", constraints, whole=True), scalars=frozenset({int}))
    if annotation is float:
        allows = bool(constraints.get("allow_inf_nan"))
        return OptionType(takes=_number_words("a number", constraints), scalars=frozenset({float}), allows_non_finite=allows)
    if annotation is Fraction:
        takes = _number_words("a number or a fraction such as 3/2", constraints, comma=",")
        return OptionType(takes=takes, scalars=frozenset({Fraction}))
    if annotation is str:
        meaning = constraints.get("meaning")
        return OptionType(takes=_text_words(meaning, constraints), scalars=frozenset({str}), meaning=meaning)
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        raise TypeError(f"{_named(annotation)} does not say what the path is; use CheckpointPath, DataFile, InputFile or RunReference")
    raise TypeError(f"{_named(annotation)} cannot be written on a command line; use text, numbers, choices or lists of them")


def _constraints(metadata: Iterable[Any]) -> dict[str, Any]:
    """Constraints by name, from pydantic's and annotated-types' metadata objects."""
    found: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, Meaning):
            found["meaning"] = item
        elif isinstance(item, FieldInfo):
            found |= _constraints(item.metadata)
        else:
            for name in ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern", "allow_inf_nan"):
                value = getattr(item, name, None)
                if value is not None:
                    found[name] = value
    return found


def _number_words(noun: str, constraints: Mapping[str, Any], whole: bool = False, comma: str = "") -> str:
    least, above = constraints.get("ge"), constraints.get("gt")
    most, below = constraints.get("le"), constraints.get("lt")
    if whole:
        least = above + 1 if above is not None else least
        most = below - 1 if below is not None else most
        above = below = None
    if least is not None and most is not None and above is None and below is None:
        words = f"from {_figure(least)} to {_figure(most)}"
    else:
        bounds = (("above", above), ("of at least" if above is None else "at least", least), ("below", below), ("at most", most))
        words = " and ".join(f"{word} {_figure(bound)}" for word, bound in bounds if bound is not None)
        words = f"of {words}" if words.startswith("at most") else words
    if "multiple_of" in constraints:
        words = f"{words} " * bool(words) + f"that is a multiple of {_figure(constraints['multiple_of'])}"
    return f"{noun}{comma} {words}" if words else noun


def _figure(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text_words(meaning: Meaning | None, constraints: Mapping[str, Any]) -> str:
    if meaning is None:
        words = "text"
    elif meaning.kind == "selection":
        words = f"text, or what is selected ({', '.join(meaning.selections)})"
    else:
        words = _MEANING_WORDS[meaning.kind]
    count = _between(constraints.get("min_length"), constraints.get("max_length"))
    if count:
        words += f" of {count} character{'' if count.endswith(' 1') else 's'}"
    if "pattern" in constraints:
        pattern = constraints["pattern"]
        words += f" matching {getattr(pattern, 'pattern', pattern)}"
    return words


def _between(least: int | None, most: int | None) -> str:
    if least and most is not None:
        return f"exactly {least}" if least == most else f"{least} to {most}"
    if least:
        return f"at least {least}"
    return f"at most {most}" if most is not None else ""


def _named(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation).replace("typing.", "")
