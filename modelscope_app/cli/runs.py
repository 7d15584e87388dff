"""`mscope runs`: look at, follow, cancel, resume, export and remove runs. RUN is an id, its beginning, a folder, or `latest`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from modelscope_app.api import BadInput, ExitCode, MscopeError, UsageError, neutralised
from modelscope_app.rendering.wording import age_text
from modelscope_app.runs.queue_record import drop_queue_record, read_queue_record
from modelscope_app.runs.status import FINAL_STATES, NOT_BEGUN_STATES, RESUMABLE_STATES, RunLock

if TYPE_CHECKING:
    from modelscope_app.runs.folder import RunFolder

_STATE_WIDTH = 10
_AGE_WIDTH = 6
_NARROWEST_NAMES = 16


def _references(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of runs, newest first, and folders."""
    from modelscope_app.runs.index import all_runs

    ids = [CompletionItem(name) for name in ("latest", *(run.id for run in all_runs())) if name.startswith(incomplete)]
    return ids or [CompletionItem(incomplete, type="dir")]


def _references_not_ended(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of runs that have not ended, newest first, and folders."""
    from modelscope_app.runs.index import all_runs

    ids = []
    for number, run in enumerate(all_runs()):
        names = [name for name in (*(["latest"] if number == 0 else []), run.id) if name.startswith(incomplete)]
        with suppress(MscopeError):
            if names and run.status not in FINAL_STATES:
                ids += [CompletionItem(name) for name in names]
    return ids or [CompletionItem(incomplete, type="dir")]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]}, short_help="Look at, follow, cancel, resume, export and remove runs."
)
def command() -> None:
    """Runs: what analyses left behind. RUN is an id (or its beginning), a run folder, or `latest`."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_runs(as_json: bool) -> None:
    """List runs, newest first; those that cannot be read come last, with the reason."""
    from modelscope_app.runs.index import found_runs

    found = found_runs()
    for problem in found.problems:
        print(f"mscope: {neutralised(problem)}", file=sys.stderr)
    if as_json:
        unreadable = [_unreadable(one.folder.name, one.folder, one.error) for one in found.unreadable]
        print(json.dumps({"runs": [*map(_listed, found.runs), *unreadable]}, allow_nan=False))
        return
    if not found.runs and not found.unreadable:
        print("No runs yet. `mscope analyses` shows what can be run.")
        return
    now = datetime.now(UTC)
    width = max((len(run.id) for run in found.runs), default=0)
    for run in found.runs:
        print(_line(run, now, width))
    for one in found.unreadable:
        print(f"{neutralised(one.folder.name):<{width}}  {'unreadable':<{_STATE_WIDTH}}  {'':>{_AGE_WIDTH}}  {one.error}")


def _line(run: RunFolder, now: datetime, width: int) -> str:
    """One line: id, state, age, and the checkpoints' names as far as a terminal has room; for an unreadable status, the reason."""
    try:
        state, told = run.status, ", ".join(neutralised(Path(checkpoint.path).name) for checkpoint in run.job.checkpoints)
    except BadInput as error:
        state, told = "unreadable", str(error)
    head = f"{run.id:<{width}}  {state:<{_STATE_WIDTH}}  {age_text((now - run.job.created_at).total_seconds()):>{_AGE_WIDTH}}"
    if state != "unreadable" and sys.stdout.isatty():
        told = neutralised(told, max(_NARROWEST_NAMES, shutil.get_terminal_size().columns - len(head) - 2))
    return f"{head}  {told}".rstrip()


def _listed(run: RunFolder) -> dict[str, Any]:
    try:
        return {**run.summary(), "created": run.job.created}
    except BadInput as error:
        return {**_unreadable(run.id, run.folder, str(error)), "created": run.job.created}


def _unreadable(run: str, folder: Path, error: str) -> dict[str, Any]:
    return {"run": run, "status": "unreadable", "error": error, "folder": str(folder)}


@command.command("show")
@click.argument("run_reference", metavar="RUN", shell_complete=_references)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(run_reference: str, as_json: bool) -> None:
    """Show a run: what was asked, how it stands, and its results."""
    from modelscope_app.cli.run import print_json, print_results
    from modelscope_app.cli.watching import if_gone
    from modelscope_app.runs.index import find_run

    run = find_run(run_reference)
    if as_json:
        print_json(run)
        return
    status = run.read_status()
    print(f"run      {run.id}")
    print(f"command  {neutralised(run.job.command)}")
    print(f"state    {status.state}")
    if status.waiting_for is not None:
        print(f"waiting  {status.waiting_for}")
    record = read_queue_record(run.folder)
    if record is not None and (status.state == "lost" or status.state not in FINAL_STATES):
        ago = age_text(time.time() - record.submitted)
        print(f"queue    given to the service of {neutralised(record.host)} {ago} ago")
        print(f"go on    mscope runs watch {run.id}{if_gone(record.host, run)}")
    elif status.state in RESUMABLE_STATES:
        print(f"go on    mscope runs resume {run.id}")
    if status.seconds is not None and (status.finished is not None or status.state not in FINAL_STATES):
        print(f"took     {status.seconds:.1f} s" + (" so far" if status.finished is None else ""))
    if status.peak_memory_bytes and status.memory_before_bytes:
        extra = status.peak_memory_bytes - status.memory_before_bytes
        print(f"memory   {status.peak_memory_bytes / 1e6:,.0f} MB at its peak, {extra / 1e6:,.0f} MB of it taken by the analysis")
    for warning in run.warnings:
        print(f"warning  {neutralised(warning)}")
    print(f"folder   {neutralised(str(run.folder))}")
    with _naming_damaged_tables(run):
        print_results(run)


@contextmanager
def _naming_damaged_tables(run: RunFolder) -> Iterator[None]:
    """Where drawing fails, say which table is damaged, if one is."""
    try:
        yield
    except MscopeError:
        raise
    except Exception:
        run.check_tables()
        raise


@command.command("watch")
@click.argument("run_reference", metavar="RUN", shell_complete=_references_not_ended)
def watch(run_reference: str) -> int:
    """Follow a run until it ends, and exit as it does. ctrl+c stops watching and cancels nothing."""
    from modelscope_app.cli import watching
    from modelscope_app.cli.progress import ending, own_stderr, say, watcher_for
    from modelscope_app.runs.index import find_run

    run = find_run(run_reference)
    stderr = own_stderr()
    try:
        status = watching.watch(run, watcher_for(stderr))
    except KeyboardInterrupt:
        say(f"the run goes on; to follow it again: mscope runs watch {run.id}", stderr)
        return ExitCode.CANCELLED
    print(ending(run.id, status.state, status.error), flush=True)
    if status.state == "done":
        say(f"results: mscope runs show {run.id}", stderr)
        return ExitCode.DONE
    return status.exit_code or ExitCode.JOB_FAILED


@command.command("cancel")
@click.argument("run_reference", metavar="RUN", shell_complete=_references_not_ended)
def cancel(run_reference: str) -> None:
    """Ask a run to stop, or take it off the queue; what it had is saved and it can be resumed."""
    from modelscope_app.cli.watching import if_gone, queued_here
    from modelscope_app.jobs.answers import Busy, NotRunning, UnknownRun
    from modelscope_app.jobs.starting import is_lock_held, is_running
    from modelscope_app.runs.index import find_run
    from modelscope_app.runs.lock import lock_holder

    run = find_run(run_reference)
    holder = lock_holder(run.folder)
    if queued_here(run) is not None:
        if holder is None and not is_running() and not is_lock_held():
            print(f"{run.id} {_cancel_without_a_service(run)}")
            return
        try:
            state = _cancel_at_the_service(run, start=holder is None)
        except NotRunning:
            holder = lock_holder(run.folder)  # its worker is still at it
        except (Busy, UnknownRun):  # another service had it, and it may be executed by a process that none of them knows
            holder = lock_holder(run.folder)
            if holder is None or holder.purpose != "execute":
                raise
        else:
            print(f"{run.id} cancelled" if state == "cancelled" else f"{run.id} asked to stop")
            return
    if holder is None:
        record = read_queue_record(run.folder)
        if record is not None and run.status in NOT_BEGUN_STATES:
            raise BadInput(f"run {run.id} is on the queue of {record.host}; cancel it there{if_gone(record.host, run)}")
        raise BadInput(f"run {run.id} is {run.status}, not running; there is nothing to cancel")
    if holder.purpose != "execute":
        raise BadInput(f"run {run.id} is being removed, not running; there is nothing to cancel")
    if holder.host != socket.gethostname():
        raise BadInput(f"run {run.id} runs on {holder.host}; cancel it there{if_gone(holder.host, run)}")
    if not holder.is_alive:
        raise BadInput(f"run {run.id}: the lock names process {holder.pid}, which is not to be found here; look again in a moment")
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        raise BadInput(f"run {run.id} has just ended; there is nothing to cancel") from None
    except PermissionError:
        raise BadInput(f"run {run.id} is run by process {holder.pid} of another user, who alone can cancel it") from None
    print(f"{run.id} asked to stop")


def _cancel_without_a_service(run: RunFolder) -> str:
    """Its state thereafter. A service that was started for this would execute all the others."""
    from modelscope_app.jobs.service import transitions

    status = transitions.cancel(run.folder, "cancelled before it began" if run.status in NOT_BEGUN_STATES else "cancelled")
    drop_queue_record(run.folder)
    return status.state


def _cancel_at_the_service(run: RunFolder, start: bool) -> str:
    """Its state thereafter."""
    from modelscope_app.jobs.client import Client

    with Client(start=start) as client:
        return client.cancel(run.id).state


@command.command("resume")
@click.argument("run_reference", metavar="RUN", shell_complete=_references)
@click.option("--detach", is_flag=True, help="Give it to the service, print the run's id, and return at once.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no messages; errors are still said.")
def resume(run_reference: str, detach: bool, as_json: bool, quiet: bool) -> int:
    """Go on with a run that was lost, cancelled or failed, or never began, from its finished stages and newest saved state."""
    from modelscope_app.cli import detached
    from modelscope_app.cli.run import execute_here, report, stopped_before_it_began
    from modelscope_app.cli.watching import queued_here
    from modelscope_app.jobs.interruption import Interruption
    from modelscope_app.jobs.submission import reopen
    from modelscope_app.plugin_host import PluginHost
    from modelscope_app.runs.index import find_run

    run = find_run(run_reference)
    if queued_here(run) is not None and run.status in NOT_BEGUN_STATES:
        raise BadInput(f"run {run.id} is on the queue of the service; follow it with `mscope runs watch {run.id}`")
    if detach:
        return detached.resume(run, as_json=as_json, quiet=quiet)
    host = PluginHost()
    with Interruption() as interruption:
        interruption.last_words = stopped_before_it_began
        bound, opened = reopen(run, host)
        status = execute_here(run, bound, opened, host, interruption, quiet=quiet, as_json=as_json)
    return report(run, status, as_json=as_json, quiet=quiet, conditions=[])


@command.command("export")
@click.argument("run_reference", metavar="RUN", shell_complete=_references)
@click.option("--format", "file_format", type=click.Choice(["html", "json", "csv", "parquet"]), default="html", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File (html, json) or folder (csv, parquet). Default: in the run folder, as report.html, report.json, csv/ and tables/",
)
def export(run_reference: str, file_format: str, out: Path | None) -> None:
    """Write a run's results as an HTML report, JSON, or tables in CSV or parquet. Prints the paths written."""
    from modelscope_app.rendering.export import export_run
    from modelscope_app.runs.index import find_run

    run = find_run(run_reference)
    if run.status != "done":
        print(f"mscope: run {run.id} is {run.status}; what is there so far is exported", file=sys.stderr)
    with _naming_damaged_tables(run):
        paths = export_run(run, file_format, out)  # type: ignore[arg-type]
    for path in paths:
        print(path)


@command.command("remove")
@click.argument("run_references", metavar="RUN ...", nargs=-1, required=True, shell_complete=_references)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def remove(run_references: tuple[str, ...], yes: bool) -> None:
    """Delete run folders, all they hold."""
    from modelscope_app.runs.index import find_run

    for reference in run_references:
        run = find_run(reference)
        if run.folder.is_symlink():
            raise BadInput(f"{run.folder}: is a link; name the run folder it points at, {run.folder.resolve()}")
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"removing {run.id} needs a yes: add --yes")
            click.confirm(f"Delete {neutralised(str(run.folder))}?", abort=True, err=True)
        lock = _lock_to_remove(run)
        try:
            shutil.rmtree(run.folder)
        except OSError as error:
            raise BadInput(f"{error.filename or run.folder}: cannot be removed ({error.strerror})") from None
        finally:
            lock.release()
        print(f"{run.id} removed")


def _lock_to_remove(run: RunFolder) -> RunLock:
    """The hold on a run that is not being executed."""
    from modelscope_app.runs.lock import lock_holder

    try:
        return RunLock(run.folder, "remove")
    except BadInput:
        holder = lock_holder(run.folder)
        if holder is None or holder.purpose != "execute":
            raise
        raise BadInput(f"run {run.id} is being executed; to stop it first: mscope runs cancel {run.id}") from None
