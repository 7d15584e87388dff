"""Work in a thread that always ends in an answer or in a sentence, so that no "reading ..." stands on the screen for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from modelscope_app.api import MscopeError, neutralised

LONGEST_SENTENCE = 2000


@contextmanager
def failure_told(tell: Callable[[str], object], failed: str) -> Iterator[None]:
    """Runs the body of a `with`; where that raises, calls `tell` with one sentence that is harmless to print, and goes on behind it.

    What MscopeError and OSError say stands alone; of anything else the sentence begins with `failed`, as "This view cannot be drawn".
    Panics of polars are told too, though they are no Exception. What ends a thread on purpose is raised: KeyboardInterrupt, SystemExit
    and asyncio's CancelledError.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, asyncio.CancelledError):
        raise
    except (MscopeError, OSError) as error:
        tell(sentence_of(error))
    except BaseException as error:
        tell(neutralised(f"{failed}: {sentence_of(error)}", LONGEST_SENTENCE))


def sentence_of(error: BaseException) -> str:
    """What an exception says, on one line; its name where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return neutralised(f"{error.filename or 'a file'}: {error.strerror}", LONGEST_SENTENCE)
    return neutralised(str(error) or type(error).__name__, LONGEST_SENTENCE)
