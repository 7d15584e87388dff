"""What goes wrong, as the person at the terminal sees it: one sentence and an exit code.

Every message says what was wrong, where, and what to do. Messages may quote names from checkpoints and data, so they are
neutralised here, once, whoever raises them.
"""

from __future__ import annotations

from enum import IntEnum

from modelscope_app.api.text import neutralised


class ExitCode(IntEnum):
    """Exit codes of `mscope`. They are an interface: scripts rely on them."""

    DONE = 0
    """The command did what it was asked."""
    USAGE = 2
    """The command line itself is wrong: an unknown option, a value out of range."""
    BAD_INPUT = 3
    """A file, checkpoint, data row or run folder is missing or wrong."""
    JOB_FAILED = 4
    """The analysis started and could not finish."""
    ASSERTION = 5
    """The analysis finished and an `--assert` did not hold."""
    HANGUP = 129
    """Ended by SIGHUP; the run is marked cancelled."""
    CANCELLED = 130
    """Cancelled (ctrl+c); the run is marked cancelled."""
    TERMINATED = 143
    """Ended by SIGTERM; the run is marked cancelled."""


class MscopeError(Exception):
    """An error with a sentence for people and an exit code for scripts. Never shown with a traceback."""

    exit_code: ExitCode = ExitCode.JOB_FAILED

    def __init__(self, message: str) -> None:
        super().__init__(neutralised(message))


class UsageError(MscopeError):
    """The command line or the params are wrong."""

    exit_code = ExitCode.USAGE


class BadInput(MscopeError):
    """Something the user named (a checkpoint, a data file, a run) is missing or wrong."""

    exit_code = ExitCode.BAD_INPUT


class JobFailed(MscopeError):
    """The analysis could not finish."""

    exit_code = ExitCode.JOB_FAILED


class AssertionFailed(MscopeError):
    """An `--assert` did not hold."""

    exit_code = ExitCode.ASSERTION


class JobCancelled(MscopeError):
    """Raised inside a job, between two steps, after it was asked to stop. Analyses let it pass."""

    exit_code = ExitCode.CANCELLED
