"""The HTTP API of the service: JSON over a Unix socket, as docs/service.md describes it.

Every answer carries the API version; a request that names another one is refused with a sentence. Errors are
{"error": sentence, "exit_code": n}.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelscope_app import __version__
from modelscope_app.api import BadInput, ExitCode, JobFailed, MscopeError, UsageError
from modelscope_app.jobs.address import log_path, service_socket
from modelscope_app.jobs.protocol import API_HEADER, API_VERSION
from modelscope_app.jobs.service.child import Interpreter
from modelscope_app.jobs.service.estimates import fit_of
from modelscope_app.jobs.service.event_stream import event_lines
from modelscope_app.jobs.service.preparers import Preparers
from modelscope_app.jobs.service.queued_job import QueuedJob, ended_json
from modelscope_app.jobs.service.scheduler import Scheduler
from modelscope_app.locations import data_dir
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import find_run
from modelscope_app.runs.queue_record import FILE_NAME, read_queue_record
from modelscope_app.runs.status import FINAL_STATES

_LARGEST_BODY = 16 << 20

_GONE_SECONDS = 0.25
"""How soon it is noticed that nobody waits for an estimate any more."""

_ENDING = "the service is ending; submit again in a moment"

_STATUS = {ExitCode.USAGE: 400, ExitCode.BAD_INPUT: 400}


class Conflict(MscopeError):
    """What was asked does not go with how things stand."""

    exit_code = ExitCode.BAD_INPUT


class Unknown(BadInput):
    """There is no such run."""


class Stopping(MscopeError):
    """The service is about to end."""


class Service:
    """What the endpoints work on."""

    def __init__(self, scheduler: Scheduler, preparers: Preparers, ending: asyncio.Event) -> None:
        self.scheduler = scheduler
        self.preparers = preparers
        self.ending = ending
        """Set by whoever wants it to end."""
        self.submissions_open = 0
        """Being checked, and not on the queue yet."""
        self.started = time.time()
        self.requests_open = 0
        self.last_request = asyncio.get_running_loop().time()
        self.is_recovered = asyncio.Event()
        """The runs of an earlier service have been taken up."""


def create_app(service: Service) -> ASGIApp:
    """The ASGI application."""
    app = Starlette(
        routes=[
            Route("/health", _health),
            Route("/devices", _devices),
            Route("/jobs", _jobs),
            Route("/jobs", _submit, methods=["POST"]),
            Route("/jobs/{run}", _job),
            Route("/jobs/{run}/cancel", _cancel, methods=["POST"]),
            Route("/jobs/{run}/events", _events),
            Route("/estimates", _estimates, methods=["POST"]),
            Route("/checkpoints", _checkpoints),
            Route("/checkpoints/unload", _unload, methods=["POST"]),
            Route("/shutdown", _shutdown, methods=["POST"]),
        ],
        exception_handlers={MscopeError: _error, HTTPException: _http_error, OSError: _system_error, Exception: _unforeseen},
    )
    app.state.service = service
    return _Handshake(app, service)


class _Handshake:
    """Checks and names the API version, and knows when somebody last asked for something."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (API_HEADER.lower().encode(), str(API_VERSION).encode())]
            await send(message)

        service = self._service
        service.requests_open += 1
        try:
            asked = dict(scope.get("headers", ())).get(API_HEADER.lower().encode())
            if asked is not None and asked != str(API_VERSION).encode():
                await _refusal(asked.decode(errors="replace"))(scope, receive, with_version)
            else:
                await self._app(scope, receive, with_version)
        finally:
            service.requests_open -= 1
            service.last_request = asyncio.get_running_loop().time()


def _refusal(asked: str) -> Response:
    sentence = (
        f"the running service (modelscope-app {__version__}) speaks version {API_VERSION} of its API, and this client version "
        f"{str(MscopeError(asked))[:20]}; end the service with `mscope service stop`, or update the older of the two"
    )
    return JSONResponse({"error": sentence, "exit_code": int(ExitCode.BAD_INPUT), "api": API_VERSION}, 409)


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MscopeError)
    status = {Conflict: 409, Unknown: 404, Stopping: 503}.get(type(error), _STATUS.get(error.exit_code, 500))
    return JSONResponse({"error": str(error), "exit_code": int(error.exit_code)}, status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {MscopeError(request.url.path)}: {error.detail.lower()}; docs/service.md lists what can be asked"
    return JSONResponse({"error": sentence, "exit_code": int(ExitCode.USAGE)}, error.status_code)


async def _system_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    place = f"{error.filename}: " if error.filename else ""
    return JSONResponse({"error": str(MscopeError(f"{place}{error.strerror or error}")), "exit_code": int(ExitCode.BAD_INPUT)}, 400)


async def _unforeseen(request: Request, error: Exception) -> Response:
    sentence = f"internal error ({type(error).__name__}: {error}); the traceback is in {log_path()}"
    return JSONResponse({"error": str(MscopeError(sentence)), "exit_code": int(ExitCode.JOB_FAILED)}, 500)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _body(request: Request) -> dict[str, Any]:
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > _LARGEST_BODY:
            raise UsageError(f"a request holds at most {_LARGEST_BODY >> 20} MB; put long lists into a file and name it")
    try:
        value = json.loads(content or b"{}")
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # neither NaN nor half a surrogate can be passed on
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UsageError("the request is not a JSON object")
    return value


def _text(body: dict[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{key!r} takes a text")
    return value


async def _health(request: Request) -> Response:
    service = _service(request)
    return JSONResponse(
        {
            "api": API_VERSION,
            "version": __version__,
            "pid": os.getpid(),
            "started": service.started,
            "host": socket.gethostname(),
            "socket": str(service_socket()),
            "log": str(log_path()),
            "data_dir": str(data_dir()),
        }
    )


async def _devices(request: Request) -> Response:
    scheduler = _service(request).scheduler
    names = {"cpu": "cpu"}
    capacities: dict[str, int] = {}
    for facts in scheduler.facts.values():
        names |= facts.names
        capacities |= facts.capacity_bytes
    devices = []
    for device in sorted(names, key=lambda name: (name == "cpu", name)):
        workers = [worker for worker in scheduler.workers if worker.device == device]
        devices.append(
            {
                "device": device,
                "name": names[device],
                "capacity_bytes": capacities.get(device) or None,
                "limit_bytes": scheduler.settings.memory_limit_bytes(device),
                "resident_bytes": sum(worker.resident_bytes for worker in workers),
                "workers": [
                    {
                        "pid": worker.child.pid,
                        "interpreter": worker.interpreter.path,
                        "run": worker.job.run.id if worker.job else None,
                        "since": worker.since,
                    }
                    for worker in workers
                ],
                "running": [worker.job.run.id for worker in workers if worker.job],
                "queued": sum(job.worker is None and job.device in (device, "auto") for job in scheduler.jobs.values()),
            }
        )
    return JSONResponse({"devices": devices})


async def _jobs(request: Request) -> Response:
    scheduler = _service(request).scheduler
    active, position, found = list(scheduler.jobs.values()), 0, []
    for job in active:
        found.append((job, position if job.worker is None else None))
        position += job.worker is None
    jobs = await asyncio.to_thread(lambda: [_readable(job, position) for job, position in found])
    return JSONResponse({"jobs": [*jobs, *scheduler.ended]})


def _readable(job: QueuedJob, position: int | None) -> dict[str, Any]:
    """A job for a list: one whose status is damaged is there with the sentence."""
    try:
        return job.to_json(position)
    except MscopeError as error:
        return {"run": job.run.id, "folder": str(job.folder), "analysis": job.run.analysis, "state": "lost", "error": str(error)}


async def _submit(request: Request) -> Response:
    service = _service(request)
    body = await _body(request)
    if service.ending.is_set():
        raise Stopping(_ENDING)
    interpreter = _interpreter(body)
    service.submissions_open += 1
    try:
        service.scheduler.prewarm(interpreter)
        answer = await service.preparers.ask(interpreter, **await _submission(body))
        job = await service.scheduler.add(Path(answer["folder"]))
    except JobFailed:
        if service.ending.is_set():
            raise Stopping(_ENDING) from None
        raise
    finally:
        service.submissions_open -= 1
    warnings = [str(warning) for warning in answer.get("warnings", [])]
    return JSONResponse({**job.to_json(service.scheduler.position(job)), "warnings": warnings}, 201)


async def _estimates(request: Request) -> Response:
    service = _service(request)
    body = await _body(request)
    if service.ending.is_set():
        raise Stopping(_ENDING)
    if body.get("run") is not None:
        raise UsageError("'run' means nothing here; an estimate is of a new run")
    interpreter, submission = _interpreter(body), await _submission(body)
    asked = asyncio.ensure_future(fit_of(service.preparers, service.scheduler, interpreter, submission))
    try:
        while not (await asyncio.wait([asked], timeout=_GONE_SECONDS))[0]:
            if await request.is_disconnected():  # a form asks again with every change
                return Response(status_code=499)
        return JSONResponse(await asked)
    finally:
        asked.cancel()


_OF_ALL = {"interpreter", "python_path", "cwd"}
_OF_A_NEW_ONE: dict[str, Any] = {
    "analysis": None,
    "checkpoints": [],
    "params": {},
    "device": "auto",
    "dtype": "auto",
    "seed": 0,
    "out": None,
    "cwd": None,
}
"""Keys of a submission, and what stands for one that is missing or null."""
_KEYS = f"{', '.join(_OF_A_NEW_ONE)} (or run alone), interpreter and python_path"


async def _submission(body: dict[str, Any]) -> dict[str, Any]:
    """What a preparer is asked: for a new run, or for an earlier one. Raises UsageError, BadInput."""
    reference = _text(body, "run")
    allowed = _OF_ALL | ({"run"} if reference is not None else set(_OF_A_NEW_ONE))
    if unknown := sorted(key for key in body.keys() - allowed if key != "run" or body[key] is not None):
        raise UsageError(f"{MscopeError(repr(unknown[0]))} means nothing here; a submission has {_KEYS}")
    if reference is None:
        return {"do": "prepare", **{key: other if body.get(key) is None else body[key] for key, other in _OF_A_NEW_ONE.items()}}
    folder = Path(_text(body, "cwd") or "/") / reference
    run = await asyncio.to_thread(find_run, str(folder) if "/" in reference and not reference.startswith("~") else reference)
    return {"do": "readmit", "folder": str(run.folder)}


def _interpreter(body: dict[str, Any]) -> Interpreter:
    path = _text(body, "interpreter") or sys.executable
    if "\0" in path or not os.path.isabs(path) or not os.path.isfile(path) or not os.access(path, os.X_OK):  # noqa: PTH113, PTH117 - raise nothing
        raise BadInput(f"{path}: is no Python; 'interpreter' takes the absolute path of one")
    python_path = _text(body, "python_path")
    if "\0" in path or "\0" in (python_path or ""):
        raise UsageError("'interpreter' and 'python_path' cannot hold a NUL")
    return Interpreter(path, python_path)


async def _found(request: Request) -> tuple[QueuedJob | None, RunFolder]:
    """The run a path names: one on the queue, or any there is."""
    service, reference = _service(request), request.path_params["run"]
    await service.is_recovered.wait()
    named = [job for job in service.scheduler.jobs.values() if job.run.id == reference]
    named = named or [job for job in service.scheduler.jobs.values() if job.run.id.startswith(reference)]
    if len(named) == 1:
        return named[0], named[0].run
    try:
        run = await asyncio.to_thread(find_run, reference)
    except BadInput as error:
        raise Unknown(str(error)) from None
    return service.scheduler.jobs.get(run.folder), run


async def _job(request: Request) -> Response:
    job, run = await _found(request)
    return JSONResponse(await _described(_service(request).scheduler, job, run))


async def _described(scheduler: Scheduler, job: QueuedJob | None, run: RunFolder) -> dict[str, Any]:
    if job is not None and job.folder in scheduler.jobs:
        return await asyncio.to_thread(job.to_json, scheduler.position(job))
    remembered = next((ended for ended in scheduler.ended if ended["folder"] == str(run.folder)), None)
    if remembered is not None and not await asyncio.to_thread((run.folder / FILE_NAME).exists):
        return remembered
    return await asyncio.to_thread(lambda: ended_json(run, read_queue_record(run.folder)))


async def _cancel(request: Request) -> Response:
    service = _service(request)
    job, run = await _found(request)
    if job is None:
        state = (await asyncio.to_thread(run.read_status)).state
        if state in FINAL_STATES:
            raise Conflict(f"run {run.id} is {state}; there is nothing to cancel")
        raise Conflict(f"run {run.id} was not given to the service; `mscope runs cancel {run.id}` asks the process that executes it")
    await service.scheduler.cancel(job)
    return JSONResponse(await _described(service.scheduler, job, run))


async def _events(request: Request) -> Response:
    _, run = await _found(request)
    try:
        since = int(request.query_params.get("since", "0"))
    except ValueError:
        raise UsageError("'since' takes a whole number, the sequence number to begin with") from None
    follow = request.query_params.get("follow", "false").lower() in ("1", "true", "yes")
    scheduler = _service(request).scheduler
    lines = event_lines(run.folder, since, follow, lambda: run.folder in scheduler.jobs)
    return StreamingResponse(lines, media_type="application/x-ndjson")


async def _checkpoints(request: Request) -> Response:
    workers = _service(request).scheduler.workers
    resident = [{**model, "worker": worker.child.pid} for worker in workers for model in worker.resident]
    return JSONResponse({"resident": sorted(resident, key=lambda model: model["last_used"], reverse=True)})


async def _unload(request: Request) -> Response:
    named = _text(await _body(request), "checkpoint")
    path = None if named is None else named.rstrip("/")
    count = _service(request).scheduler.unload(lambda model: named is None or named == model["fingerprint"] or path == model["path"])
    return JSONResponse({"unloaded": count})


async def _shutdown(request: Request) -> Response:
    service = _service(request)
    force = (await _body(request)).get("force", False)
    left = len(service.scheduler.jobs) + service.submissions_open
    if force is not True and left:
        running = sum(job.worker is not None for job in service.scheduler.jobs.values())
        raise Conflict(
            f"{_jobs_left(running, left - running)}; wait or cancel, or force it: what runs is saved, and all of it goes on when the "
            "service next starts"
        )
    service.ending.set()
    return JSONResponse({"stopped": True})


def _jobs_left(running: int, queued: int) -> str:
    """How many there are, as the beginning of a sentence.

    >>> _jobs_left(1, 0), _jobs_left(0, 2), _jobs_left(2, 1)
    ('1 job is running', '2 jobs are queued', '2 jobs are running and 1 is queued')
    """
    if not running or not queued:
        count, what = (running, "running") if running else (queued, "queued")
        return f"{count} {'job is' if count == 1 else 'jobs are'} {what}"
    return f"{running} {'job is' if running == 1 else 'jobs are'} running and {queued} {'is' if queued == 1 else 'are'} queued"
