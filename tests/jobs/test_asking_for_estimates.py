"""Whether a job would fit, asked before it is submitted: what a preparer says it needs, and what the service makes of that."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jobs.pretend_service import answer, pretending
from jobs.test_background_jobs_survive import install_hostile
from jobs.test_service_scheduling import Machine, until
from preparer_process import PreparerProcess, request
from service_process import Background, background

from modelscope_app.api import BadInput, UsageError
from modelscope_app.jobs import Client
from modelscope_app.jobs.address import log_path, service_socket
from modelscope_app.jobs.answers import Fit
from modelscope_app.jobs.device_memory import DeviceMemory
from modelscope_app.jobs.ledger import Holding
from modelscope_app.jobs.service import estimates, preparers
from modelscope_app.jobs.service.child import Interpreter
from modelscope_app.jobs.service.estimates import Model, Place, Wanted, fit, fit_of
from modelscope_app.jobs.service.preparers import Preparers
from modelscope_app.jobs.service.queued_job import QueuedJob
from modelscope_app.jobs.service.scheduler import Scheduler
from modelscope_app.jobs.service.workers import Facts, Worker
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import all_runs
from modelscope_app.runs.job import Job, JobCheckpoint
from modelscope_app.runs.queue_record import Need, QueueRecord
from modelscope_app.settings import ServiceSettings

pytest_plugins = ["preparer_process"]

SAMPLE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp"
GB = 10**9


# What a preparer says


def asked(preparer: PreparerProcess, analysis: str, *checkpoints: Any, **changes: Any) -> dict[str, Any]:
    return preparer.ask(**{**request(analysis, *checkpoints, **changes), "do": "estimate"})


def test_an_estimate_is_that_of_a_submission_and_leaves_nothing_behind(preparer: PreparerProcess) -> None:
    said = asked(preparer, "submitted.declaring", params={"megabytes": 3, "seconds": 9.5})
    assert (said["say"], said["warnings"], said["fingerprints"]) == ("estimated", [], [])
    assert said["need"] == {"analysis_bytes": 3 << 20, "model_bytes": 0, "seconds": 9.5, "basis": "declared", "declared_bytes": 3 << 20}
    assert all_runs() == []
    assert preparer.prepared("submitted.plain")["say"] == "prepared"


def test_an_estimate_names_the_models_that_would_be_built(preparer: PreparerProcess) -> None:
    said = asked(preparer, "submitted.model", SAMPLE)
    assert said["need"]["model_bytes"] > 0 and len(said["fingerprints"]) == 1
    model = {"fingerprint": said["fingerprints"][0], "path": str(SAMPLE), "dtype": "float32"}
    assert said["models"] == [model]
    assert asked(preparer, "submitted.model", SAMPLE, dtype="bf16")["models"] == [{**model, "dtype": "bfloat16"}]
    only_named = asked(preparer, "submitted.weights", SAMPLE)
    assert only_named["fingerprints"] == said["fingerprints"] and only_named["models"] == []


@pytest.mark.parametrize("how", ["raise", "exit", "panic", "interrupt", "nothing", "negative", "nan", "text", "print", "recursion"])
def test_an_estimate_that_fails_is_a_warning_and_no_refusal(preparer: PreparerProcess, how: str) -> None:
    said = asked(preparer, "submitted.hostile", params={"how": how})
    assert said["say"] == "estimated" and said["need"]["analysis_bytes"] in (0, 1)
    assert how == "print" or "the estimate of submitted.hostile failed" in said["warnings"][0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"params": {"rows": 0}}, "--rows 0: takes an integer from 1 to 100000 (default 4)"),
        ({"params": {"rosw": 1}}, "no option 'rosw'; did you mean --rows?"),
        ({"device": "tpu"}, "--device 'tpu'"),
        ({"dtype": "int3"}, "--dtype 'int3'"),
        ({"params": {"data": "/nowhere/rows.csv"}}, "/nowhere/rows.csv: cannot be read"),
        ({"params": {"earlier": "20200101"}}, "no run '20200101'"),
        ({"checkpoints": ["/nowhere"]}, "submitted.plain takes no checkpoint"),
    ],
)
def test_what_a_submission_is_refused_for_an_estimate_is_refused_for(preparer: PreparerProcess, changes: Any, sentence: str) -> None:
    said = asked(preparer, "submitted.plain", **changes)
    assert said["say"] == "refused" and sentence in said["error"]
    assert said["error"] == preparer.prepare("submitted.plain", **changes)["error"]


# What is made of it


def wanted(analysis_bytes: int, model_bytes: int = 0, basis: Any = "declared", why: str | None = None) -> Wanted:
    return Wanted(Need(analysis_bytes, model_bytes, None, basis), frozenset({"mine"}), (Model("mine", "/mine", "float32"),), why)


def place(free: float, capacity: float, **changes: Any) -> Place:
    return Place("cuda:0", DeviceMemory(int(capacity * GB), int(free * GB)), **changes)


def test_a_job_that_fits_says_what_it_needs_and_what_is_free() -> None:
    found = fit(wanted(340_000_000, 270_000_000, "earlier runs"), place(24.1, 25))
    assert found.verdict == "fits" and found.device == "cuda:0" and found.capacity_bytes == 25 * GB
    assert found.sentence == (
        "fits: 610 MB needed (270 MB for the model, 340 MB for the analysis, from earlier runs), 24.1 GB free on cuda:0"
    )
    assert fit(wanted(2 * GB), place(3, 8)).sentence == "fits: 2.0 GB needed (as it declares), 3.0 GB free on cuda:0"


def test_a_resident_model_counts_once_and_others_may_go_for_it() -> None:
    mine, other = Holding("mine", 4 * GB, 2.0, is_needed=True), Holding("other", 3 * GB, 1.0)
    found = fit(wanted(2 * GB, 4 * GB), place(1, 8, holdings=(mine, other)))
    assert found.sentence == (
        "fits: 2.0 GB needed (its model is resident, 2.0 GB for the analysis, as it declares), 4.0 GB free on cuda:0 "
        "once 1 resident model has gone"
    )


def test_a_job_that_does_not_fit_now_waits() -> None:
    assert fit(wanted(5 * GB), place(3, 8)).sentence == "will wait: 5.0 GB needed (as it declares), and only 3.0 GB free on cuda:0"
    pending = fit(wanted(5 * GB), place(8, 8, taken_bytes=6 * GB, running=0))
    assert (pending.verdict, pending.free_bytes) == ("will wait", 2 * GB)


def test_a_job_waits_for_those_before_it_however_small() -> None:
    found = fit(wanted(GB), place(8, 8, running=1, queued=2))
    assert found.sentence == "will wait: 1 job runs on cuda:0 and 2 are queued; 1.0 GB needed (as it declares), 8.0 GB free on cuda:0"
    assert fit(wanted(GB), place(8, 8, running=1, places=2)).verdict == "fits"
    assert fit(wanted(0, basis="unknown"), place(8, 8, running=1)).verdict == "will wait"
    assert fit(wanted(GB), Place("cpu", None, running=1)).sentence == "will wait: 1 job runs on cpu; 1.0 GB needed (as it declares)"


def test_a_free_place_is_for_those_who_were_there_first() -> None:
    found = fit(wanted(GB), place(8, 8, queued=2, ahead=2))
    assert found.sentence == "will wait: 2 jobs are queued before it; 1.0 GB needed (as it declares), 8.0 GB free on cuda:0"
    assert fit(wanted(GB), place(8, 8, running=1, places=2, ahead=1)).sentence.startswith("will wait: 1 job is queued before it; ")
    assert fit(wanted(GB), place(8, 8, places=2, queued=3, ahead=1)).verdict == "fits"
    assert fit(wanted(9 * GB), place(8, 8, ahead=1)).verdict == "does not fit"


def test_a_job_that_is_too_large_for_the_device_never_fits() -> None:
    found = fit(wanted(60 * GB, 30 * GB), place(80, 80))
    assert found.sentence == (
        "does not fit: 90.0 GB needed (30.0 GB for the model, 60.0 GB for the analysis, as it declares), and cuda:0 has 80.0 GB in all; "
        "use a smaller dtype, smaller batches or another --device"
    )
    assert fit(wanted(5 * GB), place(80, 80, limit_bytes=4 * GB)).verdict == "does not fit"
    assert fit(wanted(0, 90 * GB, "unknown"), place(80, 80, running=1)).verdict == "does not fit"


def test_what_nobody_knows_is_unknown_with_the_reason() -> None:
    nothing = fit(wanted(0, basis="unknown"), place(8, 8))
    assert nothing.sentence == "unknown: neither the analysis nor an earlier run says what it needs; 8.0 GB free on cuda:0"
    assert fit(wanted(0, 2 * GB, "unknown"), place(8, 8)).sentence == (
        "unknown: at least 2.0 GB needed (2.0 GB for the model, for the analysis nothing is known); 8.0 GB free on cuda:0"
    )
    assert fit(wanted(0, basis="unknown", why="the estimate of a.b failed"), place(8, 8)).sentence.startswith(
        "unknown: the estimate of a.b failed; 8.0 GB free"
    )
    assert fit(wanted(GB), Place("cuda:0", None)).sentence == (
        "unknown: 1.0 GB needed (as it declares); how much memory cuda:0 has is not known"
    )


# The service with a real preparer and pretended workers


def submission_of(analysis: str, *checkpoints: Any, **changes: Any) -> dict[str, Any]:
    """As the service asks a preparer, which numbers the question itself."""
    return {key: value for key, value in request(analysis, *checkpoints, **changes).items() if key != "id"}


def resident(fingerprint: str, gigabytes: float, dtype: str = "float32", path: str | None = None) -> dict[str, Any]:
    """A model as a worker tells of it."""
    known = {"device": "cpu", "last_used": 1.0, "dtype": dtype, "memory_bytes": int(gigabytes * GB)}
    return {"fingerprint": fingerprint, "path": path or f"/{fingerprint}", **known}


class Asking:
    """What `POST /estimates` does, in this process."""

    def __init__(self, site: Path) -> None:
        self.preparers = Preparers()
        self.scheduler = Scheduler(ServiceSettings())
        self.interpreter = Interpreter(sys.executable, str(site))
        self.started: list[Interpreter] = []
        self.scheduler.prewarm = self.started.append  # type: ignore[method-assign]

    def has(self, interpreter: Interpreter | None = None, **devices: float) -> None:
        capacities = {name.replace("_", ":"): int(size * GB) for name, size in devices.items()}
        facts = Facts(tuple(capacities), {name: name for name in capacities}, capacities)
        self.scheduler.facts[interpreter or self.interpreter] = facts

    def worker(self, device: str | None, *models: tuple[Any, ...], interpreter: Interpreter | None = None) -> Worker:
        """An idle one that holds these models (see `resident`)."""
        worker = Worker(interpreter or self.interpreter)
        worker.device, worker.is_ready = device, True
        worker.resident = [resident(*model) for model in models]
        self.scheduler.workers.add(worker)
        return worker

    def job(self, device: str = "auto", needs: float = 0, checkpoints: tuple[str, ...] = (), by: Interpreter | None = None) -> QueuedJob:
        """One that nobody has queued yet."""
        number, interpreter = f"{len(self.scheduler.jobs)}-{time.monotonic_ns()}", by or self.interpreter
        named = tuple(JobCheckpoint(f"/{name}", name) for name in checkpoints)
        created = "2026-01-01T00:00:00Z"
        asked = Job(number, "submitted.plain", 1, {}, {}, named, (), device, "auto", 0, created, "mscope", interpreter.path)
        record = QueueRecord(0.0, "here", interpreter.path, interpreter.python_path, Need(int(needs * GB), 0, None, "declared"))
        return QueuedJob(RunFolder.create(log_path().parent / number, asked, record), record, device)

    def queued(self, *args: Any, worker: Worker | None = None, **changes: Any) -> QueuedJob:
        job = self.job(*args, **changes)
        self.scheduler.jobs[job.folder] = job
        if worker is not None:
            job.worker, worker.job = worker, job
        return job

    def says(self, analysis: float, model: float = 0, *models: tuple[str, str | None]) -> None:
        """Preparers say from now on that a job needs so many GB, and these models: of each its fingerprint and dtype."""

        async def estimate(interpreter: Interpreter, **message: Any) -> dict[str, Any]:
            need = {"analysis_bytes": int(analysis * GB), "model_bytes": int(model * GB), "seconds": None, "basis": "declared"}
            said = [{"fingerprint": name, "path": f"/{name}", "dtype": dtype} for name, dtype in models]
            return {"need": need, "fingerprints": [name for name, _ in models], "models": said}

        self.preparers.estimate = estimate  # type: ignore[method-assign]

    async def fit(self, analysis: str = "submitted.plain", *checkpoints: Any, **asked: Any) -> Fit:
        """With `device` and `dtype` where they are not `auto`; all else are params."""
        host = {name: asked.pop(name) for name in ("device", "dtype") if name in asked}
        submission = submission_of(analysis, *checkpoints, params=asked, **host)
        return Fit.from_json(await fit_of(self.preparers, self.scheduler, self.interpreter, submission))


@pytest.fixture
async def asking(plugin_site: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asking]:
    monkeypatch.setenv("PYTHONPATH", str(plugin_site))
    monkeypatch.setattr(estimates, "_may_have_a_gpu", lambda: False)
    log_path().parent.mkdir(parents=True)
    made = Asking(plugin_site)
    yield made
    await made.preparers.end()
    for one in made.preparers._all:
        await one.child.ended()


async def test_without_a_worker_the_memory_of_the_machine_is_known(asking: Asking) -> None:
    found = await asking.fit("submitted.declaring", megabytes=3)
    assert found.verdict == "fits" and found.device == "cpu" and found.free_bytes is not None and found.capacity_bytes is not None
    assert found.need == Need(3 << 20, 0, 2.0, "declared", 3 << 20)
    assert (await asking.fit("submitted.declaring", megabytes=1e9)).verdict == "does not fit"
    assert (await asking.fit("submitted.silent")).verdict == "unknown"
    assert asking.started == []


async def test_auto_goes_where_it_fits_best(asking: Asking) -> None:
    asking.has(cpu=100, cuda_0=4, cuda_1=8)
    worker = asking.worker("cuda:1", ("other", 3))
    assert asking.scheduler._worker_for(asking.job(), ("cuda:0", "cuda:1")) is worker
    assert (await asking.fit("submitted.declaring", megabytes=1000)).device == "cuda:1"
    large = await asking.fit("submitted.declaring", megabytes=6000)
    assert (large.device, large.verdict) == ("cuda:1", "fits")
    assert "once 1 resident model has gone" in large.sentence
    assert (await asking.fit("submitted.declaring", megabytes=9000)).verdict == "does not fit"
    asking.has(cpu=100, cuda_0=12, cuda_1=8)
    other = await asking.fit("submitted.declaring", megabytes=9000)
    assert (other.device, other.verdict) == ("cuda:0", "fits")
    with pytest.raises(UsageError, match="--device cuda:7: is not there; this machine has cpu, cuda:0, cuda:1"):
        await asking.fit("submitted.declaring", device="cuda:7")


async def test_auto_begins_where_a_place_is_free_also_where_nobody_knows_whether_it_fits(asking: Asking) -> None:
    asking.has(cpu=100, cuda_0=8, cuda_1=8)
    asking.queued("cuda:0", worker=asking.worker("cuda:0"))
    found = await asking.fit("submitted.silent")
    assert (found.device, found.verdict) == ("cuda:1", "unknown")


# Which worker a job would go to


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has 16 GB, and nobody but workers takes any."""
    monkeypatch.setattr(estimates, "device_memory", lambda device: DeviceMemory(16 * GB, 16 * GB))


MINE = ("mine", "float32")


async def test_a_job_uses_and_sends_away_the_models_of_its_worker_alone(asking: Asking, memory: None) -> None:
    asking.scheduler.settings = ServiceSettings(cpu_workers=3)
    asking.worker("cpu", ("mine", 4), ("old", 1))
    asking.worker("cpu", ("other", 6))
    asking.says(5, 4, MINE)
    assert (await asking.fit()).sentence == (
        "fits: 5.0 GB needed (its model is resident, 5.0 GB for the analysis, as it declares), 6.0 GB free on cpu"
    )
    asking.says(5.5, 4, MINE)
    assert (await asking.fit()).sentence.endswith("6.0 GB free on cpu once 1 resident model has gone")
    asking.says(7, 4, MINE)
    assert (await asking.fit()).sentence == (
        "will wait: 7.0 GB needed (its model is resident, 7.0 GB for the analysis, as it declares), and only 6.0 GB free on cpu"
    )
    asking.says(13, 4, MINE)
    assert (await asking.fit()).verdict == "does not fit"


async def test_a_model_that_only_a_busy_worker_holds_has_to_be_built(asking: Asking, memory: None) -> None:
    asking.scheduler.settings = ServiceSettings(cpu_workers=2)
    asking.says(5, 4, MINE)
    busy = asking.worker("cpu", ("mine", 4))
    asking.queued("cpu", 2, worker=busy)
    found = await asking.fit()
    assert found.sentence == "fits: 9.0 GB needed (4.0 GB for the model, 5.0 GB for the analysis, as it declares), 10.0 GB free on cpu"
    asking.worker("cpu", ("other", 3))
    found = await asking.fit()
    assert (found.verdict, found.free_bytes) == ("fits", 10 * GB) and "once 1 resident model has gone" in found.sentence


async def test_where_all_places_are_taken_the_model_of_a_busy_worker_may_serve(asking: Asking, memory: None) -> None:
    asking.says(5, 4, MINE)
    asking.queued("cpu", 2, worker=asking.worker("cpu", ("mine", 4)))
    assert (await asking.fit()).sentence == (
        "will wait: 1 job runs on cpu; 5.0 GB needed (its model is resident, 5.0 GB for the analysis, as it declares), 10.0 GB free on cpu"
    )


async def test_models_of_another_environment_or_of_a_worker_that_leaves_are_of_no_use(asking: Asking, memory: None) -> None:
    asking.says(5, 4, MINE)
    asking.worker("cpu", ("mine", 4), interpreter=Interpreter("/other/python", None))
    asking.worker("cpu", ("mine", 4)).is_leaving = True
    found = await asking.fit()
    assert found.sentence == (
        "will wait: 9.0 GB needed (4.0 GB for the model, 5.0 GB for the analysis, as it declares), and only 8.0 GB free on cpu"
    )


@pytest.mark.parametrize("held", [[3, 5], [5, 3], [3, 5, "mine"], ["mine", 5, 3], [5, "mine", 1]])
async def test_the_worker_is_the_one_that_the_scheduler_gives_the_job_to(asking: Asking, memory: None, held: list[Any]) -> None:
    asking.scheduler.settings = ServiceSettings(cpu_workers=4)
    asking.says(1, 2, MINE)
    workers = [asking.worker("cpu", ("mine", 2) if one == "mine" else (f"other-{one}", one)) for one in held]
    asking.queued("cpu", worker=asking.worker("cpu", ("mine", 1)))
    chosen = asking.scheduler._worker_for(asking.job(checkpoints=("mine",)), ("cpu",))
    assert chosen is workers[held.index("mine" if "mine" in held else 3)]
    found = await asking.fit()
    others = sum(worker.resident_bytes for worker in asking.scheduler.workers if worker is not chosen)
    needed = chosen.resident_bytes if "mine" in held else 0
    assert found.free_bytes == 16 * GB - others - needed
    assert ("its model is resident" in found.sentence) == ("mine" in held)


async def test_auto_goes_to_the_gpu_whose_worker_holds_the_model(asking: Asking) -> None:
    asking.has(cpu=100, cuda_0=8, cuda_1=8, cuda_2=8)
    asking.says(1, 4, MINE)
    asking.worker("cuda:1")
    assert (await asking.fit()).device == "cuda:1"
    asking.worker("cuda:2", ("mine", 4))
    found = await asking.fit()
    assert found.device == "cuda:2" and "its model is resident" in found.sentence


# Which of its models count


async def test_of_two_copies_the_one_in_the_dtype_of_the_job_counts(asking: Asking, memory: None) -> None:
    asking.worker("cpu", ("mine", 8, "float32"), ("mine", 4, "bfloat16"))
    asking.says(9, 4, ("mine", "bfloat16"))
    found = await asking.fit()
    assert found.sentence == (
        "fits: 9.0 GB needed (its model is resident, 9.0 GB for the analysis, as it declares), 12.0 GB free on cpu "
        "once 1 resident model has gone"
    )
    asking.says(0, 8, MINE)
    assert (await asking.fit()).free_bytes == 8 * GB


async def test_a_copy_in_another_dtype_or_of_another_path_has_to_be_built_anew(asking: Asking, memory: None) -> None:
    asking.worker("cpu", ("mine", 8, "float32"), ("mine", 4, "bfloat16", "/elsewhere"), ("mine", 4, "float16"))
    asking.says(1, 4, ("mine", "bfloat16"))
    found = await asking.fit()
    assert (found.verdict, found.free_bytes) == ("fits", 16 * GB)
    assert "5.0 GB needed (4.0 GB for the model" in found.sentence and "once 2 resident models have gone" in found.sentence


async def test_a_checkpoint_that_is_named_twice_uses_two_copies(asking: Asking, memory: None) -> None:
    asking.worker("cpu", ("mine", 4), ("mine", 4))
    asking.says(1, 8, MINE, MINE)
    assert "its model is resident" in (await asking.fit()).sentence
    asking.says(1, 4, MINE)
    found = await asking.fit()
    assert "its model is resident" in found.sentence and found.free_bytes == 12 * GB


# What is queued before it


async def test_a_free_place_is_not_free_for_a_job_behind_others(asking: Asking, memory: None) -> None:
    asking.says(1)
    asking.queued("auto")  # its worker is being started
    asking.queued("cpu", 2)
    found = await asking.fit(device="cpu")
    assert (
        found.sentence == "will wait: 2 jobs are queued before it; 1.0 GB needed (as it declares), 16.0 GB free on cpu"
    )  # they have ended then
    asking.scheduler.settings = ServiceSettings(cpu_workers=3)
    assert (await asking.fit()).verdict == "fits"
    asking.scheduler.settings = ServiceSettings(cpu_workers=2)
    assert "2 jobs are queued before it" in (await asking.fit()).sentence


async def test_a_new_job_overtakes_one_that_waits_for_memory_and_one_that_is_cancelled(asking: Asking, memory: None) -> None:
    asking.says(1)
    waiting, cancelled = asking.queued("cpu", 30), asking.queued("cpu")
    waiting.retry_at = asyncio.get_running_loop().time() + 1000
    cancelled.is_cancelled = True
    assert (await asking.fit()).sentence == "fits: 1.0 GB needed (as it declares), 16.0 GB free on cpu"
    waiting.retry_at = 0.0
    assert "1 job is queued before it" in (await asking.fit()).sentence


async def test_jobs_for_other_devices_are_not_before_it(asking: Asking, memory: None) -> None:
    asking.says(1)
    asking.has(cpu=16, cuda_0=8, cuda_1=8)
    asking.queued("cuda:1")
    assert (await asking.fit()).device == "cuda:0"
    asking.queued("auto").too_small = {"cuda:0"}
    assert (await asking.fit(device="cpu")).verdict == (await asking.fit(device="cuda:0")).verdict == "fits"
    assert "2 jobs are queued before it" in (await asking.fit(device="cuda:1")).sentence
    asking.queued("auto")
    found = await asking.fit()
    assert (found.device, found.verdict) == ("cuda:0", "will wait") and "1 job is queued before it" in found.sentence
    asking.queued("cpu", worker=asking.worker("cpu"))
    assert (await asking.fit(device="cpu")).sentence.startswith("will wait: 1 job runs on cpu; ")


async def test_a_new_job_overtakes_those_of_another_environment_whose_worker_is_not_there(asking: Asking, memory: None) -> None:
    asking.says(1)
    asking.queued("auto", by=Interpreter("/other/python", None))
    assert "1 job is queued before it" in (await asking.fit()).sentence
    asking.worker(None)
    assert (await asking.fit()).verdict == "fits"


async def test_a_job_before_it_takes_its_memory_with_it(asking: Asking, memory: None) -> None:
    asking.scheduler.settings = ServiceSettings(cpu_workers=2)
    asking.queued("cpu", 10)
    asking.says(8)
    assert (await asking.fit()).sentence == "will wait: 8.0 GB needed (as it declares), and only 6.0 GB free on cpu"


async def test_where_a_gpu_may_be_a_worker_is_asked_for_it(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "_may_have_a_gpu", lambda: True)
    monkeypatch.setattr(estimates, "_HELLO_SECONDS", 0.1)
    found = await asking.fit("submitted.declaring")
    assert asking.started == [asking.interpreter]
    assert (found.verdict, found.device) == ("unknown", None) and "no worker has said yet which devices there are" in found.sentence


async def test_an_estimate_that_raises_is_unknown_with_the_reason(asking: Asking) -> None:
    found = await asking.fit("submitted.hostile", how="raise")
    assert found.verdict == "unknown" and "the estimate of submitted.hostile failed (KeyError" in found.sentence
    assert "\x1b" not in found.sentence


async def test_an_estimate_that_hangs_or_ends_the_process_is_unknown_with_the_reason(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asking.fit("submitted.silent")  # a preparer has started
    monkeypatch.setattr(preparers, "ESTIMATE_PATIENCE_SECONDS", 1.0)
    found = await asking.fit("submitted.hostile", how="hang")
    assert found == Fit("unknown", "unknown: the submission was not estimated within 1 s; the plugin or the disk hangs")
    monkeypatch.setattr(preparers, "ESTIMATE_PATIENCE_SECONDS", 60.0)
    await asking.fit("submitted.silent")
    found = await asking.fit("submitted.hostile", how="end")
    assert found.verdict == "unknown" and "the process that checks submissions" in found.sentence
    assert (await asking.fit("submitted.declaring")).verdict == "fits"


async def test_a_hanging_estimate_holds_up_no_submission(asking: Asking) -> None:
    hanging = asyncio.ensure_future(asking.fit("submitted.hostile", how="hang"))
    await asyncio.sleep(0)
    prepared = await asking.preparers.ask(asking.interpreter, **submission_of("submitted.plain"))
    assert prepared["say"] == "prepared" and not hanging.done()
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


async def test_what_is_wrong_with_it_is_raised(asking: Asking) -> None:
    with pytest.raises(UsageError, match="--rows 0"):
        await asking.fit("submitted.plain", rows=0)
    with pytest.raises(BadInput, match="nowhere"):
        await asking.fit("submitted.weights", "/nowhere")


# Over the socket


class EstimatingMachine(Machine):
    """A machine whose pretended preparer answers questions for estimates too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        words = (
            '        if message["do"] == "estimate":\n'
            '            need = {"analysis_bytes": int(params.get("needs", 0)), "model_bytes": 0, "seconds": 1.5, "basis": "declared"}\n'
            '            say("estimated", id=message["id"], need=need, fingerprints=[], models=[], warnings=[])\n'
            "            continue\n"
        )
        source = self.interpreter.read_text()
        marker = '        params = message["params"]\n'
        assert marker in source
        self.interpreter.write_text(source.replace(marker, marker + words, 1))

    def estimate(self, analysis: str = "pretend.work", expect: int = 200, **params: Any) -> dict[str, Any]:
        body = {"analysis": analysis, "params": params, "device": "cpu", "interpreter": str(self.interpreter)}
        return dict(self.ask("POST", "/estimates", expect, **body))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[EstimatingMachine]:
    made = EstimatingMachine(tmp_path)
    yield made
    made.end()


def test_the_service_tells_whether_a_job_fits_waits_or_never_fits(machine: EstimatingMachine) -> None:
    machine.has(cpu=1000)
    machine.start()
    assert machine.estimate(needs=500)["verdict"] == "fits"
    job = machine.submit("cpu", seconds=2)
    until(lambda: machine.ask("GET", f"/jobs/{job['run']}")["state"] == "running")
    busy = machine.estimate(needs=500)
    assert busy["verdict"] == "will wait" and busy["sentence"].startswith("will wait: 1 job runs on cpu; ")
    assert busy["need"]["seconds"] == 1.5
    machine.ended(job)
    never = machine.estimate(needs=5000)
    assert (never["verdict"], never["capacity_bytes"], never["device"]) == ("does not fit", 1000, "cpu")
    assert len(machine.ask("GET", "/jobs")["jobs"]) == 1
    refused = machine.ask("POST", "/estimates", expect=400, run="latest", interpreter=str(machine.interpreter))
    assert "an estimate is of a new run" in refused["error"]


def test_a_job_that_waits_for_memory_keeps_the_place_from_nobody(machine: EstimatingMachine) -> None:
    machine.start()
    waiting = machine.submit("cpu", end="short")
    until(lambda: machine.ask("GET", f"/jobs/{waiting['run']}")["state"] == "waiting")
    until(lambda: machine.estimate(needs=500)["verdict"] == "fits")
    assert machine.ended(machine.submit("cpu"))["state"] == "done"


def test_an_estimate_nobody_waits_for_any_more_is_dropped(machine: EstimatingMachine) -> None:
    machine.start()
    machine.estimate()
    transport = httpx2.HTTPTransport(uds=str(service_socket()))
    hanging = {"analysis": "pretend.hang", "device": "cpu", "interpreter": str(machine.interpreter)}
    with httpx2.Client(transport=transport, timeout=0.3) as client, pytest.raises(httpx2.TimeoutException):
        client.post("http://localhost/estimates", json=hanging)
    begun = time.monotonic()
    assert machine.estimate()["verdict"] == "fits"
    assert time.monotonic() - begun < 20


def test_a_service_that_cannot_estimate_leaves_it_unknown() -> None:
    with pretending(lambda request: answer({"error": "not found", "exit_code": 2}, 404)) as requests, Client(start=False) as client:
        found = client.estimate("weights.stats", ["/m"], {"bins": 3}, device="cpu", dtype="float32")
    assert found.verdict == "unknown" and "too old" in found.sentence
    assert (requests[0].method, requests[0].path) == ("POST", "/estimates")
    assert requests[0].body["params"] == {"bins": 3} and requests[0].body["device"] == "cpu"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    with background(tmp_path / "site", monkeypatch) as running:
        yield running


def test_the_client_starts_a_service_and_asks_it(service: Background) -> None:
    with Client() as client:
        found = client.estimate("weights.stats", [SAMPLE], {"bins": 3}, device="cpu")
        assert found.verdict == "fits" and found.device == "cpu" and found.need is not None and found.need.basis == "declared"
        with pytest.raises(UsageError, match="--bins 0"):
            client.estimate("weights.stats", [SAMPLE], {"bins": 0})
        assert client.jobs() == () and all_runs() == []


def test_a_worker_finds_the_model_that_the_estimate_says_is_resident(service: Background, tmp_path: Path) -> None:
    install_hostile(tmp_path / "site")
    with Client() as client:

        def is_resident(dtype: str) -> bool:
            found = client.estimate("hostile.weighing", [SAMPLE], device="cpu", dtype=dtype)
            return "its model is resident" in found.sentence

        def runs(dtype: str) -> int:
            assert client.wait(client.submit("hostile.weighing", [SAMPLE], device="cpu", dtype=dtype).run).state == "done"
            return len(client.resident())

        assert not is_resident("auto")
        assert runs("bfloat16") == 1
        assert (is_resident("bf16"), is_resident("auto"), is_resident("fp16")) == (True, False, False)
        assert runs("auto") == 2
        assert (is_resident("bf16"), is_resident("auto"), is_resident("fp32"), is_resident("fp16")) == (True, True, True, False)
        assert runs("float32") == 2


def test_asking_imports_neither_torch_nor_a_plugin_into_the_service() -> None:
    code = (
        "import sys; import modelscope_app.jobs.service.app, modelscope_app.jobs.service.estimates;"
        "print([name for name in ('torch', 'polars', 'modelscope_weights', 'transformers') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
