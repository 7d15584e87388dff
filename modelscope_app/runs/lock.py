"""The lock of a run folder: who is at it.

The executor holds `lock` (flock) for as long as it lives; the kernel lets go when it dies, however it dies. Whoever holds it has
written into it who he is and what for: status.json may still name the process of an earlier attempt. What a killed holder left
there is out of date until the next one has written, so a process is known by its number and by when it started.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from modelscope_app.api import BadInput
from modelscope_app.runs.reading import json_value, shaped

Purpose = Literal["execute", "remove", "queue"]
"""`queue`: to bring its state into order, which takes a moment."""

_held: set[int] = set()
"""Descriptors of the locks this process holds. A forked child closes its copies: it is not the executor, and may outlive it."""


def _close_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)

_TRIES = 20
_TRY_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A process that holds the lock of a run."""

    pid: int
    host: str
    purpose: Purpose
    started: int | None
    """When the process started, in clock ticks since the machine did; None where the system does not say."""

    @property
    def is_alive(self) -> bool:
        """Whether this very process, not a later one of the same number, runs on this machine."""
        return self.host == socket.gethostname() and self.pid > 0 and _is_running(self.pid) and self.started == _started(self.pid)


class RunLock:
    """The hold on a run folder, for executing or removing it; held until released or until the process ends.

    Raises BadInput while another process holds it, and where there is no folder to lock.
    """

    def __init__(self, folder: Path, purpose: Purpose = "execute") -> None:
        path = folder / "lock"
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        except FileNotFoundError:
            raise BadInput(f"{folder}: is no longer there") from None
        except OSError as error:
            raise BadInput(f"{path}: cannot be locked ({error.strerror})") from None
        try:
            self._acquire(path)
        except BaseException:
            os.close(self._descriptor)
            raise
        _held.add(self._descriptor)
        holder = LockHolder(os.getpid(), socket.gethostname(), purpose, _started(os.getpid()))
        with suppress(OSError):  # on a full disk it holds all the same, and removing a run is what makes room
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(asdict(holder)).encode(), 0)

    def release(self) -> None:
        """Let go."""
        _held.discard(self._descriptor)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a child of C code has a copy of the descriptor all the same
        os.close(self._descriptor)

    def _acquire(self, path: Path) -> None:
        for _ in range(_TRIES):  # somebody asking `is_locked` holds it for an instant
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_TRY_SECONDS)
                continue
            except OSError as error:
                raise BadInput(f"{path}: cannot be locked ({error.strerror})") from None
            if not _is_same_file(self._descriptor, path):
                raise BadInput(f"{path.parent}: was removed by another process")
            return
        raise BadInput(f"{path.parent}: another process is running this; wait for it or cancel it")


def is_locked(folder: Path) -> bool:
    """Whether some process executes (or removes) this run now. Raises BadInput where that cannot be known."""
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise BadInput(f"{path}: not readable ({error.strerror}), so whether the run is being executed is unknown") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def lock_holder(folder: Path) -> LockHolder | None:
    """Who executes or removes this run; None when nobody does. Raises BadInput when the lock does not say.

    Who has it for the queue lets go in a moment, and who has just got it is about to write, so they are waited for.
    """
    path = folder / "lock"
    for _ in range(_TRIES):
        if not is_locked(folder):
            return None
        try:
            holder = shaped(LockHolder, json_value(path))
        except FileNotFoundError:
            return None
        except (BadInput, ValueError):
            holder = None
        if holder is not None and holder.purpose != "queue":
            return holder
        time.sleep(_TRY_SECONDS)
    raise BadInput(f"{path}: is held, and does not say by which process")


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def _started(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, counted behind the command's name, which may hold anything."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
