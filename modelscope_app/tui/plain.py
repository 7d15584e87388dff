"""Text on the screen that came from somewhere else: never markup, never a control character."""

from __future__ import annotations

from textual.content import Content

from modelscope_app.api import neutralised


def plain(text: str, longest: int | None = None, style: str = "") -> Content:
    """`text` as it is, on one line, with what a terminal would obey made visible; at most `longest` characters.

    >>> plain("[bold]a\\x1b[31m").plain
    '[bold]a\\\\x1b[31m'
    """
    return Content.styled(neutralised(text, longest), style) if style else Content(neutralised(text, longest))
