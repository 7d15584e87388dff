"""Being asked to stop, and stopping within a second even while torch is inside a long kernel.

Python runs signal handlers on the main thread between bytecodes, so a handler waits for as long as the main thread is inside
one backward pass. The byte that `signal.set_wakeup_fd` writes does not wait: a watcher thread reads it, raises a flag that
folds look at between steps, and gives the main thread a grace to end by itself (saving its state). After the grace it calls
`on_timeout`, which records the state, and `last_words`, which tells the user, and ends the process.

What happens when things fail: a second signal ends the grace at once; a watcher that cannot record still exits.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Literal

from modelscope_app.api import ExitCode, JobCancelled

GRACE_SECONDS = 0.4
"""Time for a cooperative end; the rest of the second is for recording and exiting."""

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_SENTENCES = {signal.SIGINT: "cancelled with ctrl+c", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "its terminal hung up (SIGHUP)"}


class Interruption:
    """Watches the signals that end a job while used as a context manager. Only from the main thread."""

    def __init__(self) -> None:
        self.on_timeout: Callable[[Interruption], None] = lambda interruption: None
        """Called from the watcher thread before it ends the process, to record that."""
        self.last_words: Callable[[Interruption], None] = lambda interruption: None
        """Called after it, to tell the user."""
        self.on_asked: Callable[[Interruption], None] = lambda interruption: None
        """Called from whatever thread asks the job to stop without a signal."""
        self.signal: signal.Signals | None = None
        """The first signal that arrived."""
        self.ends_as: Literal["cancelled", "lost"] = "cancelled"
        """The state of a run that stops because of this. `lost` says that nobody wanted it stopped: it is taken up again."""
        self._asked: str | None = None
        self._requested = threading.Event()
        self._receiver, self._sender = socket.socketpair()
        self._previous_handlers: dict[signal.Signals, object] = {}
        self._previous_descriptor = -1

    @property
    def is_requested(self) -> bool:
        """Whether the job was asked to stop."""
        return self._requested.is_set()

    @property
    def sentence(self) -> str:
        """Why it stops. Who asked stays the reason where a signal then insisted."""
        if self._asked is not None:
            return self._asked
        return _SENTENCES.get(self.signal, "cancelled") if self.signal is not None else "cancelled"

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as shells have it, and as of ctrl+c where somebody asked. A lost run has failed."""
        if self.ends_as == "lost":
            return ExitCode.JOB_FAILED
        if self._asked is not None or self.signal is None:
            return ExitCode.CANCELLED
        return 128 + self.signal

    def ask(self, sentence: str, ends_as: Literal["cancelled", "lost"] = "cancelled") -> None:
        """Ask the job to stop at its next step, from any thread, without a signal and without a limit of time."""
        if not self.is_requested:
            self._asked, self.ends_as = sentence, ends_as
            self._requested.set()
            self.on_asked(self)

    def check(self) -> None:
        """Raise JobCancelled if the job was asked to stop."""
        if self.is_requested:
            raise JobCancelled(self.sentence)

    def __enter__(self) -> Interruption:
        self._sender.setblocking(False)
        for number in WATCHED:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # started under nohup, or in the background by a shell that ignores ctrl+c for it
            self._previous_handlers[number] = signal.signal(number, _ignored)
        self._previous_descriptor = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="interruption", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._previous_descriptor)
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._sender.close()  # the watcher reads the end of the stream and returns

    def _watch(self) -> None:
        first = self._read_signal(None)
        if first is None:
            return
        self.signal = first
        self._requested.set()
        self._receiver.settimeout(GRACE_SECONDS)
        try:
            if self._read_signal(GRACE_SECONDS) is None:
                return
        except TimeoutError:
            pass
        try:
            with suppress(Exception):
                self.on_timeout(self)
            self.last_words(self)
        finally:
            os._exit(self.exit_code)

    def _read_signal(self, timeout_seconds: float | None) -> signal.Signals | None:
        """The next watched signal; None when the job has ended. Raises TimeoutError."""
        self._receiver.settimeout(timeout_seconds)
        while True:
            received = self._receiver.recv(1)
            if not received:
                self._receiver.close()
                return None
            if received[0] in set(WATCHED):
                return signal.Signals(received[0])


def _ignored(number: int, frame: FrameType | None) -> None:
    """A Python-level handler has to exist for the wake-up byte to be written."""
