"""Themes of the app's own, beside those textual brings: a calm dark and light one, and one of high contrast.

`ansi-dark` and `ansi-light`, which textual brings, use the sixteen colours of the terminal and nothing else.
"""

from __future__ import annotations

from typing import Final

from textual.theme import Theme

DEFAULT_THEME: Final = "mscope-dark"
SIXTEEN_COLOURS: Final = "ansi-dark"

THEMES: Final = (
    Theme(
        name="mscope-dark",
        primary="#62b1ea",
        secondary="#48c9a0",
        accent="#f2945a",
        foreground="#e4e7ea",
        background="#14171b",
        surface="#191d22",
        panel="#232930",
        success="#48c9a0",
        warning="#d8b64c",
        error="#f07178",
        dark=True,
    ),
    Theme(
        name="mscope-light",
        primary="#0068ad",
        secondary="#00845c",
        accent="#cf5600",
        foreground="#1d2329",
        background="#fefefe",
        surface="#f6f7f8",
        panel="#e8ebee",
        success="#00704e",
        warning="#7a5f00",
        error="#b3261e",
        dark=False,
    ),
    Theme(
        name="mscope-contrast",
        primary="#ffff00",
        secondary="#00ffff",
        accent="#ffff00",
        foreground="#ffffff",
        background="#000000",
        surface="#000000",
        panel="#1a1a1a",
        success="#00ff7f",
        warning="#ffff00",
        error="#ff9a9a",
        dark=True,
        variables={"text-muted": "#ffffff", "border": "#ffffff", "border-blurred": "#b0b0b0", "footer-key-foreground": "#ffff00"},
    ),
)
