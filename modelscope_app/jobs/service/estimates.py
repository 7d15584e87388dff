"""Whether a job would fit, asked before it is submitted: what it needs, as a preparer says, held against what is known of devices.

The rules are those by which a worker admits a job (`jobs.ledger`), and the words those of a job that waits or cannot run. What the
service does not know it says so: how much of a GPU others take is known to workers alone, so there all that no worker of this
service holds counts as free.
"""

from __future__ import annotations

import asyncio
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
from modelscope_app.jobs.service.scheduler import Scheduler
from modelscope_app.models.names import check_device, check_dtype
from modelscope_app.runs.queue_record import Need
from modelscope_app.runs.reading import shaped

_HELLO_SECONDS = 30.0
"""For a first worker to say which GPUs there are."""
_POLL_SECONDS = 0.05
_GPU_FILES = ("nvidia[0-9]*", "kfd")
"""In /dev, where the driver of a GPU is."""

_BASIS = {"declared": "as it declares", "earlier runs": "from earlier runs", "unknown": "for the analysis nothing is known"}
_ORDER = ("fits", "will wait", "unknown", "does not fit")
"""Which of several devices a job would rather go to."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a preparer said of a job that was not submitted."""

    need: Need
    fingerprints: frozenset[str]
    """Of its checkpoints."""
    dtype: str
    """As asked."""
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
    """Models resident there; the job uses those that are needed."""
    pending_bytes: int = 0
    """What running jobs are expected to take of it, beyond those."""
    running: int = 0
    """Jobs that run there."""
    places: int = 1
    """How many can at a time."""
    queued: int = 0
    """Jobs that may go there and have not begun."""


async def fit_of(preparers: Preparers, scheduler: Scheduler, interpreter: Interpreter, submission: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to POST /estimates. Raises UsageError, BadInput for what a submission would be refused for."""
    try:
        answer = await preparers.estimate(interpreter, **{**submission, "do": "estimate"})
    except JobFailed as error:
        return _answer(Fit("unknown", f"unknown: {error}"))
    wanted = Wanted(
        shaped(Need, answer["need"]),
        frozenset(map(str, answer["fingerprints"])),
        str(submission["dtype"]),
        next(map(str, answer.get("warnings", [])), None),
    )
    places = await _places(scheduler, interpreter, check_device(str(submission["device"])), wanted)
    if places is None:
        return _answer(Fit("unknown", f"unknown: {_needed(wanted.need, 0)}; no worker has said yet which devices there are", wanted.need))
    return _answer(min((fit(wanted, place) for place in places), key=lambda found: _ORDER.index(found.verdict)))


def fit(wanted: Wanted, place: Place) -> Fit:
    """Whether a job would begin on a device now, wait for it, or never fit."""
    need = wanted.need
    there_bytes = sum(holding.memory_bytes for holding in place.holdings if holding.is_needed)
    needs_bytes = need.analysis_bytes + max(0, need.model_bytes - there_bytes)
    own_bytes = sum(holding.memory_bytes for holding in place.holdings)
    needed = _needed(need, there_bytes)
    room = within_limit(place.memory or DeviceMemory(0, 0), place.limit_bytes, own_bytes, place.pending_bytes)
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
    if place.running >= place.places:
        return said("will wait", f"{_busy(place)}; {needed}, {free}")
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


def _busy(place: Place) -> str:
    runs = f"{place.running} job{' runs' if place.running == 1 else 's run'} on {place.device}"
    return runs if not place.queued else f"{runs} and {place.queued} {'is' if place.queued == 1 else 'are'} queued"


def _answer(found: Fit) -> dict[str, Any]:
    return asdict(found)


async def _places(scheduler: Scheduler, interpreter: Interpreter, device: str, wanted: Wanted) -> list[Place] | None:
    """The devices the job may go to, as they stand. None where they are not known in time. Raises UsageError for one not there."""
    known = scheduler.facts.get(interpreter)
    if known is None and device != "cpu" and (device != "auto" or await asyncio.to_thread(_may_have_a_gpu)):
        known = await _hello(scheduler, interpreter)
        if known is None:
            return None
    there = known.devices if known is not None else ("cpu",)
    if device != "auto" and device not in there:
        raise UsageError(f"--device {device}: is not there; this machine has {', '.join(there)}")
    accelerators = [other for other in there if other != "cpu"]
    devices = [device] if device != "auto" else accelerators or ["cpu"]
    capacities = known.capacity_bytes if known is not None else {}
    return [await _place(scheduler, one, capacities.get(one) or None, wanted) for one in devices]


async def _place(scheduler: Scheduler, device: str, capacity_bytes: int | None, wanted: Wanted) -> Place:
    memory = None if capacity_bytes is None else DeviceMemory(capacity_bytes, capacity_bytes)
    if device == "cpu":
        measured = await asyncio.to_thread(device_memory, "cpu")
        memory = DeviceMemory(min(measured.capacity_bytes, capacity_bytes or measured.capacity_bytes), measured.free_bytes)
    workers = [worker for worker in scheduler.workers if worker.device == device]
    return Place(
        device,
        memory,
        scheduler.settings.memory_limit_bytes(device),
        [_holding(model, wanted) for worker in workers for model in worker.resident],
        sum(worker.held_bytes - worker.resident_bytes for worker in workers),
        scheduler.running_on(device),
        scheduler.places(device),
        sum(job.worker is None and job.device in (device, "auto") for job in scheduler.jobs.values()),
    )


def _holding(model: Mapping[str, Any], wanted: Wanted) -> Holding:
    asked = check_dtype(wanted.dtype)
    is_needed = wanted.need.model_bytes > 0 and model["fingerprint"] in wanted.fingerprints and asked in (None, model.get("dtype"))
    return Holding((model["fingerprint"], model.get("dtype")), model["memory_bytes"], model["last_used"], is_needed)


async def _hello(scheduler: Scheduler, interpreter: Interpreter) -> Any:
    """What the first worker of an interpreter says of the machine; None where it takes too long."""
    scheduler.prewarm(interpreter)
    deadline = asyncio.get_running_loop().time() + _HELLO_SECONDS
    while interpreter not in scheduler.facts and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
    return scheduler.facts.get(interpreter)


def _may_have_a_gpu() -> bool:
    return any(next(Path("/dev").glob(name), None) is not None for name in _GPU_FILES)
