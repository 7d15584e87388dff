"""Where the service of this user and machine listens, and the lock that makes it the only one."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import tempfile
from pathlib import Path

from modelscope_app.api import BadInput
from modelscope_app.locations import runtime_dir, state_dir

_LONGEST_PATH = 100
"""Bytes; systems take 104 to 108 in the address of a Unix socket."""


def service_socket() -> Path:
    """Where the service that holds (or last held) the lock said it listens; where a new one would, if none did.

    A session with another runtime folder, or with none (cron, some ssh), finds the service all the same.
    """
    try:
        said = json.loads(lock_path().read_bytes())["socket"]
    except (OSError, ValueError, KeyError, TypeError):
        return socket_paths()[0]
    return Path(said) if isinstance(said, str) and said else socket_paths()[0]


def socket_paths() -> tuple[Path, Path]:
    """Where a service listens: in the runtime folder; and where that cannot be, or its path is too long for a socket, in /tmp.

    Named after the state folder: the services of several must not take each other's place in one runtime folder.
    """
    path = runtime_dir() / f"service-{hashlib.sha256(os.fsencode(state_dir().resolve())).hexdigest()[:8]}.sock"
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"modelscope-app-{os.getuid()}" / f"{name}.sock"
    return (path if len(os.fsencode(path)) <= _LONGEST_PATH else short), short


def make_private_folder(folder: Path) -> None:
    """Make the folder of a socket if need be, so that nobody else can look into it. Raises BadInput where it is somebody else's."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise BadInput(f"{folder}: is not a folder of yours, so the service will not listen there; set MSCOPE_RUNTIME_DIR to another")
        if found.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise BadInput(f"{folder}: cannot hold the service's socket ({error.strerror}); set MSCOPE_RUNTIME_DIR to another") from None


def lock_path() -> Path:
    """The file the running service holds an flock on, by machine: state folders may be shared between machines.

    It holds {"pid", "started", "socket"} as JSON.
    """
    return state_dir() / f"service-{socket.gethostname()}.lock"


def log_path() -> Path:
    """What the service, its workers and what they import have said."""
    return state_dir() / "service.log"
