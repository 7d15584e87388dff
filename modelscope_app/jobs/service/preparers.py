"""Preparers: child processes that check a submission, make its run folder and estimate what it needs.

They import plugins, which the service does not. A few per interpreter, started when there is work for them. One that hangs is
killed, one whose plugins have changed ends by itself, and both are replaced.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from modelscope_app.api import BadInput, JobFailed, MscopeError, UsageError
from modelscope_app.jobs.service.child import Child, Interpreter, how_it_ended

MODULE = "modelscope_app.jobs.preparing"

PATIENCE_SECONDS = 600.0
"""For one submission. Fingerprinting a checkpoint for the first time takes as long as reading 2 GiB from its disk."""

ESTIMATE_PATIENCE_SECONDS = 60.0
"""For what a job would need, which nobody has to know."""

_PER_INTERPRETER = 2
_DONE = ("prepared", "estimated")
_TRIES = 3


class Preparer:
    """One process; asked one thing at a time."""

    def __init__(self, interpreter: Interpreter) -> None:
        self.child = Child(MODULE, interpreter)
        self.idle_since = 0.0
        self.has_answered = False
        self._started = False
        self._messages = self.child.messages()

    async def ask(self, **message: Any) -> dict[str, Any]:
        """Its answer; {"say": "gone"} where it ended instead. Raises OSError where it cannot be started."""
        if not self._started:
            await self.child.start()
            self._started = True
        self.child.send(id=0, **message)
        return await anext(self._messages, {"say": "gone"})


class Preparers:
    """All of them."""

    def __init__(self) -> None:
        self._idle: dict[Interpreter, list[Preparer]] = {}
        self._room: dict[Interpreter, asyncio.Semaphore] = {}
        self._estimating: dict[Interpreter, asyncio.Semaphore] = {}
        self._all: set[Preparer] = set()

    async def ask(self, interpreter: Interpreter, **message: Any) -> dict[str, Any]:
        """What came of a submission: its `prepared` message. Raises the error it was refused with."""
        return await self._asked(interpreter, message, PATIENCE_SECONDS)

    async def estimate(self, interpreter: Interpreter, **message: Any) -> dict[str, Any]:
        """What a job would need: an `estimated` message. Raises the error a submission would be refused with.

        One at a time, and not for long: a submission always finds a preparer free.
        """
        async with self._estimating.setdefault(interpreter, asyncio.Semaphore(_PER_INTERPRETER - 1)):
            return await self._asked(interpreter, message, ESTIMATE_PATIENCE_SECONDS)

    async def _asked(self, interpreter: Interpreter, message: dict[str, Any], patience_seconds: float) -> dict[str, Any]:
        room = self._room.setdefault(interpreter, asyncio.Semaphore(_PER_INTERPRETER))
        async with room:
            for _ in range(_TRIES):
                answer = await self._ask_one(interpreter, message, patience_seconds)
                if answer["say"] in _DONE:
                    return answer
                if answer["say"] == "refused":
                    raise refusal(answer)
        raise JobFailed("files of the plugin keep changing; submit again when they are in place")

    async def _ask_one(self, interpreter: Interpreter, message: dict[str, Any], patience_seconds: float) -> dict[str, Any]:
        idle = self._idle.setdefault(interpreter, [])
        preparer = idle.pop() if idle else Preparer(interpreter)
        self._all.add(preparer)
        try:
            async with asyncio.timeout(patience_seconds):
                answer = await preparer.ask(**message)
        except TimeoutError:  # an OSError, so it comes first
            await self._end(preparer)
            what = "not estimated" if message.get("do") == "estimate" else "not checked"
            raise JobFailed(f"the submission was {what} within {patience_seconds:.0f} s; the plugin or the disk hangs") from None
        except (OSError, ValueError) as error:
            self._all.discard(preparer)
            why = error.strerror if isinstance(error, OSError) else None
            raise BadInput(f"{interpreter.path}: cannot be started ({why or error})") from None
        except BaseException:
            await self._end(preparer)
            raise
        if answer["say"] in (*_DONE, "refused"):
            preparer.has_answered = True
            preparer.idle_since = asyncio.get_running_loop().time()
            idle.append(preparer)
        else:
            code = await self._end(preparer)
            if answer["say"] == "gone":
                said = preparer.child.last_words()
                if code > 0 and not preparer.has_answered:
                    raise BadInput(f"{interpreter.path}: cannot check submissions; modelscope-app may not be installed there ({said})")
                raise JobFailed(f"the process that checks submissions {how_it_ended(code)}{f'; it said: {said}' if said else ''}")
        return answer

    async def _end(self, preparer: Preparer) -> int:
        preparer.child.signal(signal.SIGKILL)
        self._all.discard(preparer)
        return await preparer.child.ended()

    def dismiss_idle(self, idle_seconds: float) -> None:
        """Let go of those nobody asked anything for so long."""
        now = asyncio.get_running_loop().time()
        for interpreter, idle in self._idle.items():
            for preparer in [one for one in idle if now - one.idle_since >= idle_seconds]:
                self._idle[interpreter].remove(preparer)
                self._all.discard(preparer)
                preparer.child.dismiss()

    async def end(self) -> None:
        """End them all, now."""
        for preparer in list(self._all):
            preparer.child.signal(signal.SIGKILL)


def refusal(answer: dict[str, Any]) -> MscopeError:
    """The error that a `refused` message stands for."""
    sentence = str(answer.get("error") or "refused without a reason")
    kind = {2: UsageError, 3: BadInput}.get(int(answer.get("exit_code") or 4), JobFailed)
    return kind(sentence)
