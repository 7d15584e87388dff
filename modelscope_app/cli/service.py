"""`mscope service`: the process that queues jobs and keeps models resident. Only `start` starts it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from modelscope_app.api import BadInput, JobFailed, MscopeError, neutralised

if TYPE_CHECKING:
    from rich.table import Table

    from modelscope_app.jobs.answers import DeviceInfo, JobInfo, ResidentModel, ServiceHealth

_STOP_SECONDS = 30.0
"""Running jobs get ten to save what they have."""
_POLL_SECONDS = 0.05
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
    from modelscope_app.jobs.client import Client
    from modelscope_app.jobs.starting import is_running

    was_running = is_running()
    with Client() as client:
        health = client.health()
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
            print(json.dumps({"stopped": False}) if as_json else "the service is not running")
            return
        except Busy as error:
            raise BadInput(f"{error} (`mscope service stop --force`)") from None
    _wait_for_its_end()
    print(json.dumps({"stopped": True}) if as_json else f"stopped, process {pid}")


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
            print(json.dumps({"running": False}) if as_json else "the service is not running; it starts by itself when it is needed")
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
    from modelscope_app.cli.progress import duration

    began = datetime.fromtimestamp(health.started).strftime("%Y-%m-%d %H:%M:%S")
    print(f"service  process {health.pid}, since {began} ({duration(max(0.0, time.time() - health.started))})")
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
    console.print()
    console.print(table if table.row_count else if_empty)


def _devices_table(devices: Sequence[DeviceInfo]) -> Table:
    table = _table(("device", "memory", "models", "workers", "running", "queued"))
    for device in devices:
        name = device.device if device.name == device.device else f"{device.device}  {device.name}"
        memory = "?" if device.capacity_bytes is None else _size(device.capacity_bytes)
        if device.limit_bytes is not None:
            memory += f", of which jobs may take {_size(device.limit_bytes)}"
        counts = (len(device.workers), len(device.running), device.queued)
        table.add_row(neutralised(name), memory, _size(device.resident_bytes), *map(str, counts))
    return table


def _jobs_table(jobs: Sequence[JobInfo]) -> Table:
    table = _table(("job", "state", "device", "progress"))
    for job in jobs:
        table.add_row(neutralised(job.run), job.state, neutralised(job.device or ""), neutralised(_progress(job)))
    return table


def _progress(job: JobInfo) -> str:
    if job.state == "waiting":
        return job.waiting_for or ""
    if job.position is not None:
        return "next" if job.position == 0 else f"{job.position} before it"
    if job.done is None:
        return job.stage or ""
    total = "" if job.total is None else f" of {job.total:,.0f}"
    return f"{job.stage or job.analysis}: {job.done:,.0f}{total} {job.unit or ''}".rstrip()


def _models_table(models: Sequence[ResidentModel]) -> Table:
    from modelscope_app.cli.progress import duration

    now = time.time()
    table = _table(("model", "device", "dtype", "size", "resident", "last used"))
    for model in models:
        ago = [duration(max(0.0, now - moment)) for moment in (model.since, model.last_used)]
        values = (model.path, model.device, model.dtype, _size(model.memory_bytes), ago[0], f"{ago[1]} ago")
        table.add_row(*map(neutralised, values))
    return table


def _table(headings: Sequence[str]) -> Table:
    """Columns without lines."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading in ("job", "state", "device"))
    return table


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(0), _size(12_000_000), _size(2_500_000_000)
    ('0', '12 MB', '2.5 GB')
    """
    if not count:
        return "0"
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6)):,} MB"
