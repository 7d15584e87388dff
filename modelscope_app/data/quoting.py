"""How messages quote values of data files."""

from __future__ import annotations

from modelscope_app.api import neutralised

_LONGEST_QUOTE = 80
_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}


def shown(value: object) -> str:
    """A value from a data file as a message quotes it: short, and with its type where that may be the mistake."""
    quoted = neutralised(repr(value), _LONGEST_QUOTE)
    kind = _KINDS.get(type(value))
    return f"{quoted}, {kind}" if kind else quoted
