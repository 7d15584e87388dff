"""Whether a job would fit, asked before it is submitted: what it needs, as a preparer says, held against what is known of devices.

The rules are those by which the scheduler chooses a worker and a worker admits a job (`jobs.ledger`), and the words those of a job
that waits or cannot run. A worker uses and unloads its own models alone: what others hold is taken. What the service does not know it
says so: how much of a GPU others take is known to workers alone, so there all that no worker of this service holds counts as free.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelscope_app.api import JobFailed, UsageError
from modelscope_app.jobs.answers import Fit
from modelscope_app.jobs.device_memory import DeviceMemory, device_memory
from modelscope_app.jobs.ledger import Fits, Holding, Never, admission, within_limit
from modelscope_app.jobs.service.child import Interpreter
from modelscope_app.jobs.service.preparers import Preparers
from modelscope_app.jobs.service.queued_job import QueuedJob
from modelscope_app.jobs.service.scheduler import Scheduler
from modelscope_app.jobs.service.workers import Worker
from modelscope_app.models.names import check_device
from modelscope_app.runs.queue_record import Need
from modelscope_app.runs.reading import shaped

_HELLO_SECONDS = 30.0
"""For a first worker to say which GPUs there are."""
_POLL_SECONDS = 0.05
_GPU_FILES = ("nvidia[0-9]*", "kfd")
"""In /dev, where the driver of a GPU is."""

_BASIS = {"declared": "as it declares", "earlier runs": "from earlier runs", "unknown": "for the analysis nothing is known"}
_TRIED = {"fits": 0, "unknown": 0, "will wait": 1, "does not fit": 2}
"""When a job that may go to several devices settles for one: it begins also where nobody knows whether it fits."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a job needs."""

    fingerprint: str
    path: str
    dtype: str
    """What it is built in, by torch's name."""

    def is_resident(self, resident: Mapping[str, Any]) -> bool:
        """Whether it is this one, of those a worker says it holds."""
        return (self.fingerprint, self.path, self.dtype) == (resident["fingerprint"], resident["path"], resident.get("dtype"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a preparer said of a job that was not submitted."""

    need: Need
    fingerprints: frozenset[str]
    """Of its checkpoints, by which a worker is chosen."""
    models: Sequence[Model] = ()
    """Those it would build, each as often as it uses it."""
    why_unknown: str | None = None
    """Why its own estimate is not there, where it failed."""


@dataclass(frozen=True, slots=True)
class Place:
    """A device as it stands now."""

    device: str
    memory: DeviceMemory | None
    """All of it and what is free; None where nobody has said."""
    limit_bytes: int | None = None
    """The most that jobs may take."""
    holdings: Sequence[Holding] = ()
    """Models resident with the worker it would go to; the job uses those that are needed."""
    taken_bytes: int = 0
    """What other workers hold of it, and what jobs that begin before this one are expected to take."""
    running: int = 0
    """Jobs that run there."""
    places: int = 1
    """How many can at a time."""
    queued: int = 0
    """Jobs that may go there and have not begun."""
    ahead: int = 0
    """Of those, the ones that take a free place before this one."""


async def fit_of(preparers: Preparers, scheduler: Scheduler, interpreter: Interpreter, submission: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to POST /estimates. Raises UsageError, BadInput for what a submission would be refused for."""
    try:
        answer = await preparers.estimate(interpreter, **{**submission, "do": "estimate"})
    except JobFailed as error:
        return _answer(Fit("unknown", f"unknown: {error}"))
    fingerprints = [str(fingerprint) for fingerprint in answer["fingerprints"]]
    wanted = Wanted(
        shaped(Need, answer["need"]),
        frozenset(fingerprints),
        tuple(shaped(Model, model) for model in answer.get("models", ())),
        next(map(str, answer.get("warnings", [])), None),
    )
    places = await _places(scheduler, interpreter, check_device(str(submission["device"])), wanted)
    if places is None:
        return _answer(Fit("unknown", f"unknown: {_needed(wanted.need, 0)}; no worker has said yet which devices there are", wanted.need))
    return _answer(min((fit(wanted, place) for place in places), key=lambda found: _TRIED[found.verdict]))


def fit(wanted: Wanted, place: Place) -> Fit:
    """Whether a job would begin on a device now, wait for it, or never fit."""
    need = wanted.need
    there_bytes = sum(holding.memory_bytes for holding in place.holdings if holding.is_needed)
    needs_bytes = need.analysis_bytes + max(0, need.model_bytes - there_bytes)
    own_bytes = sum(holding.memory_bytes for holding in place.holdings)
    needed, before = _needed(need, there_bytes), _before(place)
    room = within_limit(place.memory or DeviceMemory(0, 0), place.limit_bytes, own_bytes, place.taken_bytes)
    if room is None and before is not None:
        return Fit("will wait", f"will wait: {before}; {needed}", need, place.device)
    if room is None:
        return Fit("unknown", f"unknown: {needed}; how much memory {place.device} has is not known", need, place.device)
    free_bytes = max(0, room.free_bytes + own_bytes - there_bytes)
    decision = admission(needs_bytes, place.holdings, room.free_bytes, room.capacity_bytes)

    def said(verdict: Any, sentence: str) -> Fit:
        return Fit(verdict, f"{verdict}: {sentence}", need, place.device, free_bytes, room.capacity_bytes)

    if isinstance(decision, Never):
        advice = "use a smaller dtype, smaller batches or another --device" if need.model_bytes else "use another --device"
        return said("does not fit", f"{needed}, and {place.device} has {size(room.capacity_bytes)} in all; {advice}")
    free = f"{size(free_bytes)} free on {place.device}"
    if before is not None:
        return said("will wait", f"{before}; {needed}, {free}")
    if not isinstance(decision, Fits):
        return said("will wait", f"{needed}, and only {free}")
    if need.basis == "unknown":
        return said("unknown", f"{wanted.why_unknown or needed}; {free}")
    gone = len(decision.evict)
    after = f" once {gone} resident model{' has' if gone == 1 else 's have'} gone" if gone else ""
    return said("fits", f"{needed}, {free}{after}")


def size(count: int) -> str:
    """Bytes for people.

    >>> size(2_500_000_000), size(12_000_000), size(0)
    ('2.5 GB', '12 MB', '0 MB')
    """
    if count >= 1e9:
        return f"{count / 1e9:,.1f} GB"
    return f"{max(1, round(count / 1e6)) if count else 0:,} MB"


def _needed(need: Need, there_bytes: int) -> str:
    """`610 MB needed (270 MB for the model, 340 MB for the analysis, from earlier runs)`."""
    if need.basis == "unknown" and not need.model_bytes:
        return "neither the analysis nor an earlier run says what it needs"
    model_bytes = max(0, need.model_bytes - there_bytes)
    parts = []
    if need.model_bytes:
        parts.append(f"{size(model_bytes)} for the model" if model_bytes else "its model is resident")
        if need.basis != "unknown":
            parts.append(f"{size(need.analysis_bytes)} for the analysis")
    parts.append(_BASIS[need.basis])
    at_least = "at least " if need.basis == "unknown" else ""
    return f"{at_least}{size(need.analysis_bytes + model_bytes)} needed ({', '.join(parts)})"


def _before(place: Place) -> str | None:
    """Which jobs a new one waits for; None where there is a place for it."""
    if place.running >= place.places:
        runs = f"{place.running} job{' runs' if place.running == 1 else 's run'} on {place.device}"
        return runs if not place.queued else f"{runs} and {place.queued} {'is' if place.queued == 1 else 'are'} queued"
    if place.running + place.ahead >= place.places:
        return f"{place.ahead} job{' is' if place.ahead == 1 else 's are'} queued before it"
    return None


def _answer(found: Fit) -> dict[str, Any]:
    return asdict(found)


async def _places(scheduler: Scheduler, interpreter: Interpreter, device: str, wanted: Wanted) -> list[Place] | None:
    """The devices the job may go to, as they stand, in the order in which the scheduler tries them. None where they are not known in
    time. Raises UsageError for one not there."""
    known = scheduler.facts.get(interpreter)
    if known is None and device != "cpu" and (device != "auto" or await asyncio.to_thread(_may_have_a_gpu)):
        known = await _hello(scheduler, interpreter)
        if known is None:
            return None
    there = known.devices if known is not None else ("cpu",)
    if device != "auto" and device not in there:
        raise UsageError(f"--device {device}: is not there; this machine has {', '.join(there)}")
    devices = _devices(device, there)
    capacities = known.capacity_bytes if known is not None else {}
    memory = {one: await _memory(one, capacities.get(one) or None) for one in devices}
    workers = {one: _worker(scheduler, interpreter, one, wanted.fingerprints) for one in devices}
    ahead = _ahead(scheduler, interpreter, workers, there)
    devices = sorted(devices, key=lambda one: _rank(workers[one], wanted.fingerprints))
    return [_place(scheduler, one, memory[one], workers[one], ahead[one], there, wanted) for one in devices]


def _devices(asked: str, there: Sequence[str]) -> list[str]:
    """Where a job may run that asks for this device."""
    accelerators = [device for device in there if device != "cpu"]
    return [asked] if asked != "auto" else accelerators or ["cpu"]


async def _memory(device: str, capacity_bytes: int | None) -> DeviceMemory | None:
    if device != "cpu":
        return None if capacity_bytes is None else DeviceMemory(capacity_bytes, capacity_bytes)
    measured = await asyncio.to_thread(device_memory, "cpu")
    return DeviceMemory(min(measured.capacity_bytes, capacity_bytes or measured.capacity_bytes), measured.free_bytes)


def _ahead(
    scheduler: Scheduler, interpreter: Interpreter, workers: Mapping[str, Worker | None], there: Sequence[str]
) -> Mapping[str, list[QueuedJob]]:
    """Jobs that begin on each device before a new one, which has these workers. It overtakes those that did not fit, until they are
    tried again, and those of other interpreters, while it has a worker there and they may not have theirs."""
    now = asyncio.get_running_loop().time()
    ahead: defaultdict[str, list[QueuedJob]] = defaultdict(list)
    for job in scheduler.jobs.values():
        if job.worker is not None or job.is_cancelled or job.retry_at > now:
            continue
        devices = [one for one in _devices_of(scheduler, job, there) if job.interpreter == interpreter or workers.get(one) is None]
        free = [one for one in devices if scheduler.running_on(one) + len(ahead[one]) < scheduler.places(one)]
        first = {one: _rank(_worker(scheduler, job.interpreter, one, job.fingerprints), job.fingerprints) for one in free}
        for one in [min(first, key=first.__getitem__)] if first else devices:
            ahead[one].append(job)
    return ahead


def _devices_of(scheduler: Scheduler, job: QueuedJob, there: Sequence[str]) -> list[str]:
    """Where a queued job may begin; `there` is what is there where no worker of its interpreter has said so."""
    known = scheduler.facts.get(job.interpreter)
    return [device for device in _devices(job.device, there if known is None else known.devices) if device not in job.too_small]


def _worker(scheduler: Scheduler, interpreter: Interpreter, device: str, fingerprints: frozenset[str]) -> Worker | None:
    """Who would execute a job on a device, as the scheduler chooses; where no place is free, who may when one is.

    None where a worker has to be started for it.
    """
    is_full = scheduler.running_on(device) >= scheduler.places(device)
    own = [worker for worker in scheduler.workers if worker.interpreter == interpreter and not worker.is_leaving]
    bound = [worker for worker in own if worker.device == device and (worker.is_idle or is_full)]
    unbound = next((worker for worker in own if worker.device is None and worker.is_idle), None)
    return min(bound, key=lambda worker: (not worker.is_idle, *_rank(worker, fingerprints), worker.resident_bytes), default=unbound)


def _rank(worker: Worker | None, fingerprints: frozenset[str]) -> tuple[bool, bool]:
    """How well the worker of a device suits a job, the best least: it is there, and has a model of its checkpoints."""
    return worker is None or worker.device is None, worker is None or not worker.holds(fingerprints)


def _place(
    scheduler: Scheduler,
    device: str,
    memory: DeviceMemory | None,
    worker: Worker | None,
    ahead: Sequence[QueuedJob],
    there: Sequence[str],
    wanted: Wanted,
) -> Place:
    held_bytes = sum(other.held_bytes for other in scheduler.workers if other.device == device)
    beside = ahead[: max(0, scheduler.places(device) - scheduler.running_on(device) - 1)]  # the others have ended when it begins
    return Place(
        device,
        memory,
        scheduler.settings.memory_limit_bytes(device),
        _holdings(worker.resident if worker is not None else (), wanted.models),
        held_bytes - (worker.resident_bytes if worker is not None else 0) + sum(job.record.need.total_bytes for job in beside),
        scheduler.running_on(device),
        scheduler.places(device),
        sum(job.worker is None and device in _devices_of(scheduler, job, there) for job in scheduler.jobs.values()),
        len(ahead),
    )


def _holdings(resident: Sequence[Mapping[str, Any]], models: Sequence[Model]) -> list[Holding]:
    """What a worker has resident. Of each model that a job needs, as many are needed as it uses."""
    missing, holdings = list(models), []
    for one in resident:
        found = next((model for model in missing if model.is_resident(one)), None)
        if found is not None:
            missing.remove(found)
        key = one["fingerprint"], one["path"], one.get("dtype")
        holdings.append(Holding(key, one["memory_bytes"], one["last_used"], found is not None))
    return holdings


async def _hello(scheduler: Scheduler, interpreter: Interpreter) -> Any:
    """What the first worker of an interpreter says of the machine; None where it takes too long."""
    scheduler.prewarm(interpreter)
    deadline = asyncio.get_running_loop().time() + _HELLO_SECONDS
    while interpreter not in scheduler.facts and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
    return scheduler.facts.get(interpreter)


def _may_have_a_gpu() -> bool:
    return any(next(Path("/dev").glob(name), None) is not None for name in _GPU_FILES)
