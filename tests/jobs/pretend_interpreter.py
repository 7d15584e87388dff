# ruff: noqa: E402 - its own package has to be found first
"""An interpreter that pretends: worker and preparer of a machine with as many GPUs as a test likes, without torch.

The service starts it as `python -P -m MODULE`. `machine.json` beside it says what there is:
{"devices": {"cuda:0": 1000, ...}, "fail_hello": n, "estimate": bytes}. What a worker is asked is written to `heard.jsonl`.
A job's params say what becomes of it: {"seconds": 0.2, "end": "done" | "segfault" | "exit" | "short" | "never" | "deaf"}.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

sys.path[:0] = [os.environ["PRETEND_PACKAGE"]]

from modelscope_app.runs.events import EventLog
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import runs_dir
from modelscope_app.runs.job import Job, JobCheckpoint
from modelscope_app.runs.lock import RunLock
from modelscope_app.runs.queue_record import Need, QueueRecord
from modelscope_app.runs.status import Status, write_status

HERE = Path(sys.argv[0]).resolve().parent
MACHINE = json.loads((HERE / "machine.json").read_text())


def say(word, **values):
    os.write(1, json.dumps({"say": word, **values}).encode() + b"\n")


def heard(message):
    with (HERE / "heard.jsonl").open("a") as stream:
        stream.write(json.dumps({"pid": os.getpid(), "time": time.time(), **message}) + "\n")


def prepare():
    for count, line in enumerate(sys.stdin):
        message = json.loads(line)
        if message["analysis"] == "pretend.hang":
            time.sleep(1000)
        if message["analysis"] == "pretend.die":
            os._exit(9)
        params = message["params"]
        run_id = f"20260101-000000-pretend-{os.getpid()}-{count:04d}"
        checkpoints = tuple(JobCheckpoint(path, path) for path in message["checkpoints"])
        created = "2026-01-01T00:00:00Z"
        job = Job(run_id, message["analysis"], 1, {}, params, checkpoints, (), message["device"], "auto", 0, created, "mscope", "python")
        folder = runs_dir() / run_id
        folder.mkdir(parents=True)
        need = Need(int(params.get("needs", 0)), 0, None, "declared")
        record = QueueRecord(time.time(), socket.gethostname(), sys.argv[0], os.environ.get("PYTHONPATH"), need)
        run = RunFolder.create(folder, job)
        record.write(run.folder)
        say("prepared", id=message["id"], run=run_id, folder=str(run.folder), warnings=[])


def work():
    tries = HERE / "hellos"
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    if len(tries.read_text()) <= MACHINE.get("fail_hello", 0):
        print("this machine has no torch", file=sys.stderr)
        sys.exit(1)
    devices = [{"device": name, "name": name, "capacity_bytes": size} for name, size in MACHINE["devices"].items()]
    say("hello", api=1, devices=devices, threads=1, torch="pretend")
    inbox, cancelled = queue.Queue(), set()

    def read():
        for line in sys.stdin:
            message = json.loads(line)
            heard(message)
            if message["do"] == "cancel":
                cancelled.add(message["folder"])
            else:
                inbox.put(message)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    models = []
    while True:
        message = inbox.get()
        if message["do"] == "unload":
            models = [model for model in models if message["fingerprint"] not in (None, model["fingerprint"])]
            say("resident", models=models)
            continue
        folder = Path(message["folder"])
        run = RunFolder.open(folder)
        params = run.job.params
        end = params.get("end", "done")
        only_on = params.get("only_on")
        if message["device"] != only_on if only_on else end in ("short", "never") and not (HERE / "room").exists():
            say(end, folder=str(folder), needs_bytes=3_000_000_000, free_bytes=1_000_000_000, capacity_bytes=2_000_000_000)
            continue
        if end == "die-early":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        lock = RunLock(folder)
        say("begun", folder=str(folder))
        write_status(folder, Status("running", started=time.time(), device=message["device"]))
        if end == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if end == "exit":
            os._exit(7)
        if end == "deaf":
            time.sleep(1000)
        for checkpoint in run.job.checkpoints:
            if all(model["fingerprint"] != checkpoint.fingerprint for model in models):
                now = time.time()
                models.append(
                    {"path": checkpoint.path, "fingerprint": checkpoint.fingerprint, "device": message["device"], "dtype": "float32",
                     "memory_bytes": 100, "since": now, "last_used": now}
                )  # fmt: skip
                say("resident", models=models)
        until = time.monotonic() + params.get("seconds", 0)
        while time.monotonic() < until and str(folder) not in cancelled:
            time.sleep(0.01)
        state = "cancelled" if str(folder) in cancelled else "done"
        write_status(folder, Status(state, started=time.time(), finished=time.time(), device=message["device"], exit_code=0))
        with closing(EventLog(folder)) as events:
            events.add("state", state=state)
        lock.release()
        say("ended", folder=str(folder))


work() if sys.argv[-1].endswith(".worker") else prepare()
