"""Reading headers while the app is still being imported: in a forked process, because both keep a processor busy.

Forking is safe here and only here: at the very start, with one thread, no torch and no open connection. Whatever goes wrong in the
child is not said by it; the app then reads for itself and says it.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscope_app.tui.checkpoint.opening import Opened


class EarlyReading:
    """What `path` names, being opened by a child of this process. It comes in two parts: what the overview shows, then everything."""

    def __init__(self, path: str) -> None:
        self.path = path
        pipe, inlet = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            with suppress(BaseException):
                gc.disable()  # it ends before anything it makes is garbage
                os.close(pipe)
                _write(inlet, path)
            os._exit(0)
        os.close(inlet)
        self._pipe = os.fdopen(pipe, "rb")
        self._glanced: Opened | None = None

    def glance(self, patience_seconds: float) -> Opened | None:
        """What the overview shows, without tensors, waiting no longer than that; None where there is nothing, or not yet."""
        ready, _, _ = select.select([self._pipe], [], [], patience_seconds)
        self._glanced = self._next() if ready else None
        return self._glanced

    def whole(self) -> Opened | None:
        """Everything; blocks until it is there. None where it must be read again. Call it once, after `glance`, in a thread."""
        found = self._glanced or self._next()
        while found is not None and not found.headers and (more := self._next()) is not None:
            found = more
        self._let_go()
        return found

    def close(self) -> None:
        """Nobody waits for it any more. Does not block."""
        if not self._pipe.closed:
            threading.Thread(target=self._let_go, daemon=True).start()

    def _let_go(self) -> None:
        self._pipe.close()  # a child that still writes ends with that
        with suppress(ChildProcessError):  # where nobody is told of children, they are gone by themselves
            os.waitpid(self._child, 0)

    def _next(self) -> Opened | None:
        try:
            found: Opened = pickle.load(self._pipe)  # our own child's words
        except Exception:
            return None
        return found


def is_run_folder(path: str) -> bool:
    """Whether a run lies there; False also for what may not be looked at, which whoever opens it says."""
    return os.path.isfile(os.path.join(path, "job.json"))  # noqa: PTH113, PTH118 - those of Path raise where permission is missing


def early_reading(path: str | None) -> EarlyReading | None:
    """Begin to read, where there is something that may be a checkpoint and nothing that forbids forking."""
    if path is None or threading.active_count() > 1 or not hasattr(os, "fork"):
        return None
    if not path.startswith("hf:") and (not os.path.lexists(path) or is_run_folder(path)):
        return None
    try:
        return EarlyReading(path)
    except OSError:
        return None


def _write(inlet: int, path: str) -> None:
    from dataclasses import replace

    from modelscope_app.tui.checkpoint.opening import opened

    found = opened(path)
    with os.fdopen(inlet, "wb") as stream:
        if found.checkpoint is not None:
            pickle.dump(replace(found, headers=(), checkpoint=found.checkpoint.without_tensors()), stream, pickle.HIGHEST_PROTOCOL)
            stream.flush()
        pickle.dump(found, stream, pickle.HIGHEST_PROTOCOL)
