"""`mscope service`: starting, looking, unloading and stopping, and what each says when there is no service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs.pretend_service import answer, pretending
from service_process import Background, background, processes, state, wait_until

from modelscope_app.jobs import Client
from modelscope_app.jobs.address import log_path, service_socket
from modelscope_app.jobs.protocol import API_VERSION

SAMPLE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    monkeypatch.setenv("SURVIVOR_SLEEP", "0.02")
    monkeypatch.setenv("MSCOPE_SAVE_INTERVAL_SECONDS", "0.05")
    with background(tmp_path / "site", monkeypatch) as made:
        yield made


@pytest.mark.parametrize(
    ("words", "text", "value"),
    [
        (["status"], "the service is not running; it starts by itself when it is needed\n", {"running": False, "queued": []}),
        (["stop"], "the service is not running\n", {"stopped": False, "queued": []}),
        (["unload"], "the service is not running, so no model is resident\n", {"unloaded": 0}),
        (["unload", SAMPLE], "the service is not running, so no model is resident\n", {"unloaded": 0}),
    ],
    ids=["status", "stop", "unload", "unload-one"],
)
def test_without_a_service_there_is_nothing_to_do(desk: Background, words: list[object], text: str, value: object) -> None:
    ended = desk.mscope("service", *words)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, text, "")
    ended = desk.mscope("service", *words, "--json")
    assert (ended.returncode, json.loads(ended.stdout), ended.stderr) == (0, value, "")
    assert processes() == {}


def test_it_is_started_once_looked_at_and_stopped(desk: Background) -> None:
    started = desk.mscope("service", "start")
    pid = desk.service_pid
    assert started.stdout == f"started, process {pid}, listening at {service_socket()}\n"
    assert service_socket().parent == Path(os.environ["MSCOPE_RUNTIME_DIR"])
    assert desk.mscope("service", "start").stdout.startswith(f"running already, process {pid}, listening at ")
    health = json.loads(desk.mscope("service", "start", "--json").stdout)
    assert (health["running"], health["pid"], health["api"]) == (True, pid, API_VERSION)
    assert desk.services() == [pid]

    shown = desk.mscope("service", "status", COLUMNS="80").stdout
    assert f"service  process {pid}, since " in shown
    assert health["socket"] in shown
    assert f"data     {os.environ['MSCOPE_DATA_DIR']}\n" in shown
    assert "no job is queued or running" in shown
    assert "no model is resident" in shown
    assert max(len(line) for line in shown.splitlines() if not line.startswith(("socket", "log", "data"))) <= 80

    assert desk.mscope("service", "stop").stdout == f"stopped, process {pid}\n"
    assert processes() == {}
    assert not Path(health["socket"]).exists()


def test_its_status_shows_what_runs_and_what_waits(desk: Background) -> None:
    first = desk.submit("sampling", "--rows", 100_000)
    wait_until(lambda: state(first) == "running", "the first to run")
    wait_until(lambda: '"progress"' in (first / "events.jsonl").read_text(), "progress")
    second = desk.submit("sampling", "--rows", 3)
    status = json.loads(desk.mscope("service", "status", "--json").stdout)
    assert [(job["run"], job["state"], job["position"]) for job in status["jobs"]] == [
        (first.name, "running", None),
        (second.name, "queued", 0),
    ]
    (cpu,) = [device for device in status["devices"] if device["device"] == "cpu"]
    assert (cpu["running"], cpu["queued"]) == ([first.name], 1)
    assert cpu["workers"][0]["pid"] in desk.workers()
    shown = desk.mscope("service", "status", COLUMNS="80").stdout
    assert f"{first.name}  running  cpu" in shown
    assert f"{second.name}  queued " in shown
    assert "/100,000\n" in shown
    assert [line for line in shown.splitlines() if line != line.rstrip()] == []
    assert max(len(line) for line in shown.splitlines() if not line.startswith(("socket", "log", "data"))) <= 80


def test_it_is_not_stopped_while_jobs_are_left_unless_forced_and_then_they_go_on(desk: Background) -> None:
    first = desk.submit("training", "--rows", 3000)
    wait_until(lambda: state(first) == "running" and any((first / "stages").glob("*/state-*")), "the first to have saved something")
    second = desk.submit("sampling", "--rows", 3)
    refused = desk.mscope("service", "stop")
    assert refused.returncode == 3
    assert "1 job is running and 1 is queued" in refused.stderr
    assert "mscope service stop --force" in refused.stderr
    assert refused.stderr.count("\n") == 1
    forced = desk.mscope("service", "stop", "--force", "--json")
    assert (forced.returncode, json.loads(forced.stdout)) == (0, {"stopped": True, "queued": [first.name, second.name]}), forced.stderr
    assert processes() == {}
    assert (state(first), state(second)) == ("queued", "queued"), (first / "status.json").read_text() + log_path().read_text()
    left = "2 jobs are left on the queue; `mscope service start` goes on with them\n"
    assert desk.mscope("service", "status").stdout.endswith(f"needed\n{left}")
    assert desk.mscope("service", "stop").stdout == f"the service is not running\n{left}"
    started = desk.mscope("service", "start", SURVIVOR_SLEEP="0")
    assert (started.returncode, started.stderr) == (0, "mscope: 2 jobs are taken up from the queue\n")
    for folder in (first, second):
        assert desk.mscope("runs", "watch", folder).returncode == 0
    assert json.loads((first / "status.json").read_text())["attempts"] == 2


def test_a_service_of_another_version_is_shown_and_stopped(desk: Background) -> None:
    other = {"api": 99, "version": "9.9", "pid": 1, "started": 0.0, "host": "h", "socket": "/s", "log": "/l", "data_dir": None}
    with pretending(lambda request: answer(other, api=99)) as requests:
        shown = desk.mscope("service", "status")
        assert shown.returncode == 0
        assert "version  9.9, API 99" in shown.stdout
        assert "To end it: mscope service stop" in shown.stdout
        assert json.loads(desk.mscope("service", "status", "--json").stdout) == {"running": True, **other}
        refused = desk.mscope("run", "weights.stats", SAMPLE, "--detach")
        assert refused.returncode == 3
        assert f"speaks version 99 of its API, and this mscope version {API_VERSION}" in refused.stderr
        assert desk.mscope("service", "stop").stdout == "stopped, process 1\n"
    assert requests[-1].path == "/shutdown"
    assert processes() == {}


def test_what_checkpoints_and_devices_are_called_is_shown_neutralised(desk: Background) -> None:
    device = {"device": "cuda:0", "name": "\x1b[31mGPU", "capacity_bytes": 8 * 10**10, "limit_bytes": 4 * 10**10, "resident_bytes": 1}
    device |= {"workers": [], "running": [], "queued": 0}
    model = {"path": "/models/\x1b[31mred", "fingerprint": "f", "device": "cuda:0", "dtype": "bfloat16", "memory_bytes": 16 * 10**9}
    model |= {"since": 0.0, "last_used": 0.0, "worker": 1}
    told = {
        "/health": {"api": API_VERSION, "version": "1", "pid": 1, "started": 0.0, "host": "h", "socket": "/s", "log": "/l"},
        "/devices": {"devices": [device]},
        "/jobs": {"jobs": []},
        "/checkpoints": {"resident": [model]},
    }
    with pretending(lambda request: answer(told[request.path])):
        shown = desk.mscope("service", "status", COLUMNS="80").stdout
    assert "\x1b" not in shown
    assert "\\x1b[31mGPU" in shown
    assert "80.0 GB" in shown
    assert "16.0 GB" in shown
    assert max(map(len, shown.splitlines())) <= 80


def completions(words: str) -> list[str]:
    code = "from modelscope_app.cli.main import main; main()"
    environment = {**os.environ, "_MSCOPE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    return ended.stdout.split()


def test_tab_completes_subcommands_and_resident_models_and_starts_nothing(desk: Background) -> None:
    assert completions("mscope serv") == ["plain,service"]
    assert set(completions("mscope service st")) == {"plain,start", "plain,stop", "plain,status"}
    assert completions("mscope service unload mod") == ["file,mod"]
    assert "plain,--detach" in completions("mscope run weights.stats --d")
    assert processes() == {}
    model = {"path": "/models/red", "fingerprint": "f", "device": "cpu", "dtype": "float32", "memory_bytes": 1, "since": 0, "last_used": 0}
    with pretending(lambda request: answer({} if request.path == "/health" else {"resident": [model, model]})):
        assert completions("mscope service unload /mo") == ["plain,/models/red"]
        assert completions("mscope service unload /other") == ["file,/other"]


def test_unloading_names_a_checkpoint_as_people_do(desk: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SAMPLE.parent)
    with pretending(lambda request: answer({"unloaded": 1 if request.body["checkpoint"] else 2})) as requests:
        assert desk.mscope("service", "unload", "digits-mlp").stdout == "1 model unloaded\n"
        assert desk.mscope("service", "unload").stdout == "2 models unloaded\n"
        desk.mscope("service", "unload", "../sample_checkpoints/digits-mlp/")
    assert [request.body["checkpoint"] for request in requests] == [str(SAMPLE), None, str(SAMPLE)]


MODEL_USER = """
from pydantic import BaseModel
from modelscope_app.api import Analysis, Checkpoints, hookimpl
MODELSCOPE_API = (1, 1)
class Params(BaseModel): ...
@hookimpl
def modelscope_analyses():
    return [Analysis("build", "Build", "Does it build?", Params, "model_user:build", checkpoints=Checkpoints(1, 1, "model"))]
def build(context, params):
    context.facts({"parameters": sum(p.numel() for p in context.model(0).module.parameters())})
"""


def test_a_resident_model_is_shown_and_unloaded(desk: Background, tmp_path: Path) -> None:
    (tmp_path / "site" / "model_user.py").write_text(MODEL_USER)
    with (tmp_path / "site" / "survivor-1.0.dist-info" / "entry_points.txt").open("a") as stream:
        stream.write("model-user = model_user\n")
    submitted = desk.mscope("run", "model-user.build", SAMPLE, "--detach", "--quiet")
    assert submitted.returncode == 0, submitted.stderr
    watched = desk.mscope("runs", "watch", submitted.stdout.strip())
    assert watched.returncode == 0, watched.stdout + watched.stderr
    (model,) = json.loads(desk.mscope("service", "status", "--json").stdout)["resident"]
    assert (model["path"], model["device"]) == (str(SAMPLE), "cpu")
    assert model["memory_bytes"] > 0
    assert completions(f"mscope service unload {SAMPLE.parent}") == [f"plain,{SAMPLE}"]
    shown = desk.mscope("service", "status", COLUMNS="200").stdout
    assert str(SAMPLE) in shown
    narrow = desk.mscope("service", "status", COLUMNS="80").stdout.splitlines()
    (line,) = [line for line in narrow if "digits-mlp" in line]
    assert line.startswith("…/")
    assert " kB " in line
    assert max(len(line) for line in narrow if not line.startswith(("socket", "log", "data"))) <= 80
    assert [line for line in narrow if line != line.rstrip()] == []
    assert desk.mscope("service", "unload", SAMPLE).stdout == "1 model unloaded\n"
    with Client(start=False) as client:
        wait_until(lambda: client.resident() == (), "the model to go")
    assert desk.mscope("service", "unload").stdout == "0 models unloaded\n"
    refused = desk.mscope("service", "unload", SAMPLE)
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr == f"mscope: {SAMPLE}: no model of it is resident; `mscope service status` shows which are\n"
