"""The characters that charts are made of: block elements and braille, or plain ASCII where the terminal has nothing else."""

from __future__ import annotations

from typing import NamedTuple

from rich.cells import cell_len, set_cell_size


class Marks(NamedTuple):
    """One set of characters."""

    ascii_only: bool
    up: str
    """Nine heights of a column, empty to full."""
    right: str
    """Nine lengths of a bar, empty to full."""
    shades: str
    """Five shades, empty to full."""
    vertical: str
    horizontal: str
    corner: str
    arrow: str
    ellipsis: str
    dot: str
    """A space that must be seen."""

    def text(self, text: str) -> str:
        """`text` in characters this set can print: what ASCII lacks becomes its escape."""
        if not self.ascii_only:
            return text
        return text.replace("…", "...").replace("→", "->").replace("×", "x").encode("ascii", "backslashreplace").decode("ascii")

    def cut(self, text: str, cells: int) -> str:
        """`text` in at most `cells` terminal cells, its middle left out where it is longer: names differ at both ends."""
        text = self.text(text)
        if cell_len(text) <= cells:
            return text
        room = max(0, cells - len(self.ellipsis))
        head = set_cell_size(text, room // 2).rstrip()
        tail = text[::-1]
        tail = set_cell_size(tail, room - cell_len(head))[::-1]
        return set_cell_size(head + self.ellipsis + tail.lstrip(), cells).rstrip()


BLOCKS = Marks(False, " ▁▂▃▄▅▆▇█", " ▏▎▍▌▋▊▉█", " ░▒▓█", "│", "─", "└", "→", "…", "·")
PLAIN = Marks(True, " ....:::#", " ||||####", " .:*#", "|", "-", "+", "->", "...", "_")
LADDER = " .:-=+*#@"
"""Heights in ASCII where each column stands alone, as in a sparkline."""
