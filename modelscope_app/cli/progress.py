"""Progress on stderr: a bar on a terminal, plain lines off it, nothing with `--quiet`. Each with rate and remaining time."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from modelscope_app.api import neutralised
from modelscope_app.jobs.listener import Listener, Silent
from modelscope_app.rendering.wording import duration_text, progress_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

FIRST_LINE_SECONDS = 2.0
"""Nothing is said of stages that are over sooner."""
LINE_SECONDS = 5.0


def own_stderr() -> TextIO:
    """stderr as it is now, whatever descriptor 2 is pointed at later; a test's capture as it is."""
    try:
        if sys.stderr.fileno() == 2:
            return os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1)
    except (OSError, ValueError, AttributeError):
        pass
    return sys.stderr or Path(os.devnull).open("w", encoding="utf-8")


class Watcher(Listener, Protocol):
    """A listener of a run that another process executes, or will."""

    def waits(self, why: str) -> None:
        """It has not begun."""

    def note(self, message: str) -> None:
        """A line about something else than the run itself."""


def listener_for(quiet: bool, stderr: TextIO) -> Listener:
    """The listener that suits stderr."""
    return Silent() if quiet else watcher_for(stderr)


def watcher_for(stderr: TextIO) -> Watcher:
    """The watcher that suits stderr."""
    return TerminalBar(stderr) if stderr.isatty() else Lines(stderr)


class Lines:
    """Plain lines, at most one in five seconds a stage."""

    def __init__(self, stderr: TextIO) -> None:
        self._stderr = stderr
        self._stage = ""
        self._began = 0.0
        self._began_at = 0.0
        self._last = 0.0

    def started(self, run_id: str, folder: str) -> None:
        self._say(f"run {run_id} in {folder}")

    def stage(self, name: str, resumed: bool) -> None:
        self._stage = ""
        if resumed:
            self._say(f"{name}: already there")

    def progress(self, stage: str, done: float, total: float | None, unit: str) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._began_at = stage, now, done
            self._last = now - LINE_SECONDS + FIRST_LINE_SECONDS
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        self._say(progress_text(stage, done, total, unit, done - self._began_at, now - self._began))

    def warning(self, message: str) -> None:
        self._say(f"warning: {message}")

    def waits(self, why: str) -> None:
        self._say(why)

    def note(self, message: str) -> None:
        self._say(message)

    def ended(self) -> None:
        """Lines need no end."""

    def _say(self, message: str) -> None:
        say(message, self._stderr)


class TerminalBar:
    """A bar that comes and goes with the run."""

    def __init__(self, stderr: TextIO) -> None:
        self._stderr = stderr
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def started(self, run_id: str, folder: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._say(f"run {run_id} in {folder}")
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}{task.fields[unit]}{task.fields[pace]}", markup=False),
            console=Console(file=self._stderr),
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar.start()

    def stage(self, name: str, resumed: bool) -> None:
        if self._bar is None:
            return
        if resumed:
            self._bar.console.print(f"{name}: already there", markup=False)
        self._begin(name)

    def _begin(self, name: str) -> None:
        assert self._bar is not None
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._stage = name
        self._task = self._bar.add_task(name, total=None, count="", unit="", pace="")

    def progress(self, stage: str, done: float, total: float | None, unit: str) -> None:
        if self._bar is None:
            return
        if self._task is None or stage != self._stage:
            self.stage(stage, resumed=False)
        assert self._task is not None
        count = f"{done:,.0f}/{'?' if total is None else format(total, ',.0f')} "
        self._bar.update(self._task, completed=done, total=total, count=count, unit=unit)
        task = next(task for task in self._bar.tasks if task.id == self._task)
        pace = f", {task.speed:,.3g} {unit}/s" if task.speed else ""
        if task.time_remaining is not None:
            pace += f", {duration_text(task.time_remaining)} left"
        self._bar.update(self._task, pace=pace)

    def warning(self, message: str) -> None:
        if self._bar is None:
            self._say(f"warning: {message}")
        else:
            self._bar.console.print(f"mscope: warning: {message}", markup=False, highlight=False)

    def waits(self, why: str) -> None:
        if self._bar is None:
            self._say(why)
        else:
            self._begin(neutralised(why))

    def note(self, message: str) -> None:
        if self._bar is None:
            self._say(message)
        else:
            self._bar.console.print(f"mscope: {neutralised(message)}", markup=False, highlight=False)

    def ended(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, message: str) -> None:
        say(message, self._stderr)


def ending(run: str, state: str, error: str | None) -> str:
    """How a run ended, in one line; an error that says no more than the state is left out.

    >>> ending("a", "cancelled", "cancelled"), ending("a", "failed", "no space is left")
    ('a cancelled', 'a failed: no space is left')
    """
    return f"{run} {state}" + (f": {error}" if error and error != state else "")


def say(message: str, stderr: TextIO) -> None:
    """One line on stderr, from the program."""
    with suppress(OSError):
        print(f"mscope: {neutralised(message)}", file=stderr, flush=True)


def show_cursor(stderr: TextIO) -> None:
    """Take a half-drawn bar away and show the cursor again, when there was no time to end it."""
    if stderr.isatty():
        with suppress(OSError):
            print("\r\x1b[2K\x1b[?25h", end="", file=stderr, flush=True)
