"""Plugins, as the screens ask for them. One thread owns the plugin host, and whoever asks waits without holding up the screen.

Plugins are other people's code. What happens when they misbehave:
- what one raises, `SystemExit` and the panics of Rust libraries included, is a MscopeError for whoever asked;
- what one prints goes where `sys.stderr` of the app goes, not into the picture;
- one that hangs holds up those who ask after it and nobody else: the thread is a daemon, so the app still quits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from modelscope_app.api import JobFailed, MscopeError

if TYPE_CHECKING:
    from modelscope_app.plugin_host import PluginHost

Value = TypeVar("Value")


class _Question(NamedTuple):
    work: Callable[[PluginHost], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]


class Plugins:
    """The plugin host and the thread it lives in, which starts with the first question. One is enough for an app."""

    def __init__(self, make_host: Callable[[], PluginHost] | None = None) -> None:
        """`make_host` is called in the thread; by default it makes a host of this environment."""
        self._make_host = make_host or _host_of_this_environment
        self._host: PluginHost | None = None
        self._questions: SimpleQueue[_Question] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def ask(self, work: Callable[[PluginHost], Value]) -> Value:
        """What `work` gives, called in the thread with the host. Raises MscopeError alone.

        Asking costs what `work` does and 0.1 ms. A question that was cancelled before its turn is left out.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._answer_all, name="plugins", daemon=True)
            self._thread.start()
        self._questions.put(_Question(work, loop, answer))
        value: Value = await answer
        return value

    def _answer_all(self) -> None:
        while True:
            question = self._questions.get()
            if question.answer.cancelled():
                continue
            value, error = self._answer(question.work)
            with suppress(RuntimeError):  # the app has ended, and its loop with it
                question.loop.call_soon_threadsafe(_settle, question.answer, value, error)
            del question, value, error  # they may be large, and the next question may be long in coming

    def _answer(self, work: Callable[[PluginHost], Any]) -> tuple[Any, MscopeError | None]:
        try:
            from modelscope_app.plugin_host.isolation import described, stdout_to_stderr

            if self._host is None:
                self._host = self._make_host()
            with stdout_to_stderr():
                return work(self._host), None
        except MscopeError as error:
            return None, error
        except BaseException as error:  # sys.exit and the panics of Rust libraries are no Exceptions
            return None, JobFailed(f"a plugin failed ({described(error)}); `mscope plugins doctor` says more")


def _settle(answer: asyncio.Future[Any], value: Any, error: MscopeError | None) -> None:
    if answer.cancelled():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(value)


def _host_of_this_environment() -> PluginHost:
    from modelscope_app.plugin_host import PluginHost  # 150 ms, of pydantic for the most part

    return PluginHost()


_shared: Plugins | None = None


def shared_plugins() -> Plugins:
    """The one that all screens of a process use unless they are given another."""
    global _shared
    if _shared is None:
        _shared = Plugins()
    return _shared
