"""`mscope service`: the process that queues jobs and keeps models resident. Only `start` starts it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from modelscope_app.api import BadInput, JobFailed, MscopeError, neutralised

if TYPE_CHECKING:
    from rich.table import Table

    from modelscope_app.jobs.answers import DeviceInfo, JobInfo, ResidentModel, ServiceHealth

_STOP_SECONDS = 30.0
"""Running jobs get ten to save what they have."""
_POLL_SECONDS = 0.05
_NARROWEST_PATH = 16
_TAB_SECONDS = 0.5
"""Nobody waits longer for a completion."""


def _resident(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Checkpoints that are resident, of a service that runs; and files."""
    from modelscope_app.jobs.starting import Answer, asked

    paths: dict[str, None] = {}
    with suppress(MscopeError):
        if asked(_TAB_SECONDS) is Answer.YES:
            from modelscope_app.jobs.client import Client

            with Client(start=False) as client:
                paths = dict.fromkeys(model.path for model in client.resident())
    return [CompletionItem(path) for path in paths if path.startswith(incomplete)] or [CompletionItem(incomplete, type="file")]


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, short_help="Start, stop and look at the service that queues jobs.")
def command() -> None:
    """The service queues jobs given with --detach, executes them in workers, and keeps models resident between them.

    It starts by itself when it is needed, outlives the terminal, and ends when nobody has needed it for a while.
    """


@command.command("start")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def start(as_json: bool) -> None:
    """Start the service, unless it runs already."""
    from modelscope_app.cli.progress import say
    from modelscope_app.jobs.client import Client
    from modelscope_app.jobs.starting import is_running

    was_running = is_running()
    left = [] if was_running else _left_on_queue()
    with Client() as client:
        health = client.health()
    if left:
        say(f"{_jobs_are(len(left))} taken up from the queue", sys.stderr)
    if as_json:
        print(json.dumps({"running": True, **asdict(health)}))
        return
    word = "running already" if was_running else "started"
    print(f"{word}, process {health.pid}, listening at {neutralised(health.socket)}")


@command.command("stop")
@click.option("--force", is_flag=True, help="Also while jobs are left: running ones are saved, and all go on when it next starts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stop(force: bool, as_json: bool) -> None:
    """End the service. Refused while jobs are queued or running, unless --force."""
    from modelscope_app.jobs.answers import Busy, NotRunning
    from modelscope_app.jobs.client import Client

    with Client(start=False) as client:
        try:
            pid = client.health().pid
            client.shutdown(force)
        except NotRunning:
            _wait_for_its_end()
            _print_with_queue("the service is not running", {"stopped": False}, as_json)
            return
        except Busy as error:
            raise BadInput(f"{error} (`mscope service stop --force`)") from None
    _wait_for_its_end()
    _print_with_queue(f"stopped, process {pid}", {"stopped": True}, as_json)


def _print_with_queue(sentence: str, value: Mapping[str, Any], as_json: bool) -> None:
    """What is printed when no service runs, and the jobs that wait for one."""
    left = _left_on_queue()
    if as_json:
        print(json.dumps({**value, "queued": left}))
        return
    print(sentence)
    if left:
        print(f"{_jobs_are(len(left))} left on the queue; `mscope service start` goes on with {'it' if len(left) == 1 else 'them'}")


def _jobs_are(count: int) -> str:
    return "1 job is" if count == 1 else f"{count} jobs are"


def _left_on_queue() -> list[str]:
    """Ids of runs that a service of this machine would go on with, in the order of the queue."""
    from modelscope_app.cli.watching import queued_here
    from modelscope_app.runs.folder import RunFolder
    from modelscope_app.runs.index import folders_with
    from modelscope_app.runs.queue_record import FILE_NAME

    found = []
    for folder in folders_with(FILE_NAME):
        with suppress(MscopeError, OSError):  # what cannot be read is not taken up either
            run = RunFolder.open(folder)
            record = queued_here(run)
            if record is not None:
                found.append((record.submitted, run.id))
    return [run for _, run in sorted(found)]


def _wait_for_its_end() -> None:
    """One that was told to end, now or before, saves its running jobs first."""
    from modelscope_app.jobs.address import log_path
    from modelscope_app.jobs.starting import is_lock_held

    deadline = time.monotonic() + _STOP_SECONDS
    while is_lock_held():
        if time.monotonic() > deadline:
            raise JobFailed(f"the service was told to end and has not within {_STOP_SECONDS:.0f} s; its log is {log_path()}")
        time.sleep(_POLL_SECONDS)


@command.command("unload", short_help="Take resident models from their devices.")
@click.argument("checkpoint", required=False, type=click.Path(), shell_complete=_resident)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def unload(checkpoint: str | None, as_json: bool) -> None:
    """Take the resident models of CHECKPOINT, or all, from their devices. One that a job uses stays until the job has ended."""
    from modelscope_app.jobs.answers import NotRunning
    from modelscope_app.jobs.client import Client

    with Client(start=False) as client:
        try:
            count = client.unload(checkpoint)
        except NotRunning:
            print(json.dumps({"unloaded": 0}) if as_json else "the service is not running, so no model is resident")
            return
    if checkpoint is not None and not count:
        raise BadInput(f"{checkpoint}: no model of it is resident; `mscope service status` shows which are")
    print(json.dumps({"unloaded": count}) if as_json else f"{count} {'model' if count == 1 else 'models'} unloaded")


@command.command("status", short_help="Show devices, jobs and resident models.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool) -> None:
    """Show whether the service runs, its devices, what is queued and running, and which models are resident."""
    from modelscope_app.jobs.answers import NotRunning
    from modelscope_app.jobs.client import Client
    from modelscope_app.jobs.protocol import API_VERSION

    with Client(start=False) as client:
        try:
            health = client.health()
            if health.api != API_VERSION:
                _print_other_version(health, as_json)
                return
            devices, jobs, models = client.devices(), client.jobs(), client.resident()
        except NotRunning:
            _print_with_queue("the service is not running; it starts by itself when it is needed", {"running": False}, as_json)
            return
    left = [job for job in jobs if not job.is_final]
    if as_json:
        described = {"devices": list(map(asdict, devices)), "jobs": list(map(asdict, left)), "resident": list(map(asdict, models))}
        print(json.dumps({"running": True, **asdict(health), **described}))
        return
    _print_health(health)
    _print_table(_devices_table(devices), "no device is known")
    _print_table(_jobs_table(left), "no job is queued or running")
    _print_table(_models_table(models), "no model is resident")


def _print_health(health: ServiceHealth) -> None:
    from modelscope_app.rendering.wording import duration_text

    began = datetime.fromtimestamp(health.started).strftime("%Y-%m-%d %H:%M:%S")
    print(f"service  process {health.pid}, since {began} ({duration_text(max(0.0, time.time() - health.started))})")
    print(f"version  {neutralised(health.version)}, API {health.api}")
    print(f"socket   {neutralised(health.socket)}")
    print(f"log      {neutralised(health.log)}")
    if health.data_dir is not None:
        print(f"data     {neutralised(health.data_dir)}")


def _print_other_version(health: ServiceHealth, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"running": True, **asdict(health)}))
        return
    _print_health(health)
    print("\nIts API is of another version than this mscope's. To end it: mscope service stop")


def _print_table(table: Table, if_empty: str) -> None:
    from modelscope_app.cli.console import ResultsConsole

    console = ResultsConsole()
    with console.capture() as captured:
        console.print(table if table.row_count else if_empty)
    print()
    for line in captured.get().splitlines():
        print(line.rstrip())


def _devices_table(devices: Sequence[DeviceInfo]) -> Table:
    rows = []
    for device in devices:
        name = device.device if device.name == device.device else f"{device.device}  {device.name}"
        memory = "-" if device.capacity_bytes is None else _size(device.capacity_bytes)
        if device.limit_bytes is not None:
            limit = f"{_size(device.limit_bytes)} for jobs"
            memory = limit if device.capacity_bytes is None else f"{memory}, {limit}"
        counts = (len(device.workers), len(device.running), device.queued)
        rows.append((name, memory, _size(device.resident_bytes), *map(str, counts)))
    return _table(("device", "memory", "models", "workers", "running", "queued"), rows, may_wrap=("device", "memory"))


def _jobs_table(jobs: Sequence[JobInfo]) -> Table:
    rows = [(job.run, job.state, job.device or "", _progress(job)) for job in jobs]
    return _table(("job", "state", "device", "progress"), rows, may_wrap=("progress",))


def _progress(job: JobInfo) -> str:
    if job.state == "waiting":
        return job.waiting_for or ""
    if job.position is not None:
        return "next" if job.position == 0 else f"{job.position} before it"
    if job.done is None:
        return job.stage or ""
    count = f"{job.done:,.0f} {job.unit or ''}" if job.total is None else f"{job.done:,.0f}/{job.total:,.0f}"
    return f"{job.stage or job.analysis} {count}".rstrip()


def _models_table(models: Sequence[ResidentModel]) -> Table:
    from modelscope_app.rendering.wording import age_text

    now = time.time()
    rows = []
    for model in models:
        ago = [age_text(now - moment) for moment in (model.since, model.last_used)]
        rows.append((model.path, model.device, model.dtype, _size(model.memory_bytes), ago[0], f"{ago[1]} ago"))
    return _table(("model", "device", "dtype", "size", "resident", "last used"), rows, paths="model")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], may_wrap: Sequence[str] = (), paths: str | None = None) -> Table:
    """Columns without lines. Those that may wrap do so between words; the column `paths` has the room that the others leave."""
    from rich.table import Table

    from modelscope_app.cli.console import ResultsConsole

    shown = [list(map(neutralised, row)) for row in rows]
    if paths is not None:
        place = headings.index(paths)
        others = [max(len(row[column]) for row in [headings, *shown]) for column in range(len(headings)) if column != place]
        room = max(_NARROWEST_PATH, ResultsConsole().width - sum(others) - 2 * len(others))
        for row in shown:
            row[place] = folded(row[place], room)
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading not in (*may_wrap, paths))
    for row in shown:
        table.add_row(*row)
    return table


def folded(path: str, width: int) -> str:
    """A path in so many columns: what is too much goes at the left, folder by folder.

    >>> folded("/home/a/sample_checkpoints/digits-mlp", 32), folded("/home/a/digits-mlp", 8), folded("/a/b", 8)
    ('…/sample_checkpoints/digits-mlp', '…its-mlp', '/a/b')
    """
    if len(path) <= width:
        return path
    parts = path.split("/")
    for dropped in range(1, len(parts)):
        rest = f"…/{'/'.join(parts[dropped:])}"
        if len(rest) <= width:
            return rest
    return f"…{path[len(path) - width + 1 :]}"


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(0), _size(33_000), _size(12_000_000), _size(2_500_000_000)
    ('0', '33 kB', '12 MB', '2.5 GB')
    """
    if not count:
        return "0"
    if count >= 1e9:
        return f"{count / 1e9:,.1f} GB"
    return f"{round(count / 1e6):,} MB" if count >= 1e6 else f"{max(1, round(count / 1e3)):,} kB"
