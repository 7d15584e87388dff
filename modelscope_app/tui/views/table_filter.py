"""What is typed into the filter of a table, as a polars expression.

    layer >= 5                    a number, compared
    dtype = BF16                  exactly this text
    tensor contains q_proj        this text somewhere, in whatever case
    tensor ~ \\.[0-4]\\.mlp         a regular expression
    norm = unknown                missing, not a number, or infinite
    layer >= 5 and "my column" = "this and that"

Unknown values meet no condition but `= unknown`, because they cannot be compared. Columns and texts with spaces or with `and`
in them are put in quotes, a quote inside doubled. Nothing typed is ever evaluated. Imported where polars is anyway.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import polars
from polars import selectors
from polars.exceptions import PolarsError

from modelscope_app.api import BadInput, neutralised
from modelscope_app.rendering.wording import UNKNOWN

LONGEST = 1000
"""Characters of a filter."""
_LONGEST_NAME = 40
_COLUMN = re.compile(r"""\s*(?:"((?:[^"]|"")*)"|'((?:[^']|'')*)'|([^\s"'=<>!~]+))""")
_OPERATOR = re.compile(r"\s*(==|!=|<=|>=|=|<|>|~|contains(?=[\s\"'])|contains$)", re.IGNORECASE)
_VALUE = re.compile(r"""\s*(?:"((?:[^"]|"")*)"|'((?:[^']|'')*)')(?=\s|$)|\s*(.*?)\s*(?=\s+and\s+|$)""", re.DOTALL | re.IGNORECASE)
_AND = re.compile(r"\s+and\s+", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)?(\.\d*)?([eE][+-]?\d+)?")
_COMPARED: Mapping[str, Callable[[Any, Any], polars.Expr]] = {"=": eq, "==": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}
_TRUTH = {"yes": True, "true": True, "no": False, "false": False}


def condition(text: str, schema: Mapping[str, polars.DataType]) -> polars.Expr:
    """The expression for what was typed about a table of these columns. Raises BadInput with a sentence on what is wrong."""
    if len(text) > LONGEST:
        raise BadInput(f"a filter is at most {LONGEST} characters long")
    found: polars.Expr | None = None
    at = 0
    while True:
        one, at = _one(text, at, schema)
        found = one if found is None else found & one
        if not text[at:].strip():
            return found
        following = _AND.match(text, at)
        if following is None:
            raise BadInput(f"{_cut(text[at:].strip())!r} is one too many; join conditions with `and`, put text with spaces in quotes")
        at = following.end()


def _one(text: str, at: int, schema: Mapping[str, polars.DataType]) -> tuple[polars.Expr, int]:
    """One condition, and where it ends."""
    named = _COLUMN.match(text, at)
    if named is None:
        raise BadInput("a condition begins with a column: `column > 0.5`, `column = text`, `column contains text`, `column ~ regex`")
    column = _unquoted(named)
    if column not in schema:
        raise BadInput(f"no column {_cut(column)!r}{_nearest(column, schema)}")
    operator = _OPERATOR.match(text, named.end())
    if operator is None:
        raise BadInput(f"after {_cut(column)!r} comes one of = != < <= > >= ~ contains")
    value = _VALUE.match(text, operator.end())
    wanted = "" if value is None else _unquoted(value)
    if value is None or (not wanted and value.group(3) is not None):
        raise BadInput(f"{_cut(column)!r} {operator.group(1)} what? A value is missing")
    return _expression(column, schema[column], operator.group(1).lower(), wanted), value.end()


def _expression(name: str, dtype: polars.DataType, operator: str, wanted: str) -> polars.Expr:
    column = selectors.by_name(name).as_expr()  # `polars.col` reads ^...$ as a regular expression
    is_text = dtype in (polars.String, polars.Categorical, polars.Enum)
    known = column.is_finite() if dtype.is_float() else column.is_not_null()
    if operator in ("=", "==", "!=") and wanted == UNKNOWN:
        known = known.fill_null(value=False)
        missing = ~known | (column.cast(polars.String) == wanted).fill_null(value=False) if is_text else ~known
        return ~missing if operator == "!=" else missing
    if operator in ("~", "contains"):
        if not (is_text or dtype.is_integer()):
            raise BadInput(f"column {_cut(name)!r} holds no text ({dtype}); compare it with = != < <= > >=")
        text = column.cast(polars.String)
        if operator == "contains":
            return text.str.to_lowercase().str.contains(wanted.lower(), literal=True)
        _check_regex(wanted)
        return text.str.contains(wanted)
    compared = _COMPARED[operator]
    if is_text or (dtype.is_temporal() and dtype != polars.Duration):
        return known & compared(column.cast(polars.String), wanted)
    if dtype == polars.Boolean:
        if wanted.lower() not in _TRUTH or compared not in (eq, ne):
            raise BadInput(f"column {_cut(name)!r} is yes or no: write `{_cut(name)} = yes`")
        return known & compared(column, polars.lit(_TRUTH[wanted.lower()]))
    if dtype.is_numeric() or dtype == polars.Null:
        return known & compared(column.cast(polars.Float64) if dtype == polars.Null else column, polars.lit(_number(name, wanted)))
    raise BadInput(f"column {_cut(name)!r} holds {_cut(str(dtype))}, which can only be compared with unknown")


def _number(column: str, text: str) -> float | int:
    digits = text.replace(",", "")
    if not _NUMBER.fullmatch(text) or not any(character.isdigit() for character in text):
        raise BadInput(f"column {_cut(column)!r} holds numbers, and {_cut(text)!r} is none")
    try:
        whole = int(digits)
    except ValueError:
        number = float(digits)
    else:
        number = whole if abs(whole) < 2**63 else float(whole)
    if isinstance(number, float) and number in (float("inf"), float("-inf")):
        raise BadInput(f"{_cut(text)!r} is too large a number")
    return number


def _check_regex(pattern: str) -> None:
    try:
        polars.Series([""]).str.contains(pattern)
    except PolarsError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "it cannot be read")
        raise BadInput(f"{_cut(pattern)!r} is no regular expression: {_cut(why.removeprefix('error:').strip())}") from None


def _unquoted(match: re.Match[str]) -> str:
    double, single, bare = match.groups()
    if double is not None:
        return double.replace('""', '"')
    return single.replace("''", "'") if single is not None else str(bare)


def _nearest(column: str, schema: Mapping[str, polars.DataType]) -> str:
    """The column that was probably meant, or all of a few."""
    lowered = {name.lower(): name for name in schema}
    close = difflib.get_close_matches(column.lower()[:200], lowered, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {_cut(lowered[close[0]])!r}?"
    return f"; there are: {_cut(', '.join(schema), 200)}"


def _cut(text: str, longest: int = _LONGEST_NAME) -> str:
    return neutralised(text, longest)
