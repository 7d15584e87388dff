"""From the service's start to its end: being the only one, listening where nobody else can, and going when nobody needs it.

- One per user and machine: whoever holds the flock on `address.lock_path()`; a second one ends at once, with exit code 0.
- The socket is bound here, under a umask that makes it 0600, in a folder that is 0700. No TCP port is opened.
- A socket that vanishes (a logout deletes the runtime folder) is made again within a second.
- It ends when it is told to, by SIGTERM or SIGINT, or after `idle_minutes` without a job or a request. Whoever ends it, running
  jobs are saved and go back to the queue, and the next service takes them up.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import uvicorn

from modelscope_app.api import ExitCode, MscopeError
from modelscope_app.jobs.address import lock_path, log_path, make_private_folder, socket_paths
from modelscope_app.jobs.service.app import Service, create_app
from modelscope_app.jobs.service.child import LOG_FORMAT
from modelscope_app.jobs.service.preparers import Preparers
from modelscope_app.jobs.service.recovery import recover
from modelscope_app.jobs.service.scheduler import Scheduler
from modelscope_app.settings import ServiceSettings, read_settings

_LOOK_SECONDS = 0.5
_PREPARER_IDLE_SECONDS = 300.0
_SUBMISSION_SECONDS = 10.0
"""For submissions that are being checked when the service is to end."""
_LONGEST_LOG = 4 << 20
_BACKLOG = 512

log = logging.getLogger(__name__)


def main() -> None:
    """Run the service until it has to end."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        lock_path().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _lock()
        if lock is None:
            log.info("another service is running; nothing to do")
            return
        _shorten_log()
        asyncio.run(_serve(read_settings().service, lock))
    except MscopeError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)
    except OSError as error:
        log.error("%s: %s", error.filename or "the service", error.strerror or error)
        sys.exit(ExitCode.BAD_INPUT)


def _lock() -> int | None:
    """The descriptor whose flock makes this the only service, held to the end; None where there is another."""
    descriptor = os.open(lock_path(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _say_where(lock: int, path: Path) -> None:
    """Tell clients, in the lock's file."""
    line = json.dumps({"pid": os.getpid(), "started": time.time(), "socket": str(path)}).encode()
    os.pwrite(lock, line, 0)
    os.ftruncate(lock, len(line))


def _shorten_log() -> None:
    with suppress(OSError):
        if log_path().stat().st_size > _LONGEST_LOG:
            os.truncate(log_path(), 0)


def bound_anywhere() -> tuple[Path, socket.socket]:
    """A listening socket in the runtime folder; in /tmp where that cannot be. Raises BadInput where neither can."""
    first, other = socket_paths()
    try:
        return first, bound_socket(first)
    except (MscopeError, OSError) as error:
        if first == other:
            raise
        log.warning("%s", error)
        return other, bound_socket(other)


def bound_socket(path: Path) -> socket.socket:
    """A listening socket that its user alone can connect to. A stale one in its place is replaced."""
    make_private_folder(path.parent)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(umask)
    listening.listen(_BACKLOG)
    listening.setblocking(False)
    return listening


class _Server(uvicorn.Server):
    """Leaves signals to the service."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(settings: ServiceSettings, lock: int) -> None:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    with suppress(ValueError, AttributeError):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal it was started from may go
    scheduler, preparers = Scheduler(settings), Preparers()
    service = Service(scheduler, preparers, ending)
    config = uvicorn.Config(
        create_app(service), http="h11", ws="none", lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    path, listening = bound_anywhere()
    inode = _inode(path)
    servers = [_started(config, listening)]
    _say_where(lock, path)
    log.info("service %d listens on %s", os.getpid(), path)
    recovering = asyncio.create_task(_recovered(service))
    while not ending.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await ending.wait()
        scheduler.tick()
        preparers.dismiss_idle(_PREPARER_IDLE_SECONDS)
        if _inode(path) != inode and not ending.is_set():
            with suppress(OSError, MscopeError):
                path, listening = bound_anywhere()
                inode = _inode(path)
                servers.append(_started(config, listening))
                _say_where(lock, path)
                log.warning("the socket had vanished and was made again: %s", path)
        if _is_idle(service, settings):
            log.info("nobody has needed the service for %g minutes", settings.idle_minutes)
            ending.set()
    log.info("service %d ends", os.getpid())
    recovering.cancel()
    with suppress(OSError):
        if _inode(path) == inode:
            path.unlink()
    deadline = loop.time() + _SUBMISSION_SECONDS
    while service.submissions_open and loop.time() < deadline:
        await asyncio.sleep(0.02)
    await scheduler.stop()
    await preparers.end()
    for server in servers:
        server[0].should_exit = True
    await asyncio.gather(*(server[1] for server in servers), return_exceptions=True)


def _started(config: uvicorn.Config, listening: socket.socket) -> tuple[_Server, asyncio.Task[None]]:
    server = _Server(config)
    return server, asyncio.create_task(server.serve(sockets=[listening]))


async def _recovered(service: Service) -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(5.0, service.is_recovered.set)  # a run whose worker is still saving keeps nobody waiting
    await recover(service.scheduler)
    service.is_recovered.set()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _is_idle(service: Service, settings: ServiceSettings) -> bool:
    quiet = asyncio.get_running_loop().time() - service.last_request
    return not service.scheduler.jobs and not service.requests_open and quiet >= 60 * settings.idle_minutes
