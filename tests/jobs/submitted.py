"""A plugin for tests of submissions: plain analyses, and some that do to the process that checks them whatever a plugin can."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from modelscope_app.api import Analysis, Checkpoints, DataFile, Estimate, RunReference, hookimpl

MODELSCOPE_API = (1, 1)


class Plain(BaseModel):
    rows: int = Field(4, ge=1, le=100_000, description="how many")
    scale: float = Field(1.0, description="how much")
    sizes: list[int] = Field([1, 2], description="several")
    text: str = Field("", description="anything")
    data: DataFile = Field("", description="rows to read")
    earlier: RunReference = Field("", description="a run")


class Required(BaseModel):
    rows: int = Field(description="how many")


class Said(BaseModel):
    """What the estimate says."""

    megabytes: float = Field(1.0, ge=0, description="declared")
    takes: int = Field(1, ge=0, description="megabytes that are really taken")
    seconds: float = Field(2.0, description="declared")
    needs_model: bool = Field(False, description="declared")


class Hostile(BaseModel):
    how: str = Field("raise", description="what it does")


class HostileParams(BaseModel):
    how: str = Field("", description="what the check does")

    @field_validator("how")
    @classmethod
    def check(cls, value):
        if value:
            misbehave(value)
        return value


@hookimpl
def modelscope_analyses():
    def one(name, params, checkpoints=Checkpoints(0, 0), estimate=None):  # noqa: B008 - a frozen value
        where = f"{__name__}:{estimate}" if estimate else None
        return Analysis(name, name, f"{name}?", params, f"{__name__}:take", where, checkpoints)

    return [
        one("plain", Plain),
        one("required", Required),
        one("weights", Said, Checkpoints(1, 2), "said"),
        one("model", Plain, Checkpoints(kind="model")),
        one("language", Plain, Checkpoints(kind="language-model")),
        one("series", Said, Checkpoints(kind="series"), "counted"),
        one("declaring", Said, estimate="said"),
        one("silent", Said),
        one("hostile", Hostile, estimate="hostile"),
        one("hostile-params", HostileParams),
        one("no-such-estimate", Plain, estimate="nowhere"),
    ]


def take(context, params):
    """Holds as many megabytes as it is told, every page of them written."""
    import torch

    held = torch.ones(getattr(params, "takes", 0) << 18)
    context.facts({"sum": float(held.sum())})


def said(checkpoints, params):
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported for this")
    return Estimate(int(params.megabytes * 2**20), params.seconds, params.needs_model)


def counted(checkpoints, params):
    return Estimate(len(checkpoints))


def hostile(checkpoints, params):
    return misbehave(params.how)


class Panic(BaseException):
    """As the panics of Rust libraries: no Exception."""


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("not even its message can be read")


def misbehave(how):
    match how:
        case "raise":
            raise KeyError("a key\x1b[31m nobody has")
        case "exit":
            sys.exit(3)
        case "panic":
            raise Panic("a library gave up")
        case "interrupt":
            raise KeyboardInterrupt
        case "unprintable":
            raise Unprintable
        case "recursion":
            return misbehave(how)
        case "nothing":
            return None
        case "negative":
            return Estimate(-1)
        case "nan":
            return Estimate(float("nan"))
        case "infinite-time":
            return Estimate(1, seconds=float("inf"))
        case "text":
            return Estimate("1 GB")
        case "model-maybe":
            return Estimate(1, needs_model="perhaps")
        case "read":
            return Estimate(len(input()))
        case "thread":
            threading.Thread(target=time.sleep, args=(3600,)).start()
            return Estimate(1)
        case "print":
            print("not a message", flush=True)
            os.write(1, b'{"say": "prepared"}\n')
            os.system("echo nor this")
            return Estimate(1)
        case "move":
            os.chdir("/usr")
            return Estimate(1)
        case "close":
            sys.stdout.close()
            sys.stderr.close()
            raise ValueError("with nothing to print on")
        case "hang":
            while True:
                time.sleep(0.01)
        case "end":
            os._exit(9)
        case "wait":
            print("waiting", flush=True)
            while not Path(os.environ["SUBMITTED_GO_ON"]).exists():
                time.sleep(0.01)
            return Estimate(1)
    raise AssertionError(how)
