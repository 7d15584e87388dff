"""Finding the service of this user and machine, and starting it where nobody answers.

The socket is asked, not the lock: what counts is that somebody answers there. What happens when things fail:
- a socket file that a killed service left behind refuses, and a new service replaces it;
- two callers at once both start a service; the one that does not get the lock ends by itself with exit code 0, and both wait for
  the socket. The same holds where a service runs and its socket has vanished: it makes the socket again within a second;
- a service that ends with another exit code could not start: the last line it wrote to the log is the reason.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path

from modelscope_app.api import BadInput, ExitCode, JobFailed, MscopeError
from modelscope_app.jobs.address import lock_path, log_path, make_private_folder, service_socket
from modelscope_app.locations import absolute_path, state_dir
from modelscope_app.runs.reading import json_value

MODULE = "modelscope_app.jobs.service"
LIMIT_SECONDS = 30.0
"""In which a service has to answer. One that is ending holds the lock while it saves running jobs, for 13 seconds at most."""

_POLL_SECONDS = 0.01
_BETWEEN_STARTS_SECONDS = 1.0
_ANSWER_SECONDS = 2.0
_HEALTH = b"GET /health HTTP/1.0\r\nHost: service\r\n\r\n"
_FOLDERS = tuple(f"MSCOPE_{kind}_DIR" for kind in ("DATA", "CACHE", "CONFIG", "STATE", "RUNTIME"))
_LONGEST_TAIL = 4096
_LOG_PREFIX = re.compile(r"\S+ \S+ service [A-Z]+ ")
"""What stands before the sentence in a line that the service itself writes to the log."""


class Answer(Enum):
    """What came of asking at the socket."""

    YES = "it is well"
    NOT_YET = "somebody listens and does not answer"
    NOBODY = "nobody listens"


def is_running() -> bool:
    """Whether a service listens; it may be too busy to answer."""
    return asked() is not Answer.NOBODY


def is_lock_held() -> bool:
    """Whether a service lives, also one that listens no more: it is saving running jobs before it ends.

    A service that starts in the instant of asking may take this for another one and end; whoever started it tries again.
    """
    try:
        descriptor = os.open(lock_path(), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def asked(patience_seconds: float = _ANSWER_SECONDS) -> Answer:
    """Ask the socket how the service is, in the plainest HTTP. Raises BadInput where its folder is not the user's own."""
    path = service_socket()
    if not os.path.lexists(path.parent):
        return Answer.NOBODY
    make_private_folder(path.parent)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience_seconds)
        try:
            connection.connect(str(path))
        except TimeoutError:
            return Answer.NOT_YET
        except OSError:
            return Answer.NOBODY
        received = b""
        with suppress(OSError):
            connection.sendall(_HEALTH)
            while b"\r\n" not in received and (part := connection.recv(4096)):
                received += part
        return Answer.YES if received.startswith(b"HTTP/") and received.split(b" ", 2)[1:2] == [b"200"] else Answer.NOT_YET


def ensure_service(limit_seconds: float = LIMIT_SECONDS) -> Path:
    """The socket of a service that answers, started if need be. Raises BadInput or JobFailed where it cannot be started."""
    deadline = time.monotonic() + limit_seconds
    child: subprocess.Popen[bytes] | None = None
    started_at, log_end = 0.0, 0
    while True:
        answer = asked(min(_ANSWER_SECONDS, limit_seconds))
        if answer is Answer.YES:
            return service_socket()
        code = None if child is None else child.poll()
        if code:
            raise _could_not_start(code, log_end)
        now = time.monotonic()
        if now >= deadline:
            raise _does_not_answer(limit_seconds, is_ours=child is not None and code is None)
        is_due = child is None or (code == 0 and now - started_at >= _BETWEEN_STARTS_SECONDS)
        if answer is Answer.NOBODY and is_due:
            log_end = _log_size()
            child, started_at = _started(), now
        time.sleep(_POLL_SECONDS)


def absolute_python_path() -> str | None:
    """PYTHONPATH with every entry absolute: who reads it has another working folder."""
    text = os.environ.get("PYTHONPATH")
    return os.pathsep.join(os.path.abspath(entry) for entry in text.split(os.pathsep)) if text else None  # noqa: PTH100 - "" is "."


def _started() -> subprocess.Popen[bytes]:
    """A service in a session of its own, which neither this process' terminal nor its end reaches."""
    log = log_path()
    try:
        state_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise BadInput(f"{log}: cannot be written ({error.strerror}), so the service cannot be started; set MSCOPE_STATE_DIR") from None
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise BadInput(f"{sys.executable}: the service cannot be started ({error.strerror})") from None
    finally:
        os.close(descriptor)
    threading.Thread(target=child.wait, name="service", daemon=True).start()  # a caller that lives on leaves no zombie
    return child


def _environment() -> dict[str, str]:
    """This process' own, with folders that were named relative to its working folder made absolute."""
    environment = dict(os.environ)
    for name in _FOLDERS:
        if environment.get(name):
            environment[name] = str(absolute_path(environment[name]))
    if (python_path := absolute_python_path()) is not None:
        environment["PYTHONPATH"] = python_path
    return environment


def _could_not_start(code: int, log_end: int) -> MscopeError:
    said = _last_line_since(log_end)
    how = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
    if said and code in (ExitCode.USAGE, ExitCode.BAD_INPUT):
        return BadInput(f"the service could not start: {said}")  # that is all there is to know
    return JobFailed(f"the service could not start: {said or how}; more may be in {log_path()}")


def _does_not_answer(seconds: float, is_ours: bool) -> MscopeError:
    """Either the one that was started is slow, or another holds the lock and listens elsewhere, or does nothing."""
    holder = None
    if not is_ours:
        with suppress(OSError, BadInput, KeyError, TypeError):
            holder = json_value(lock_path())["pid"]
    who = f"the service (process {holder})" if isinstance(holder, int) else "the service"
    return JobFailed(f"{who} does not answer at {service_socket()} for {seconds:.0f} s; end it if it hangs, and look into {log_path()}")


def _log_size() -> int:
    try:
        return log_path().stat().st_size
    except OSError:
        return 0


def _last_line_since(position: int) -> str:
    try:
        with log_path().open("rb") as stream:
            stream.seek(max(position, stream.seek(0, os.SEEK_END) - _LONGEST_TAIL))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return _LOG_PREFIX.sub("", last, count=1).removeprefix("mscope: ")
