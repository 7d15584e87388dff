"""What an executor tells whoever watches: a small protocol that a terminal bar, plain lines and tests implement."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Hears of a running job. Called from the executing thread; must not block."""

    def started(self, run_id: str, folder: str) -> None:
        """The run folder exists and the analysis begins."""

    def stage(self, name: str, resumed: bool) -> None:
        """A stage begins, or (`resumed`) its stored result is used."""

    def progress(self, stage: str, done: float, total: float | None, unit: str) -> None:
        """How far the stage has come."""

    def warning(self, message: str) -> None:
        """A sentence the user should see."""

    def ended(self) -> None:
        """Nothing more will come."""


class Silent:
    """Hears and does nothing."""

    def started(self, run_id: str, folder: str) -> None: ...
    def stage(self, name: str, resumed: bool) -> None: ...
    def progress(self, stage: str, done: float, total: float | None, unit: str) -> None: ...
    def warning(self, message: str) -> None: ...
    def ended(self) -> None: ...
