"""What the service says about jobs, devices and resident models, as one frozen value that the app holds and widgets watch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscope_app.jobs.answers import DeviceInfo, JobInfo, ResidentModel

_IDLE_SECONDS = 2.0
_STANDS_SECONDS = 2.0
"""A rate stands for so long between two steps; progress is stored once a second. Then a job that stands still gets slower."""
_LISTENING_SECONDS = 5.0
"""Between two looks for a service while there is none."""


@dataclass(frozen=True, slots=True)
class JobsSnapshot:
    """One moment of the service."""

    is_running: bool = False
    """Whether a service answers."""
    problem: str | None = None
    """The sentence, where it answers but not as it should, or where what it answered cannot be shown."""
    jobs: tuple[JobInfo, ...] = ()
    """Those on the queue and running, then those that ended, newest first."""
    devices: tuple[DeviceInfo, ...] = ()
    resident: tuple[ResidentModel, ...] = ()
    rates: tuple[tuple[str, float], ...] = field(default=())
    """Progress per second of running jobs, by run id."""

    @property
    def active(self) -> tuple[JobInfo, ...]:
        """Jobs that have not ended."""
        return tuple(job for job in self.jobs if not job.is_final)

    def rate(self, run: str) -> float | None:
        """What a job gets done in a second, in its unit; None while that is not known."""
        return dict(self.rates).get(run)


class Pace:
    """How fast running jobs go, from what was seen of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: dict[str, tuple[str | None, float, float]] = {}
        """Stage, time and progress when a stage was first seen, by run."""
        self._seen: dict[str, tuple[str | None, float, float, float]] = {}
        """Stage, progress, time and rate when progress was last made."""

    def rates(self, jobs: tuple[JobInfo, ...]) -> tuple[tuple[str, float], ...]:
        """Rates of the jobs that make progress; to be called with every look."""
        now = self._clock()
        found = []
        seen = {}
        for job in jobs:
            if job.state != "running" or job.done is None:
                continue
            began = self._began.get(job.run)
            if began is None or began[0] != job.stage or job.done < began[2]:
                began = (job.stage, now, job.done)
            seen[job.run] = began
            if now > began[1] and job.done > began[2]:
                last = self._seen.get(job.run)
                if last is None or last[:2] != (job.stage, job.done) or now - last[2] > _STANDS_SECONDS:
                    last = job.stage, job.done, now, (job.done - began[2]) / (now - began[1])
                self._seen[job.run] = last
                found.append((job.run, last[3]))
        self._began = seen
        self._seen = {run: last for run, last in self._seen.items() if run in seen}
        return tuple(found)


async def follow(tell: Callable[[JobsSnapshot], object], nudge: asyncio.Event, seconds: float) -> None:
    """Look at the service for ever, every `seconds` while jobs are active, and tell what changed; `nudge` asks for a look now.

    Never starts a service. Runs until it is cancelled, whatever `tell` raises: that is told as a problem of the same moment.
    """
    from modelscope_app.api import MscopeError
    from modelscope_app.jobs.answers import NotRunning
    from modelscope_app.jobs.client import AsyncClient

    last: JobsSnapshot | None = None
    pace = Pace()
    async with AsyncClient(start=False) as client:
        while True:
            nudge.clear()
            try:
                jobs = _each_once(await client.jobs())
                devices, resident = await client.devices(), await client.resident()
                snapshot = JobsSnapshot(True, None, jobs, devices, resident, pace.rates(jobs))
            except NotRunning:
                snapshot = JobsSnapshot()
            except MscopeError as error:
                snapshot = JobsSnapshot(problem=str(error))
            except Exception as error:
                snapshot = JobsSnapshot(problem=f"internal error ({type(error).__name__}: {error})")
            if snapshot != last:
                last = snapshot
                _tell(tell, snapshot)
            pause = seconds if snapshot.active else _IDLE_SECONDS if snapshot.is_running else _LISTENING_SECONDS
            try:
                await asyncio.wait_for(nudge.wait(), pause)
            except TimeoutError:
                continue


def _each_once(jobs: Sequence[JobInfo]) -> tuple[JobInfo, ...]:
    """A run is one line, also where a service lists it as ended and, resumed, as going on."""
    first: dict[str, JobInfo] = {}
    for job in jobs:
        first.setdefault(job.run, job)
    return tuple(first.values())


def _tell(tell: Callable[[JobsSnapshot], object], snapshot: JobsSnapshot) -> None:
    try:
        tell(snapshot)
    except Exception as error:
        with suppress(Exception):  # most likely the same again, from a widget after the one that says it
            tell(replace(snapshot, problem=f"internal error ({type(error).__name__}: {error})"))
