"""Talking to the service from Python. `Client` blocks, `AsyncClient` is awaited, and both can do the same.

    from modelscope_app.jobs import Client

    with Client() as client:
        job = client.submit("weights.stats", ["sample_checkpoints/digits-mlp"], {"bins": 50})
        ended = client.wait(job.run, on_event=print)
        print(ended.state, ended.folder)

The service is started when nobody answers, unless the client was made with `start=False`. It outlives the client, and so do its
jobs. Relative paths are read from the working folder of the process; jobs are executed by the Python that made the client, or by
`interpreter`. What goes wrong is raised as `UsageError`, `BadInput` or `JobFailed` of `modelscope_app.api`, with one sentence.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx2

from modelscope_app.api import BadInput
from modelscope_app.jobs import conversation
from modelscope_app.jobs.address import make_private_folder, service_socket
from modelscope_app.jobs.answers import DeviceInfo, Fit, JobInfo, ResidentModel, ServiceHealth
from modelscope_app.jobs.conversation import (
    Ask,
    ConnectionBroke,
    Conversation,
    Hand,
    NobodyListens,
    Question,
    Read,
    Reply,
    Sleep,
    Start,
    TookTooLong,
)
from modelscope_app.jobs.protocol import API_HEADER
from modelscope_app.jobs.starting import ensure_service
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import register, runs_dir

Value = TypeVar("Value")

_CONNECT_SECONDS = 10.0


class Client:
    """A connection to the service of this user and machine; safe to use from several threads."""

    def __init__(self, start: bool = True, interpreter: str | None = None) -> None:
        """`start` it when nobody answers; jobs are executed by `interpreter` (this process' own by default)."""
        self._start = start
        self._interpreter = interpreter
        self._http: dict[str, httpx2.Client] = {}
        """By socket: a service that was started anew may listen elsewhere."""

    def submit(
        self,
        analysis: str,
        checkpoints: Sequence[str | Path] = (),
        params: Mapping[str, Any] | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        seed: int = 0,
        out: str | Path | None = None,
    ) -> JobInfo:
        """Queue a job. Returns when it was checked and its run folder is there. Raises what is wrong with it.

        Without `out` that is in the service's data folder; where this process has another one, the run is in the index of runs.
        """
        job = self._ask(conversation.submit(analysis, checkpoints, params, device, dtype, seed, out, self._interpreter))
        return job if out is not None else _made_findable(job)

    def estimate(
        self,
        analysis: str,
        checkpoints: Sequence[str | Path] = (),
        params: Mapping[str, Any] | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Fit:
        """Whether a job would fit into its device now. Nothing is queued. Raises what `submit` would, but for a plugin that fails."""
        return self._ask(conversation.estimate(analysis, checkpoints, params, device, dtype, self._interpreter))

    def resume(self, run: str | Path) -> JobInfo:
        """Queue a run again that was lost, cancelled or failed, or never began. Takes an id or a run folder."""
        return self._ask(conversation.resume(run, self._interpreter))

    def jobs(self) -> tuple[JobInfo, ...]:
        """Jobs queued, waiting and running, in the order of the queue; then those that ended, newest first."""
        return self._ask(conversation.jobs())

    def job(self, run: str) -> JobInfo:
        """One of them, by run id or its unique beginning. Raises UnknownRun."""
        return self._ask(conversation.job(run))

    def cancel(self, run: str) -> JobInfo:
        """Ask a job to stop; does not wait for its end. Raises Busy where it has ended."""
        return self._ask(conversation.cancel(run))

    def events(self, run: str, since: int = 0, follow: bool = True) -> Iterator[dict[str, Any]]:
        """Events of a run from number `since` on, until it has ended, or without `follow` those there are."""
        with closing(self._told(conversation.following(run, since, follow, self._start))) as told:
            yield from told

    def wait(self, run: str, on_event: Callable[[dict[str, Any]], object] | None = None) -> JobInfo:
        """Follow a run to its end; how it ended."""
        told = self._told(conversation.following(run, 0, True, self._start))
        try:
            while True:
                event = next(told)
                if on_event is not None:
                    on_event(event)
        except StopIteration as ended:
            found: JobInfo = ended.value
            return found
        finally:
            told.close()

    def devices(self) -> tuple[DeviceInfo, ...]:
        """Devices, their memory, and what happens on them. GPUs are known once a worker has started."""
        return self._ask(conversation.devices())

    def resident(self) -> tuple[ResidentModel, ...]:
        """Models that stay on devices between jobs."""
        return self._ask(conversation.resident())

    def unload(self, checkpoint: str | Path | None = None) -> int:
        """Take the models of a checkpoint (path or fingerprint), or all, from their devices; how many went."""
        return self._ask(conversation.unload(checkpoint))

    def health(self) -> ServiceHealth:
        """The service itself; also one of another API version."""
        return self._ask(conversation.health())

    def shutdown(self, force: bool = False) -> None:
        """End the service. Raises Busy while it has jobs, unless `force`: those are saved and taken up by the next service."""
        self._ask(conversation.shutdown(force), start=False)

    def close(self) -> None:
        """Close the connection. Jobs go on."""
        for http in self._http.values():
            http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, question: Question[Value], start: bool = True) -> Value:
        told = self._told(question.asked(self._start and start))
        try:
            next(told)
        except StopIteration as ended:
            value: Value = ended.value
            return value
        raise AssertionError("a question hands out no events")

    def _told(self, talk: Conversation[Value]) -> Generator[dict[str, Any], None, Value]:
        """Act out a conversation: yields the events it hands out, returns what it comes to."""
        stream: httpx2.Response | None = None
        parts: Iterator[bytes] = iter(())
        result: Any = None
        failure: Exception | None = None
        try:
            while True:
                try:
                    step = talk.send(result) if failure is None else talk.throw(failure)
                except StopIteration as ended:
                    value: Value = ended.value
                    return value
                result = failure = None
                if isinstance(step, Hand):
                    yield step.event
                    continue
                try:
                    with _said_plainly():
                        match step:
                            case Ask():
                                if stream is not None:
                                    stream.close()
                                stream = self._at_socket().send(_request(step), stream=True)
                                result, parts = _reply(stream), stream.iter_raw()
                                if not (step.is_stream and stream.status_code == 200):
                                    result = _reply(stream, stream.read())
                            case Read():
                                result = next(parts, b"")
                            case Start():
                                ensure_service()
                            case Sleep():
                                time.sleep(step.seconds)
                except (NobodyListens, ConnectionBroke) as error:
                    failure = error
        finally:
            talk.close()
            if stream is not None:
                stream.close()

    def _at_socket(self) -> httpx2.Client:
        address = _address()
        if address not in self._http:
            self._http[address] = httpx2.Client(transport=httpx2.HTTPTransport(**_settings(address)), trust_env=False)
        return self._http[address]


class AsyncClient:
    """`Client`, awaited."""

    def __init__(self, start: bool = True, interpreter: str | None = None) -> None:
        """As `Client`."""
        self._start = start
        self._interpreter = interpreter
        self._http: dict[str, httpx2.AsyncClient] = {}
        """By socket: a service that was started anew may listen elsewhere."""

    async def submit(
        self,
        analysis: str,
        checkpoints: Sequence[str | Path] = (),
        params: Mapping[str, Any] | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        seed: int = 0,
        out: str | Path | None = None,
    ) -> JobInfo:
        """As `Client.submit`."""
        job = await self._ask(conversation.submit(analysis, checkpoints, params, device, dtype, seed, out, self._interpreter))
        return job if out is not None else await asyncio.to_thread(_made_findable, job)

    async def estimate(
        self,
        analysis: str,
        checkpoints: Sequence[str | Path] = (),
        params: Mapping[str, Any] | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Fit:
        """As `Client.estimate`."""
        return await self._ask(conversation.estimate(analysis, checkpoints, params, device, dtype, self._interpreter))

    async def resume(self, run: str | Path) -> JobInfo:
        """As `Client.resume`."""
        return await self._ask(conversation.resume(run, self._interpreter))

    async def jobs(self) -> tuple[JobInfo, ...]:
        """As `Client.jobs`."""
        return await self._ask(conversation.jobs())

    async def job(self, run: str) -> JobInfo:
        """As `Client.job`."""
        return await self._ask(conversation.job(run))

    async def cancel(self, run: str) -> JobInfo:
        """As `Client.cancel`."""
        return await self._ask(conversation.cancel(run))

    async def events(self, run: str, since: int = 0, follow: bool = True) -> AsyncGenerator[dict[str, Any], None]:
        """As `Client.events`."""
        async with aclosing(self._told(conversation.following(run, since, follow, self._start), [])) as told:
            async for event in told:
                yield event

    async def wait(self, run: str, on_event: Callable[[dict[str, Any]], object] | None = None) -> JobInfo:
        """As `Client.wait`; `on_event` is called, not awaited."""
        ended: list[JobInfo] = []
        async with aclosing(self._told(conversation.following(run, 0, True, self._start), ended)) as told:
            async for event in told:
                if on_event is not None:
                    on_event(event)
        return ended[0]

    async def devices(self) -> tuple[DeviceInfo, ...]:
        """As `Client.devices`."""
        return await self._ask(conversation.devices())

    async def resident(self) -> tuple[ResidentModel, ...]:
        """As `Client.resident`."""
        return await self._ask(conversation.resident())

    async def unload(self, checkpoint: str | Path | None = None) -> int:
        """As `Client.unload`."""
        return await self._ask(conversation.unload(checkpoint))

    async def health(self) -> ServiceHealth:
        """As `Client.health`."""
        return await self._ask(conversation.health())

    async def shutdown(self, force: bool = False) -> None:
        """As `Client.shutdown`."""
        await self._ask(conversation.shutdown(force), start=False)

    async def close(self) -> None:
        """Close the connection. Jobs go on."""
        for http in self._http.values():
            await http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _ask(self, question: Question[Value], start: bool = True) -> Value:
        ended: list[Value] = []
        async with aclosing(self._told(question.asked(self._start and start), ended)) as told:
            async for _ in told:
                raise AssertionError("a question hands out no events")
        return ended[0]

    async def _told(self, talk: Conversation[Value], ended_with: list[Value]) -> AsyncGenerator[dict[str, Any], None]:
        """Act out a conversation: yields the events it hands out, and puts what it comes to into `ended_with`."""
        stream: httpx2.Response | None = None
        parts: Any = None
        result: Any = None
        failure: Exception | None = None
        try:
            while True:
                try:
                    step = talk.send(result) if failure is None else talk.throw(failure)
                except StopIteration as ended:
                    ended_with.append(ended.value)
                    return
                result = failure = None
                if isinstance(step, Hand):
                    yield step.event
                    continue
                try:
                    with _said_plainly():
                        match step:
                            case Ask():
                                if stream is not None:
                                    await stream.aclose()
                                stream = await self._at_socket().send(_request(step), stream=True)
                                result, parts = _reply(stream), stream.aiter_raw()
                                if not (step.is_stream and stream.status_code == 200):
                                    result = _reply(stream, await stream.aread())
                            case Read():
                                result = await anext(parts, b"")
                            case Start():
                                await asyncio.to_thread(ensure_service)
                            case Sleep():
                                await asyncio.sleep(step.seconds)
                except (NobodyListens, ConnectionBroke) as error:
                    failure = error
        finally:
            talk.close()
            if stream is not None:
                await stream.aclose()

    def _at_socket(self) -> httpx2.AsyncClient:
        address = _address()
        if address not in self._http:
            self._http[address] = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(**_settings(address)), trust_env=False)
        return self._http[address]


def _made_findable(job: JobInfo) -> JobInfo:
    """Enter a run that the service put into another data folder than this process' into the index; with a warning where that fails."""
    folder = Path(job.folder)
    with suppress(OSError):
        if folder.parent.samefile(runs_dir()):
            return job
    try:
        if register(RunFolder.open(folder)):
            return job
    except BadInput:
        pass
    warning = f"this run cannot be entered into the index of runs; find it by its folder, {job.folder}"
    return replace(job, warnings=(*job.warnings, warning))


def _address() -> str:
    """The socket. Raises BadInput where its folder is not the user's own."""
    path = service_socket()
    if os.path.lexists(path.parent):
        make_private_folder(path.parent)
    return str(path)


def _settings(address: str) -> dict[str, Any]:
    """Of either transport. Connections are not kept: over a Unix socket a new one costs nothing and is never stale."""
    return {"uds": address, "verify": False, "trust_env": False, "limits": httpx2.Limits(max_keepalive_connections=0)}


def _request(ask: Ask) -> httpx2.Request:
    timeout = httpx2.Timeout(ask.timeout_seconds, connect=_CONNECT_SECONDS)
    extensions = {"timeout": timeout.as_dict()}
    return httpx2.Request(ask.method, f"http://service{ask.path}", headers=ask.headers, json=ask.body, extensions=extensions)


def _reply(response: httpx2.Response, body: bytes = b"") -> Reply:
    return Reply(response.status_code, response.headers.get(API_HEADER), body)


@contextmanager
def _said_plainly() -> Iterator[None]:
    """Errors of the connection in the words of a conversation."""
    try:
        yield
    except httpx2.ConnectError as error:
        raise NobodyListens from error
    except httpx2.TimeoutException as error:
        raise TookTooLong from error
    except (httpx2.TransportError, httpx2.StreamError) as error:
        raise ConnectionBroke from error
