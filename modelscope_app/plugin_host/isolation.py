"""Running somebody else's code so that whatever it does to itself, the host goes on.

Every exception is caught, `SystemExit` too, but not `KeyboardInterrupt`: that one is the user's. What the code prints goes
to stderr, because stdout carries results and nothing else. A process that ends itself (`os._exit`) or hangs is beyond this.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Generic, TypeVar

from modelscope_app.api import neutralised

Result = TypeVar("Result")

_LONGEST_ERROR = 300
_NOT_THE_PLUGINS = tuple(f"{os.sep}{package}{os.sep}" for package in ("importlib", "modelscope_app", "pluggy", "pydantic"))
"""Parts of file names of frames that are ours or a library's, not the line its author should look at."""


@dataclass(frozen=True, slots=True)
class Attempt(Generic[Result]):
    """How a call went: a value, or an error said in one line."""

    value: Result | None
    error: str | None
    milliseconds: float


def attempt(call: Callable[[], Result]) -> Attempt[Result]:
    """Call, with prints on stderr and any exception but KeyboardInterrupt as a line that names its place."""
    started = time.perf_counter()
    value: Result | None = None
    error: str | None = None
    with stdout_to_stderr():
        try:
            value = call()
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            error = described(raised)
    return Attempt(value, error, (time.perf_counter() - started) * 1000)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Everything written to stdout goes to stderr: by `print`, by C code, and by child processes."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if sys.__stdout__ is not None:
                sys.__stdout__.flush()
            kept = os.dup(1)
            stack.callback(_restore, kept)
            os.dup2(2, 1)
        yield


def _restore(kept: int) -> None:
    if sys.__stdout__ is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.__stdout__.flush()
    os.dup2(kept, 1)
    os.close(kept)


def described(error: BaseException) -> str:
    """An exception in one line: its type, what it says, and the plugin's file and line it comes from."""
    try:
        said = str(error)
    except Exception:
        said = "its message cannot be read"
    words = neutralised(" ".join(said.split()), longest=_LONGEST_ERROR)
    line = f"{type(error).__name__}: {words}" if words else type(error).__name__
    place = _place(error)
    return f"{line} ({place})" if place else line


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return ""  # its own message says file and line
    frames = [(frame, number) for frame, number in traceback.walk_tb(error.__traceback__) if _is_the_plugins(frame)]
    if not frames:
        return ""
    frame, number = frames[-1]
    return f"{neutralised(frame.f_code.co_filename)} line {number}"


def _is_the_plugins(frame: FrameType) -> bool:
    file_name = frame.f_code.co_filename
    return not file_name.startswith("<") and not any(part in file_name for part in _NOT_THE_PLUGINS)
