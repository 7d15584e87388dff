"""A socket that answers as a test says, byte for byte: what a service of another version, or one that dies, looks like to a client."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from modelscope_app.jobs.address import make_private_folder, socket_paths
from modelscope_app.jobs.protocol import API_HEADER, API_VERSION


class Request(NamedTuple):
    """What a client asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Answers = Callable[[Request], "bytes | Iterable[bytes]"]
"""The bytes to send, in pieces where time passes between them, after which the connection is closed."""


@contextmanager
def pretending(answers: Answers) -> Iterator[list[Request]]:
    """Listen where a service would; the requests that came."""
    path = socket_paths()[0]
    make_private_folder(path.parent)
    path.unlink(missing_ok=True)
    requests: list[Request] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=_serve, args=(listening, answers, requests))
        thread.start()
        try:
            yield requests
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            path.unlink(missing_ok=True)


def _serve(listening: socket.socket, answers: Answers, requests: list[Request]) -> None:
    threads = []
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            break
        threads.append(threading.Thread(target=_converse, args=(connection, answers, requests)))
        threads[-1].start()
    for thread in threads:
        thread.join()


def _converse(connection: socket.socket, answers: Answers, requests: list[Request]) -> None:
    with connection, suppress(OSError):
        request = _read(connection)
        if request is not None:
            requests.append(request)
            answered = answers(request)
            for piece in [answered] if isinstance(answered, bytes) else answered:
                connection.sendall(piece)


def _read(connection: socket.socket) -> Request | None:
    with connection.makefile("rb") as stream:
        words = stream.readline().decode().split()
        if not words:
            return None
        headers = {}
        while (line := stream.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers.get("content-length", 0)))
        return Request(words[0], words[1], headers, json.loads(body) if body else None)


def answer(value: Any, status: int = 200, api: int | None = API_VERSION, length: int | None = None) -> bytes:
    """An answer in JSON; with `length`, one that announces so many bytes."""
    body = json.dumps(value).encode() if not isinstance(value, bytes) else value
    version = b"" if api is None else f"{API_HEADER}: {api}\r\n".encode()
    return b"HTTP/1.1 %d -\r\n%sContent-Length: %d\r\n\r\n%s" % (status, version, len(body) if length is None else length, body)


def event_stream(*parts: bytes, whole: bool = True) -> bytes:
    """The answer to a question for events, in chunks; not `whole`, it breaks off after them."""
    head = f"HTTP/1.1 200 OK\r\n{API_HEADER}: {API_VERSION}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return head + chunks + (b"0\r\n\r\n" if whole else b"")


def event_line(number: int, **values: Any) -> bytes:
    """One event."""
    return json.dumps({"seq": number, "time": 0.0, "kind": "progress", **values}).encode() + b"\n"


def job(**values: Any) -> dict[str, Any]:
    """A job as a service describes it."""
    return {"run": "run-1", "folder": "/runs/run-1", "analysis": "weights.stats", "state": "running", "need": None, **values}
