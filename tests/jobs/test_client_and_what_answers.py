"""The client over every kind of answer: other versions, half answers, streams that break off, errors, nobody."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs.pretend_service import Request, answer, event_line, event_stream, job, pretending

from modelscope_app.api import BadInput, JobFailed, MscopeError, UsageError
from modelscope_app.jobs import AsyncClient, Client, conversation
from modelscope_app.jobs.address import socket_paths
from modelscope_app.jobs.answers import Busy, NotRunning, UnknownRun
from modelscope_app.jobs.protocol import API_VERSION

Ask = Callable[..., Any]


def blocking(method: str, *words: Any, **options: Any) -> Any:
    with Client(start=False) as client:
        result = getattr(client, method)(*words, **options)
        return list(result) if method == "events" else result


def awaited(method: str, *words: Any, **options: Any) -> Any:
    async def asked() -> Any:
        async with AsyncClient(start=False) as client:
            if method == "events":
                return [event async for event in client.events(*words, **options)]
            return await getattr(client, method)(*words, **options)

    return asyncio.run(asked())


@pytest.fixture(params=[blocking, awaited], ids=["blocking", "awaited"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Call a method of a client that starts no service."""
    asked: Ask = request.param
    return asked


def test_a_submission_says_where_its_paths_and_its_python_are(ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"plugins{os.pathsep}/elsewhere")
    with pretending(lambda request: answer(job(state="queued", position=2, warnings=["take care"], of_later="1"), 201)) as requests:
        found = ask("submit", "weights.stats", [Path("model"), "hf:a/b"], {"bins": 5}, seed=3, out="out")
    body = requests[0].body
    assert (requests[0].method, requests[0].path) == ("POST", "/jobs")
    assert requests[0].headers["mscope-api"] == str(API_VERSION)
    assert (body["checkpoints"], body["cwd"], body["out"]) == (["model", "hf:a/b"], str(tmp_path), str(tmp_path / "out"))
    assert (body["params"], body["seed"], body["device"], body["dtype"]) == ({"bins": 5}, 3, "auto", "auto")
    assert body["python_path"] == f"{tmp_path / 'plugins'}{os.pathsep}/elsewhere"
    assert Path(body["interpreter"]).is_file()
    assert (found.run, found.state, found.position, found.warnings, found.is_final) == ("run-1", "queued", 2, ("take care",), False)


def test_params_are_sent_as_json_and_what_is_none_is_a_sentence(ask: Ask) -> None:
    with pretending(lambda request: answer(job(), 201)) as requests:
        ask("submit", "weights.stats", params={"data": Path("rows.jsonl"), "layers": (1, 2)})
        with pytest.raises(UsageError, match="checkpoints takes a list of paths, as in"):
            ask("submit", "weights.stats", "model")
        for wrong in (object(), float("nan")):
            with pytest.raises(UsageError, match="params cannot be sent to the service"):
                ask("submit", "weights.stats", params={"x": wrong})
    assert [request.body["params"] for request in requests] == [{"data": "rows.jsonl", "layers": [1, 2]}]


def test_everything_that_can_be_asked_is_read_into_frozen_values(ask: Ask) -> None:
    told = {
        "/health": {"api": 1, "version": "9", "pid": 4, "started": 1.5, "host": "h", "socket": "/s", "log": "/l", "later": 1},
        "/devices": {
            "devices": [
                {"device": "cpu", "name": "cpu", "capacity_bytes": None, "limit_bytes": 5, "resident_bytes": 1, "queued": 2}
                | {"workers": [{"pid": 1, "interpreter": "/p", "run": None, "since": 1}], "running": ["r"]}
            ]
        },
        "/jobs": {"jobs": [job(need={"analysis_bytes": 1, "model_bytes": 2, "seconds": None, "basis": "declared"}), job(need=None)]},
        "/jobs/run-1": job(),
        "/jobs/run-1/cancel": job(state="cancelling"),
        "/checkpoints": {
            "resident": [
                {"path": "/m", "fingerprint": "f", "device": "cpu", "dtype": "float32", "memory_bytes": 1, "since": 1, "last_used": 2}
                | {"worker": 7}
            ]
        },
        "/checkpoints/unload": {"unloaded": 2},
        "/shutdown": {"stopped": True},
    }
    with pretending(lambda request: answer(told[request.path])) as requests:
        assert ask("health").pid == 4
        (device,) = ask("devices")
        assert (device.queued, device.running, device.workers[0].pid, device.capacity_bytes) == (2, ("r",), 1, None)
        first, second = ask("jobs")
        assert (first.need.total_bytes, second.need) == (3, None)
        assert ask("job", "run-1").state == "running"
        assert ask("cancel", "run-1").state == "cancelling"
        (model,) = ask("resident")
        assert (model.path, model.worker) == ("/m", 7)
        assert ask("unload", "/m") == 2
        ask("shutdown", force=True)
    assert [request.body for request in requests[-2:]] == [{"checkpoint": "/m"}, {"force": True}]


def test_a_service_of_another_version_is_named_with_what_to_do(ask: Ask) -> None:
    with pretending(lambda request: answer({"jobs": []}, api=API_VERSION + 1)):
        with pytest.raises(BadInput) as error:
            ask("jobs")
        with pytest.raises(BadInput):
            ask("events", "run-1")
    assert f"version {API_VERSION + 1} of its API, and this mscope version {API_VERSION}" in str(error.value)
    assert "mscope service stop" in str(error.value)


def test_a_service_of_another_version_can_be_asked_how_it_is_and_told_to_end(ask: Ask) -> None:
    health = {"api": API_VERSION + 1, "version": "9", "pid": 4, "started": 1.5, "host": "h", "socket": "/s", "log": "/l"}
    with pretending(lambda request: answer(health, api=API_VERSION + 1)) as requests:
        assert ask("health").api == API_VERSION + 1
        ask("shutdown")
    assert not any("mscope-api" in request.headers for request in requests)


@pytest.mark.parametrize(
    ("status", "exit_code", "kind"),
    [(400, 2, UsageError), (400, 3, BadInput), (404, 3, UnknownRun), (409, 3, Busy), (500, 4, JobFailed), (400, None, JobFailed)],
)
def test_an_error_comes_back_as_itself(ask: Ask, status: int, exit_code: int, kind: type[MscopeError]) -> None:
    with (
        pretending(lambda request: answer({"error": "what is\x1b wrong", "exit_code": exit_code}, status)),
        pytest.raises(kind, match=r"^what is\\x1b wrong$") as error,
    ):
        ask("job", "run-1")
    assert type(error.value) is kind


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b"<html>", 200, "the service's answer cannot be read"),
        (b"[]", 200, "it is no JSON object"),
        (json.dumps(job(state="sleeping")).encode(), 200, "'state' is \"sleeping\" and should be one of"),
        (json.dumps(job(done="much")).encode(), 200, "'done' is \"much\" and should be a number"),
        (json.dumps(job(need={"analysis_bytes": "1"})).encode(), 200, "'analysis_bytes'"),
        (b'{"run": "run-1"}', 200, "it has no 'folder'"),
        (b'{"error": 5}', 400, "'error' is no text"),
        (b"oops", 500, "status 500"),
        (b"[" * 100_000, 200, "cannot be read"),
    ],
)
def test_an_answer_of_another_shape_is_a_sentence(ask: Ask, content: bytes, status: int, sentence: str) -> None:
    with pretending(lambda request: answer(content, status)), pytest.raises(JobFailed) as error:
        ask("job", "run-1")
    assert sentence in str(error.value)
    assert "its log is" in str(error.value)


def test_something_else_that_answers_there_is_not_taken_for_the_service(ask: Ask) -> None:
    with pretending(lambda request: answer({"jobs": []}, api=None)), pytest.raises(BadInput, match="what answers there is not the service"):
        ask("jobs")


def test_a_question_is_asked_again_when_its_answer_breaks_off(ask: Ask) -> None:
    left = [answer({"jobs": []}, length=5000), b"", answer({"error": "ending", "exit_code": 4}, 503, length=5000)]
    with pretending(lambda request: left.pop() if left else answer({"jobs": []})) as requests:
        assert ask("jobs") == ()
    assert len(requests) == 4


def test_a_submission_whose_answer_breaks_off_is_not_repeated(ask: Ask) -> None:
    with pretending(lambda request: answer(job(), 201, length=5000)) as requests:
        with pytest.raises(JobFailed, match="went away before it answered; `mscope runs list` shows whether"):
            ask("submit", "weights.stats")
        with pytest.raises(JobFailed, match="went away before it answered"):
            ask("cancel", "run-1")
    assert len(requests) == 2


def test_without_a_service_there_is_a_sentence(ask: Ask) -> None:
    for method, words in (("jobs", ()), ("events", ("run-1",)), ("shutdown", ())):
        with pytest.raises(NotRunning, match="is not running; start it with `mscope service start`"):
            ask(method, *words)


def test_no_event_is_lost_or_doubled_when_a_stream_breaks_off(ask: Ask) -> None:
    lines = [event_line(number, stage="é" * number) for number in range(10)]
    everything = b"".join(lines)

    def answers(request: Request) -> bytes:
        if not request.path.startswith("/jobs/run-1/events"):
            return answer(job(state="done", exit_code=0))
        since = int(request.path.partition("since=")[2].partition("&")[0])
        streamed = len([asked for asked in requests if "events" in asked.path])
        if streamed == 1:
            return event_stream(lines[0][:5], lines[0][5:] + lines[1], b"\n", lines[2][:-1], whole=False)  # without its newline
        if streamed == 2:
            return event_stream(lines[since] + b'{"torn', whole=True)  # a service that ends early, and says so politely
        if streamed == 3:
            return b""
        if streamed == 4:
            return event_stream(everything[: len(everything) - 20], whole=False)  # one that does not know `since`
        return event_stream(*(lines[number] for number in range(since, 10)))

    with pretending(answers) as requests:
        assert [event["seq"] for event in ask("events", "run-1")] == list(range(10))
        requests.clear()
        assert [event["seq"] for event in ask("events", "run-1", since=4)] == list(range(4, 10))
        requests.clear()
        seen: list[int] = []
        ended = ask("wait", "run-1", on_event=lambda event: seen.append(event["seq"]))
        assert (ended.state, seen) == ("done", list(range(10)))


def test_events_that_end_while_the_run_goes_on_are_asked_for_again(ask: Ask) -> None:
    def answers(request: Request) -> bytes:
        asked = [one.path for one in requests]
        if "events" not in request.path:
            return answer(job(state="running" if asked.count("/jobs/run-1") < 2 else "done"))
        since = int(request.path.partition("since=")[2].partition("&")[0])
        return event_stream(*([event_line(since)] if since < 3 else []))

    with pretending(answers) as requests:
        assert [event["seq"] for event in ask("events", "run-1")] == [0, 1, 2]


def test_without_following_the_events_there_are_come_and_that_is_all(ask: Ask) -> None:
    def answers(request: Request) -> bytes:
        return event_stream(event_line(0), event_line(1)) if "follow=false" in request.path else answer(job())

    with pretending(answers):
        assert [event["seq"] for event in ask("events", "run-1", follow=False)] == [0, 1]


def test_a_silent_stream_is_given_up_for_a_new_one(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "_SILENCE_SECONDS", 0.2)

    def silent() -> Iterator[bytes]:
        yield event_stream(event_line(0), whole=False)
        heard.wait(60)

    def answers(request: Request) -> bytes | Iterator[bytes]:
        if "events" not in request.path:
            return answer(job(state="done"))
        return silent() if len(requests) == 1 else event_stream(event_line(0), event_line(1))

    heard = threading.Event()
    with pretending(answers) as requests:
        assert [event["seq"] for event in ask("events", "run-1")] == [0, 1]
        heard.set()
    assert requests[1].path.startswith("/jobs/run-1/events?since=1&")


def test_a_stream_that_is_never_one_is_given_up(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "PATIENCE_SECONDS", 0.5)
    with pretending(lambda request: event_stream(b"no event\n")), pytest.raises(JobFailed, match="nothing was heard of the service"):
        ask("events", "run-1")


def test_a_run_that_is_lost_with_its_service_has_not_ended_before_that_is_settled(ask: Ask, tmp_path: Path) -> None:
    from modelscope_app.runs.queue_record import QueueRecord, drop_queue_record

    QueueRecord(0.0, "here", "/python").write(tmp_path)
    states = ["lost", "lost", "queued", "running", "lost"]

    def answers(request: Request) -> bytes:
        if "events" in request.path:
            return event_stream()
        state = states.pop(0) if len(states) > 1 else states[0]
        if len(states) == 1:
            drop_queue_record(tmp_path)
        return answer(job(state=state, folder=str(tmp_path), error="gone"))

    with pretending(answers):
        ended = ask("wait", "run-1")
    assert (ended.state, ended.error, states) == ("lost", "gone", ["lost"])


def test_names_of_runs_cannot_reach_other_addresses(ask: Ask) -> None:
    with pretending(lambda request: answer(job())) as requests:
        ask("job", "../health?x=1#y")
    assert requests[0].path == "/jobs/..%2Fhealth%3Fx%3D1%23y"


def test_the_services_of_two_state_folders_do_not_take_each_others_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = socket_paths()
    monkeypatch.setenv("MSCOPE_STATE_DIR", str(tmp_path / "another"))
    other = socket_paths()
    assert set(first).isdisjoint(other)
    assert first[0].parent == other[0].parent == Path(os.environ["MSCOPE_RUNTIME_DIR"])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_socket_in_somebody_elses_folder_is_not_asked(ask: Ask) -> None:
    with pretending(lambda request: answer({"jobs": []})) as requests:
        folder = Path(os.environ["MSCOPE_RUNTIME_DIR"])
        assert socket_paths()[0].parent == folder
        os.chown(folder, 65534, 65534)
        with pytest.raises(BadInput, match="is not a folder of yours"):
            ask("jobs")
        os.chown(folder, 0, 0)
    assert requests == []
