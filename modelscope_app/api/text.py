"""Text from checkpoints, tokenizers and data is untrusted: make what a terminal would obey visible instead.

>>> neutralised("layer\\x1b[31m.weight")
'layer\\\\x1b[31m.weight'
>>> neutralised("a\\u202eb")
'a\\\\u202eb'
"""

from __future__ import annotations

import unicodedata

_OBEYED_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories a terminal may act on or cannot show: controls, bidirectional marks, surrogates, line separators."""


def neutralised(text: str, longest: int | None = None) -> str:
    """`text` with every control, format and unassigned character written as its escape, on one line.

    With `longest`, at most that many characters come back, the last of them an ellipsis where something was cut.
    Printable ASCII passes untouched and costs nothing.
    """
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) not in _OBEYED_CATEGORIES:
        return character
    return character.encode("unicode_escape").decode("ascii")
