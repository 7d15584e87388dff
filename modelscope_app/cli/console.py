"""The rich console that results are printed on. Imported only where something is printed for people."""

from __future__ import annotations

from rich.console import Console


class ResultsConsole(Console):
    """stdout, with nothing in the text taken for markup. A reader that goes away is left to `main`; rich would exit with 1."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
