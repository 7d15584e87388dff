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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelscope_app import __version__
from modelscope_app.api import BadInput, ExitCode, MscopeError, UsageError
from modelscope_app.jobs.address import log_path, service_socket
from modelscope_app.jobs.protocol import API_HEADER, API_VERSION
from modelscope_app.jobs.service.child import Interpreter
from modelscope_app.jobs.service.event_stream import event_lines
from modelscope_app.jobs.service.preparers import Preparers
from modelscope_app.jobs.service.queued_job import QueuedJob, ended_json
from modelscope_app.jobs.service.scheduler import Scheduler
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import find_run
from modelscope_app.runs.queue_record import read_queue_record
from modelscope_app.runs.status import FINAL_STATES

_LARGEST_BODY = 16 << 20

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

    def __init__(self, scheduler: Scheduler, preparers: Preparers, stop: Callable[[], None]) -> None:
        self.scheduler = scheduler
        self.preparers = preparers
        self.stop = stop
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
            Route("/checkpoints", _checkpoints),
            Route("/checkpoints/unload", _unload, methods=["POST"]),
            Route("/shutdown", _shutdown, methods=["POST"]),
        ],
        exception_handlers={MscopeError: _error, HTTPException: _http_error, OSError: _system_error},
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
                "capacity_bytes": capacities.get(device),
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
    if service.scheduler.is_stopping:
        raise Stopping("the service is ending; submit again in a moment")
    interpreter = _interpreter(body)
    service.scheduler.prewarm(interpreter)
    reference = _text(body, "run")
    if reference is not None:
        run = await asyncio.to_thread(find_run, reference)
        answer = await service.preparers.ask(interpreter, do="readmit", folder=str(run.folder))
    else:
        names = ("analysis", "checkpoints", "params", "device", "dtype", "seed", "out", "cwd")
        if unknown := sorted(body.keys() - {*names, "run", "interpreter", "python_path"}):
            raise UsageError(f"{unknown[0]!r} means nothing here; a submission has {', '.join(names)}, or run alone")
        defaults = {"checkpoints": [], "params": {}, "device": "auto", "dtype": "auto", "seed": 0}
        message = {name: defaults.get(name) if body.get(name) is None else body[name] for name in names}
        answer = await service.preparers.ask(interpreter, do="prepare", **message)
    job = await service.scheduler.add(Path(answer["folder"]))
    warnings = [str(warning) for warning in answer.get("warnings", [])]
    return JSONResponse({**job.to_json(service.scheduler.position(job)), "warnings": warnings}, 201)


def _interpreter(body: dict[str, Any]) -> Interpreter:
    path = _text(body, "interpreter") or sys.executable
    if not os.path.isabs(path) or not os.path.isfile(path) or not os.access(path, os.X_OK):  # noqa: PTH113, PTH117 - raise nothing
        raise BadInput(f"{path}: is no Python; 'interpreter' takes the absolute path of one")
    python_path = _text(body, "python_path")
    if python_path is not None and "\0" in python_path:
        raise UsageError("'python_path' cannot hold a NUL")
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
    if force is not True and service.scheduler.jobs:
        running = sum(job.worker is not None for job in service.scheduler.jobs.values())
        queued = len(service.scheduler.jobs) - running
        raise Conflict(
            f"{running} running and {queued} queued jobs are left; wait for them or cancel them, or force it: what runs is saved, and "
            "all of it goes on when the service next starts"
        )
    service.stop()
    return JSONResponse({"stopped": True})
