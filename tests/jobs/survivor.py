"""A plugin whose analyses can be killed at a chosen step, to prove that they survive it.

SURVIVOR_KILL=<stage>:<step> in the environment makes that step end its own process with SIGKILL, after its work is done and
before the host could save it. SURVIVOR_SLEEP=<seconds> slows every step down, for kills from outside.
"""

from __future__ import annotations

import os
import signal
import time

from pydantic import BaseModel, Field

from modelscope_app.api import Analysis, Checkpoints, FactsView, TableView, hookimpl

MODELSCOPE_API = (1, 1)


NAMES = (
    *("two-passes", "appending", "sampling", "training", "drawing"),
    *("sleeping", "long-kernel", "raising", "exiting", "panicking", "filling", "printing"),
)


class Params(BaseModel):
    rows: int = Field(40, ge=1, description="items to pass over")


@hookimpl
def modelscope_analyses():
    none = Checkpoints(0, 0)
    return [
        Analysis(
            name=name,
            title=name,
            summary=f"{name} that can be killed",
            params=Params,
            run=f"survivor:{name.replace('-', '_')}",
            checkpoints=none,
        )
        for name in NAMES
    ]


def die_or_go_on(stage, step):
    time.sleep(float(os.environ.get("SURVIVOR_SLEEP", "0")))
    if os.environ.get("SURVIVOR_KILL") == f"{stage}:{int(step)}":
        os.kill(os.getpid(), signal.SIGKILL)


def value_of(item):
    import torch

    return torch.randn(16, generator=torch.Generator().manual_seed(item)) * 10.0 ** (item % 7)


class Total:
    """Sum of f(values): float32 on purpose, so that another order of additions would show."""

    def __init__(self, stage, f):
        self.stage, self.f = stage, f

    def start(self):
        import torch

        return {"total": torch.zeros(16), "steps": torch.zeros((), dtype=torch.int64)}

    def step(self, state, batch):
        for item in batch:
            state["total"] += self.f(value_of(item))
        state["steps"] += 1
        die_or_go_on(self.stage, state["steps"])
        return state

    def finish(self, state):
        return state["total"]

    def merge(self, a, b):
        return {name: a[name] + b[name] for name in a}


def two_passes(context, params):
    items = list(range(params.rows))
    mean = context.fold("first", Total("first", lambda value: value), context.items(items, 3)) / len(items)
    scale = context.once("scale", lambda: {"scale": mean.abs().max(), "nan": float("nan"), "why": ("kept", 1)})
    squares = context.fold("second", Total("second", lambda value: ((value - mean) / scale["scale"]) ** 2), context.items(items, 3))
    context.tensors("result", {"mean": mean, "squares": squares})
    context.facts({"largest": float(squares.max()), "nan": scale["nan"], "tuple": scale["why"] == ("kept", 1)})
    context.view(FactsView(name="facts", title="Facts"))


class Appending(Total):
    def __init__(self, context):
        super().__init__("collect", lambda value: value)
        self.context = context

    def step(self, state, batch):
        import torch

        self.context.append("rows", {"id": torch.tensor(batch), "value": torch.stack([value_of(item) for item in batch]) + state["total"]})
        return super().step(state, batch)


def appending(context, params):
    import polars
    import torch

    total = context.fold("collect", Appending(context), context.items(list(range(params.rows)), 3))
    chunks = list(context.appended("rows"))
    context.tensors("result", {"total": total, "rows": torch.cat([chunk["value"] for chunk in chunks])})
    context.table("ids", polars.DataFrame({"id": torch.cat([chunk["id"] for chunk in chunks]).tolist()}))
    context.view(TableView(name="ids", title="Ids", table="ids"))
    context.facts({"chunks": len(chunks)})


class Sampling(Total):
    def __init__(self, context):
        super().__init__("sample", None)
        self.context = context

    def step(self, state, batch):
        import torch

        for item in batch:
            state["total"] += torch.randn(16, generator=self.context.generator("sample", item))
        state["steps"] += 1
        die_or_go_on(self.stage, state["steps"])
        return state


def sampling(context, params):
    context.tensors("result", {"total": context.fold("sample", Sampling(context), context.items(list(range(params.rows)), 3))})


class Training:
    """Adam on a noisy quadratic, drawing from every running generator: sequential, so it has no merge."""

    def start(self):
        import torch

        return {"w": torch.randn(16), "m": torch.zeros(16), "v": torch.zeros(16), "steps": torch.zeros((), dtype=torch.int64)}

    def step(self, state, batch):
        import random

        import numpy
        import torch

        noise = torch.randn(16) + float(numpy.random.normal()) + random.gauss(0, 1)
        gradient = state["w"] - value_of(batch[0] % 5) + 0.1 * noise
        state["m"] = 0.9 * state["m"] + 0.1 * gradient
        state["v"] = 0.99 * state["v"] + 0.01 * gradient**2
        state["w"] = state["w"] - 0.05 * state["m"] / (state["v"].sqrt() + 1e-8)
        state["steps"] += 1
        die_or_go_on("train", state["steps"])
        return state

    def finish(self, state):
        return {"w": state["w"]}


def training(context, params):
    import torch

    trained = context.fold("train", Training(), context.items(list(range(params.rows))))
    context.tensors("result", {**trained, "after": torch.randn(4)})


def sleeping(context, params):
    """Waits outside any fold, in Python."""
    context.progress(0, 1, "naps")
    print("sleeping", flush=True)
    time.sleep(60)


def long_kernel(context, params):
    """One backward pass that takes far longer than a person waits."""
    import torch

    x = torch.randn(2000, 2000, requires_grad=True)
    y = x
    for _ in range(8):
        y = torch.tanh(y @ x)
    print("backward", flush=True)
    y.sum().backward()


def raising(context, params):
    raise KeyError("a key\x1b[31m nobody has")


def printing(context, params):
    print("this belongs into the log")
    os.system("echo so does this")
    os.write(1, b"and this\n")
    os.write(2, b"noise of a library\n")
    context.warn("a sentence for people")
    context.facts({"done": True})


def exiting(context, params):
    raise SystemExit(0)


class Panic(BaseException):
    """What a Rust library's panic looks like: no Exception."""


def panicking(context, params):
    raise Panic("a library gave up")


def filling(context, params):
    raise MemoryError


def drawing(context, params):
    """Draws before, between, inside and after stages, and inside a shared result."""
    import torch

    drawn = [torch.rand(1)]
    drawn.append(context.once("one", lambda: torch.rand(1)))
    drawn.append(torch.rand(1))
    drawn.append(context.cached({"what": "shared", "rows": params.rows}, lambda: torch.rand(1)))
    drawn.append(torch.rand(1))
    drawn.append(context.fold("first", Total("first", lambda value: value), context.items([1, 2, 3])))
    drawn.append(torch.rand(1))
    context.tensors("result", {str(number): value for number, value in enumerate(drawn)})
    context.facts({"sum": float(sum(value.sum() for value in drawn))})
