"""What the benchmark of background jobs runs: nothing at all, one fold step on a model, and ten thousand events."""

from __future__ import annotations

import time

from pydantic import BaseModel, Field

from modelscope_app.api import Analysis, Checkpoints, hookimpl

MODELSCOPE_API = (1, 1)


class Params(BaseModel):
    count: int = Field(1, ge=0, description="items, or events")


@hookimpl
def modelscope_analyses():
    none, model = Checkpoints(0, 0), Checkpoints(1, 1, "language-model")
    return [
        Analysis(name="nothing", title="Nothing", summary="Does nothing.", params=Params, run="bench_jobs:nothing", checkpoints=none),
        Analysis(name="step", title="Step", summary="One fold step.", params=Params, run="bench_jobs:step", checkpoints=model),
        Analysis(name="talking", title="Talking", summary="Events, evenly.", params=Params, run="bench_jobs:talking", checkpoints=none),
        Analysis(name="events", title="Events", summary="Many events.", params=Params, run="bench_jobs:events", checkpoints=none),
    ]


def nothing(context, params):
    """The least a job can do."""


class FirstStep:
    """Says when its first step began."""

    def __init__(self, model):
        self.model = model

    def start(self):
        import torch

        return {"seen": torch.zeros((), dtype=torch.int64)}

    def step(self, state, batch):
        self.began = time.time()
        assert self.model.unsettled_module is not None
        state["seen"] += len(batch)
        return state

    def finish(self, state):
        return {"began": self.began}


def step(context, params):
    """One step of a fold that has the model."""
    found = context.fold("first", FirstStep(context.model()), context.items(list(range(params.count))))
    context.facts({"began": found["began"]})


def events(context, params):
    """One event after the other."""
    for number in range(params.count):
        context.warn(f"event {number}")


def talking(context, params):
    """A thousand events a second."""
    began = time.monotonic()
    for number in range(params.count):
        context.progress(number, params.count, "events")
        context.warn(f"event {number}")
        time.sleep(max(0.0, began + number / 1000 - time.monotonic()))
