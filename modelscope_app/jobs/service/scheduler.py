"""The queue: which job runs where and when, and what becomes of those whose worker ends.

Everything here runs on one event loop; files are written in threads, each job's under its `guard`. Jobs are begun in the order of
submission, one at a time on a device (as many on the CPU as there are CPU workers), other devices in parallel. A job that does not
fit yet waits, and later ones that fit may pass it.

When things fail:
- a worker that dies loses the job it had (`lost`, or `cancelled` where somebody had asked for that); the queue goes on;
- a worker that cannot start at all fails the jobs that need its interpreter, since none of them could ever run;
- a run that another process took up meanwhile, or removed, is forgotten here and left alone;
- the service's own end leaves queued jobs queued, and puts running ones back, for the next service (see `recovery`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelscope_app.api import BadInput, ExitCode, MscopeError
from modelscope_app.jobs.protocol import API_VERSION
from modelscope_app.jobs.service import transitions
from modelscope_app.jobs.service.child import Interpreter, how_it_ended
from modelscope_app.jobs.service.queued_job import QueuedJob, ended_json
from modelscope_app.jobs.service.workers import Facts, Worker, facts
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.lock import RunLock
from modelscope_app.runs.queue_record import QueueRecord, drop_queue_record, read_queue_record
from modelscope_app.runs.status import FINAL_STATES, NOT_BEGUN_STATES, read_stored_status
from modelscope_app.settings import ServiceSettings

RETRY_SECONDS = 2.0
"""How long a job waits for memory before it is tried again, twice as long each time; the end of another job tries it at once."""
_LONGEST_RETRY_SECONDS = 30.0

_REMEMBERED = 1000
_START_TRIES = 3
_KILLED_START_TRIES = 8
"""A worker that was killed while it started says less about the next one than one that ended by itself."""
_START_PAUSE_SECONDS = 0.5
_BEGIN_TRIES = 3
"""A job whose worker dies before it has begun is given to another one, so often."""
_LONGEST_START_SECONDS = 600.0
"""For a worker to import torch, from a disk that is far away."""
_KILLED_SECONDS = 5.0
_LAST_WORDS_SECONDS = 12.0
"""For workers to save what they have when the service ends; they take at most 10 s themselves."""

log = logging.getLogger(__name__)


class Scheduler:
    """All jobs and workers of a service."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.jobs: dict[Path, QueuedJob] = {}
        """Those that have not ended, in the order of submission, by run folder."""
        self.ended: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED)
        """Those that have, newest first, as clients see them."""
        self.workers: set[Worker] = set()
        self.facts: dict[Interpreter, Facts] = {}
        self.is_stopping = False
        self._failed_starts: dict[Interpreter, int] = {}
        self._start_after: dict[Interpreter, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dispatch_is_due = False

    async def add(self, folder: Path) -> QueuedJob:
        """Take on a queued run. Raises BadInput for a folder that is none, or was not given to a service."""

        def read() -> tuple[RunFolder, QueueRecord | None, str | None]:
            run = RunFolder.open(folder)
            return run, read_queue_record(run.folder), run.read_status().device

        run, record, device = await asyncio.to_thread(read)
        if record is None:
            raise BadInput(f"{folder}: was not given to the service (it has no queue.json)")
        while (known_job := self.jobs.get(run.folder)) is not None:
            if not known_job.is_over:
                return known_job
            await asyncio.sleep(0.01)  # it was taken up again before it had left
        job = QueuedJob(run, record, device or run.job.device)
        self._forget_ended(run.folder)
        self.jobs[run.folder] = job
        log.info("run %s is on the queue", run.id)
        if len(self.jobs) > 1 and record.submitted < max(other.record.submitted for other in self.jobs.values()):
            self.jobs = dict(sorted(self.jobs.items(), key=lambda item: item[1].record.submitted))
        self.wake()
        return job

    async def cancel(self, job: QueuedJob) -> None:
        """Ask for a job's end: at once where no worker has it, else by message, then SIGTERM, then SIGKILL."""
        job.is_cancelled = True
        async with job.guard:
            worker = job.worker
            if worker is None:
                if job.folder in self.jobs:
                    await self._end(job, lambda: transitions.cancel(job.folder, "cancelled before it began"))
                return
            if worker.job is not job:
                return  # it has just ended
        worker.child.send(do="cancel", folder=str(job.folder))
        loop, grace = asyncio.get_running_loop(), self.settings.cancel_grace_seconds
        loop.call_later(grace, self._insist, worker, job, signal.SIGTERM)
        loop.call_later(2 * grace, self._insist, worker, job, signal.SIGKILL)

    def _insist(self, worker: Worker, job: QueuedJob, number: signal.Signals) -> None:
        if worker.job is job and worker in self.workers:
            log.info("run %s was asked to stop and has not: %s", job.run.id, number.name)
            worker.child.signal(number)

    def prewarm(self, interpreter: Interpreter) -> None:
        """Start a worker of an interpreter nobody has used yet, while its first submission is being checked."""
        if interpreter not in self.facts and not any(worker.interpreter == interpreter for worker in self.workers):
            self._start_worker(interpreter)

    def unload(self, matches: Callable[[dict[str, Any]], bool], idle_seconds: float = 0.0) -> int:
        """Ask workers to let go of resident models that match; how many they are."""
        found = [(worker, model) for worker in self.workers for model in worker.resident if matches(model)]
        for worker, fingerprint in {(worker, model["fingerprint"]) for worker, model in found}:
            worker.child.send(do="unload", fingerprint=fingerprint, idle_seconds=idle_seconds)
        return len(found)

    def position(self, job: QueuedJob) -> int | None:
        """Jobs before this one that have not begun; None once it has."""
        if job.worker is not None:
            return None
        ahead = 0
        for other in self.jobs.values():
            if other is job:
                return ahead
            ahead += other.worker is None
        return None

    def tick(self) -> None:
        """What time brings: jobs that waited long enough, models and workers nobody uses any more."""
        now, idle_seconds = asyncio.get_running_loop().time(), 60 * self.settings.resident_idle_minutes
        for worker in self.workers:
            if any(time.time() - model["last_used"] >= idle_seconds for model in worker.resident):
                worker.child.send(do="unload", fingerprint=None, idle_seconds=idle_seconds)
            elif worker.is_idle and not worker.resident and now - worker.idle_since >= idle_seconds:
                if all(job.interpreter != worker.interpreter for job in self.jobs.values()):
                    worker.dismiss()
            elif not worker.is_ready and time.time() - worker.since >= _LONGEST_START_SECONDS:
                log.error("worker %d has not started in %.0f s and is killed", worker.child.pid, _LONGEST_START_SECONDS)
                worker.child.signal(signal.SIGKILL)
        self.wake()

    def wake(self) -> None:
        """Look for jobs that can begin, soon and once."""
        if not self._dispatch_is_due and not self.is_stopping:
            self._dispatch_is_due = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_is_due = False
        if self.is_stopping:
            return
        now = asyncio.get_running_loop().time()
        in_vain: set[tuple[Interpreter, str]] = set()
        for job in list(self.jobs.values()):
            if job.worker is not None or (job.interpreter, job.device) in in_vain:
                continue
            if job.is_cancelled or job.guard.locked() or job.retry_at > now:
                continue
            known = self.facts.get(job.interpreter)
            if known is None:
                self.prewarm(job.interpreter)
                continue
            devices = _devices_for(job, known)
            if not devices:
                there = ", ".join(known.devices)
                self._soon(self._fail(job, f"--device {job.device}: is not there; this machine has {there}", ExitCode.USAGE))
                continue
            worker = self._worker_for(job, devices)
            if worker is not None:
                self._give(job, worker)
            else:  # nor would there be one for the next job that asks for the same
                in_vain.add((job.interpreter, job.device))

    def _worker_for(self, job: QueuedJob, devices: tuple[str, ...]) -> Worker | None:
        """An idle worker on a device with room for one more job: best one that holds the job's model. Starts one where there is none."""
        free = [device for device in devices if self.running_on(device) < self.places(device)]
        free = [device for device in free if device not in job.short_on] or free
        idle = [worker for worker in self.workers if worker.is_idle and worker.interpreter == job.interpreter]
        bound = [worker for worker in idle if worker.device in free]
        if bound:
            return min(bound, key=lambda worker: _rank(worker, job, free))
        unbound = next((worker for worker in idle if worker.device is None), None)
        if free and unbound is not None:
            unbound.device = free[0]
            return unbound
        starting = any(not worker.is_ready and worker.interpreter == job.interpreter for worker in self.workers)
        if free and not starting:
            self._start_worker(job.interpreter)
        return None

    def running_on(self, device: str) -> int:
        """How many jobs a device executes now."""
        return sum(worker.device == device and worker.job is not None for worker in self.workers)

    def places(self, device: str) -> int:
        """How many it may at a time."""
        return self.settings.cpu_workers if device == "cpu" else 1

    def _give(self, job: QueuedJob, worker: Worker) -> None:
        assert worker.device is not None
        job.worker, worker.job = worker, job
        log.info("run %s is given to worker %d on %s", job.run.id, worker.child.pid, worker.device)
        others = [other for other in self.workers if other.device == worker.device and other is not worker]
        held = sum(other.held_bytes for other in others)
        worker.child.send(
            do="run",
            folder=str(job.folder),
            device=worker.device,
            analysis_bytes=job.record.need.analysis_bytes,
            model_bytes=job.record.need.model_bytes,
            limit_bytes=self.settings.memory_limit_bytes(worker.device),
            others_bytes=held,
        )

    def _start_worker(self, interpreter: Interpreter) -> None:
        worker = Worker(interpreter)
        self.workers.add(worker)
        self._soon(self._attend(worker))

    async def _attend(self, worker: Worker) -> None:
        """A worker's life, from its start to its end."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(max(0.0, self._start_after.get(worker.interpreter, 0.0) - loop.time()))
            await worker.child.start()
        except (OSError, ValueError) as error:
            self.workers.discard(worker)
            tries = 1 if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | ValueError) else _KILLED_START_TRIES
            why = error.strerror if isinstance(error, OSError) else None
            await self._did_not_start(worker, f"{worker.interpreter.path}: cannot be started ({why or error})", tries)
            return
        try:
            if worker.is_leaving or self.is_stopping:
                worker.child.dismiss()
            async for message in worker.child.messages():
                try:
                    self._hear(worker, message)
                except (KeyError, TypeError, ValueError) as error:
                    log.error("worker %d said what nobody understands (%s) and is killed", worker.child.pid, error)
                    worker.child.signal(signal.SIGKILL)
            code = await worker.child.ended()
        finally:
            self.workers.discard(worker)
        log.info("worker %d %s", worker.child.pid, how_it_ended(code))
        if self.is_stopping:
            return
        if worker.job is not None:
            await self._lost(worker, worker.job, code)
        if not worker.is_ready and not worker.is_leaving:
            said = worker.child.last_words()
            sentence = (
                f"a worker with {worker.interpreter.path} {how_it_ended(code)} before it was ready{f'; it said: {said}' if said else ''}"
            )
            await self._did_not_start(worker, sentence, _KILLED_START_TRIES if code < 0 else _START_TRIES)
        self.wake()

    async def _did_not_start(self, worker: Worker, sentence: str, tries: int) -> None:
        """Another one is started after a pause, a few times. Then its interpreter's jobs fail, unless another of its workers is well."""
        interpreter = worker.interpreter
        failures = self._failed_starts.get(interpreter, 0) + 1
        self._failed_starts[interpreter] = failures
        self._start_after[interpreter] = asyncio.get_running_loop().time() + _START_PAUSE_SECONDS * failures
        if failures < tries or any(other.is_ready and not other.is_leaving for other in self.workers if other.interpreter == interpreter):
            log.warning("%s; another one is started", sentence)
        else:
            self._failed_starts[interpreter] = 0
            await self._fail_all(interpreter, sentence)
        self.wake()

    def _hear(self, worker: Worker, message: dict[str, Any]) -> None:
        match message["say"]:
            case "hello" if message["api"] != API_VERSION:
                worker.is_leaving = True
                worker.child.signal(signal.SIGKILL)
                sentence = (
                    f"{worker.interpreter.path} has another version of modelscope-app than the service; end it with `mscope service stop`"
                )
                self._soon(self._fail_all(worker.interpreter, sentence))
            case "hello":
                log.info("worker %d is ready (%s, torch %s)", worker.child.pid, worker.interpreter.path, message.get("torch"))
                self.facts[worker.interpreter] = facts(message)
                self._failed_starts[worker.interpreter] = 0
                worker.is_ready = True
                self._rest(worker)
            case "resident":
                worker.resident = [_model(model) for model in message["models"]]
            case "stale":
                worker.is_leaving = True
                self._take_back(worker)
            case "begun":
                if worker.job is not None:
                    worker.job.waiting_for = None
            case "ended" | "short" | "never" | "refused" as word if worker.job is not None:
                if str(worker.job.folder) == message["folder"]:
                    job = self._take_back(worker)
                    job.is_over = word == "ended"
                    job.worker = worker if job.is_over else None
                    self._soon(self._settle(job, message, str(worker.device)))
        self.wake()

    def _take_back(self, worker: Worker) -> QueuedJob:
        """The worker is free again; its job belongs to nobody."""
        job = worker.job
        worker.job = None
        self._rest(worker)
        if job is not None:
            job.worker = None
            if job.is_cancelled:
                self._soon(self.cancel(job))
        return job  # type: ignore[return-value]

    def _rest(self, worker: Worker) -> None:
        worker.idle_since = asyncio.get_running_loop().time()

    async def _settle(self, job: QueuedJob, message: dict[str, Any], device: str) -> None:
        """What a worker said of a job that it does not execute, or no longer."""
        word = message["say"]
        if word == "ended" and self.is_stopping:
            return  # `stop` puts it back
        if word == "ended":
            async with job.guard:
                await self._end(job, None)
        elif job.is_cancelled or job.folder not in self.jobs:
            return
        elif word == "refused":
            await self._fail(job, str(message["error"]), int(message["exit_code"]))
        elif word == "never" and self._has_another_device(job, device):
            self.wake()
        elif word == "never":
            needs, capacity = _size(message["needs_bytes"]), _size(message["capacity_bytes"])
            await self._fail(
                job, f"needs {needs} of memory{_parts(job)} and there are {capacity} in all; {_advice(job)}", ExitCode.JOB_FAILED
            )
        else:
            await self._wait(job, device, int(message["needs_bytes"]), int(message["free_bytes"]))

    def _has_another_device(self, job: QueuedJob, device: str) -> bool:
        """A device is too small for the job; whether there is another one to try."""
        job.too_small.add(device)
        known = self.facts.get(job.interpreter)
        return known is not None and job.device == "auto" and bool(_devices_for(job, known))

    async def _wait(self, job: QueuedJob, device: str, needs_bytes: int, free_bytes: int) -> None:
        """The job does not fit now. Idle workers on its device are asked for the room their models take."""
        now = asyncio.get_running_loop().time()
        job.short_on[device] = now
        known = self.facts.get(job.interpreter)
        untried = [other for other in (_devices_for(job, known) if known else ()) if other not in job.short_on]
        if any(self.running_on(other) < self.places(other) for other in untried):
            self.wake()
            return
        job.retry_at = now + min(_LONGEST_RETRY_SECONDS, RETRY_SECONDS * 2**job.waits)
        job.waits += 1
        for other in self.workers:
            if other.device == device and other.is_idle:
                other.child.send(do="unload", fingerprint=None, idle_seconds=0.0)
        sentence = f"{_size(needs_bytes)} of memory on {device}{_parts(job)}; {_size(free_bytes)} are free"
        said, job.waiting_for = job.waiting_for, sentence
        if _without_free(said) != _without_free(sentence):
            async with job.guard:
                if job.folder in self.jobs and job.worker is None and not job.is_cancelled:
                    await self._written(job, lambda: transitions.wait(job.folder, sentence))
        asyncio.get_running_loop().call_at(job.retry_at, self.wake)

    async def _fail(self, job: QueuedJob, sentence: str, exit_code: int) -> None:
        async with job.guard:
            if job.folder in self.jobs:
                await self._end(job, lambda: transitions.fail(job.folder, sentence, exit_code))

    async def _fail_all(self, interpreter: Interpreter, sentence: str) -> None:
        log.error("%s", sentence)
        for job in [job for job in self.jobs.values() if job.interpreter == interpreter and job.worker is None]:
            await self._fail(job, sentence, ExitCode.JOB_FAILED)

    async def _lost(self, worker: Worker, job: QueuedJob, code: int) -> None:
        """A worker ended while it had a job. One that had not begun stays on the queue."""
        worker.job = None
        async with job.guard:
            begun = (await asyncio.to_thread(_stored_state, job)) not in NOT_BEGUN_STATES
            job.fruitless_starts += not begun
            job.is_over = begun or job.is_cancelled
            if not begun and not job.is_cancelled and job.fruitless_starts < _BEGIN_TRIES:
                job.worker = None
            elif job.is_cancelled:
                await self._end(
                    job, lambda: transitions.cancel(job.folder, f"cancelled; it did not stop by itself, and its worker {_ended_by(code)}")
                )
            elif code < 0:
                await self._end(job, lambda: transitions.lose(job.folder, f"its worker {how_it_ended(code)}"))
            else:
                await self._end(job, lambda: transitions.lose(job.folder, f"the analysis ended its worker (exit code {code})"))

    async def _end(self, job: QueuedJob, transition: Callable[[], object] | None) -> None:
        """The job is over: its last state is written, unless it is already there, and it leaves the queue. Under its guard."""
        job.is_over = True
        try:
            if transition is not None:
                await self._written(job, transition)
            ended = await asyncio.to_thread(_left, job)
            log.info("run %s: %s%s", job.run.id, ended["state"], f" ({ended['error']})" if ended["error"] else "")
            if ended["state"] in FINAL_STATES:
                self._forget_ended(job.folder)
                self.ended.appendleft(ended)
        except (MscopeError, OSError) as error:
            log.warning("run %s: %s", job.run.id, error)
        finally:
            self.jobs.pop(job.folder, None)
        for other in self.jobs.values():  # there may be room for it now
            other.retry_at, other.waits = 0.0, 0
            other.short_on.clear()
        self.wake()

    def _forget_ended(self, folder: Path) -> None:
        """A run that is taken up again is listed once."""
        for ended in [ended for ended in self.ended if ended["folder"] == str(folder)]:
            self.ended.remove(ended)

    async def _written(self, job: QueuedJob, transition: Callable[[], object]) -> None:
        """Write to a run folder. Where somebody else has the run, or the disk is full, the run is left as it is."""
        try:
            await asyncio.to_thread(transition)
        except (MscopeError, OSError) as error:
            log.warning("run %s: its state could not be written (%s)", job.run.id, error)

    async def stop(self) -> None:
        """End every worker; jobs that were running go back to the queue, for the next service."""
        self.is_stopping = True
        had = [worker.job for worker in self.workers if worker.job is not None]
        for worker in self.workers:
            worker.dismiss()
        deadline = asyncio.get_running_loop().time() + _LAST_WORDS_SECONDS
        while self.workers and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        for worker in self.workers:
            worker.child.signal(signal.SIGKILL)
        deadline += _KILLED_SECONDS
        while self.workers and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        for worker in self.workers:
            log.error("worker %d does not end, whatever it is sent", worker.child.pid)
        for job in had:
            try:
                async with job.guard:
                    if job.folder in self.jobs:
                        await self._put_back(job)
            except (MscopeError, OSError) as error:
                log.warning("run %s: could not be put back on the queue (%s)", job.run.id, error)

    async def _put_back(self, job: QueuedJob) -> None:
        state = (await asyncio.to_thread(job.run.read_status)).state
        if job.is_cancelled and state == "lost":
            await self._end(job, lambda: transitions.cancel(job.folder, "cancelled"))
        elif state in FINAL_STATES - {"lost"}:
            await self._end(job, None)
        else:
            await self._written(job, lambda: transitions.queue_again(job.folder, replace(job.record)))

    def _soon(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an error nobody foresaw", exc_info=error)


def _stored_state(job: QueuedJob) -> str:
    """What status.json says; a run that cannot be read counts as begun."""
    try:
        return read_stored_status(job.folder).state
    except MscopeError:
        return "lost"


def _left(job: QueuedJob) -> dict[str, Any]:
    """The last the service does for a run: it is no longer on the queue. How it ended.

    A run whose last state could not be written (a full disk) is no longer the service's either; one that another process has
    taken up keeps its record until that process is done.
    """
    ended = ended_json(job.run, job.record)
    try:
        lock = RunLock(job.folder, "queue")
    except BadInput:
        return ended
    try:
        record = read_queue_record(job.folder)
        if record is not None and record.submitted == job.record.submitted:  # it was not taken up again meanwhile
            drop_queue_record(job.folder)
    finally:
        lock.release()
    return ended


def _ended_by(code: int) -> str:
    """How a worker ended that was told to, by message and by signals."""
    return "was killed" if code == -signal.SIGKILL else how_it_ended(code)


def _rank(worker: Worker, job: QueuedJob, devices: list[str]) -> tuple[float, bool, int, int]:
    """How well a worker suits a job, the best least: where it was not tried in vain, the model is resident, the device comes first."""
    device = str(worker.device)
    return job.short_on.get(device, -math.inf), not worker.holds(job.fingerprints), devices.index(device), worker.resident_bytes


def _devices_for(job: QueuedJob, known: Facts) -> tuple[str, ...]:
    """Where a job may run, best first: those it did not fit on come last, the latest at the end. None where its device is not there."""
    if job.device != "auto":
        return (job.device,) if job.device in known.devices else ()
    accelerators = tuple(device for device in known.devices if device != "cpu")
    devices = [device for device in accelerators or ("cpu",) if device not in job.too_small]
    return tuple(sorted(devices, key=lambda device: job.short_on.get(device, -math.inf)))


def _model(model: dict[str, Any]) -> dict[str, Any]:
    return {**model, "fingerprint": str(model["fingerprint"]), "path": str(model["path"]), "memory_bytes": int(model["memory_bytes"])}


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(2_500_000_000), _size(12_000_000)
    ('2.5 GB', '12 MB')
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6)):,} MB"


def _parts(job: QueuedJob) -> str:
    need = job.record.need
    if not need.model_bytes:
        return ""
    return f" ({_size(need.model_bytes)} for the model, {_size(need.analysis_bytes)} for the analysis)"


def _advice(job: QueuedJob) -> str:
    return "use a smaller dtype, smaller batches or another --device" if job.record.need.model_bytes else "use another --device"


def _without_free(sentence: str | None) -> str | None:
    """A waiting sentence without the figure that changes all the time."""
    return sentence.rpartition(";")[0] if sentence else sentence
