"""A plugin whose analyses do to their worker what analyses should not, or need more memory than there is."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path

from pydantic import BaseModel, Field

from modelscope_app.api import Analysis, Architecture, Checkpoints, Estimate, hookimpl

MODELSCOPE_API = (1, 1)


class Params(BaseModel):
    megabytes: int = Field(1, ge=1, description="what the estimate says")
    steps: int = Field(1, ge=1, description="steps of the fold")


@hookimpl
def modelscope_analyses():
    def analysis(name, checkpoints, estimate=None):
        run = f"hostile:{name.replace('-', '_')}"
        return Analysis(name=name, title=name, summary=name, params=Params, run=run, estimate=estimate, checkpoints=checkpoints)

    none, model = Checkpoints(0, 0), Checkpoints(1, 1, "model")
    alone = ("limited", "quitting", "killed", "segfaulting", "device-lost", "full-disk", "littering", "tidy")
    return [
        *(analysis(name, none) for name in alone),
        analysis("hungry", none, "hostile:hungry_estimate"),
        analysis("weighing", model),
        analysis("spoiling", model),
    ]


@hookimpl
def modelscope_architectures():
    return [Architecture("hostile-slow", "hostile:build_slowly")]


def build_slowly(config):
    """A model that takes its time."""
    import torch

    print("building", flush=True)
    time.sleep(60)
    return torch.nn.Linear(2, 2)


def limited(context, params):
    """More than the limit of its address space, which it sets itself as a cluster would."""
    import torch

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
    kept = [torch.ones(16 << 20) for _ in range(64)]
    print(len(kept))


def quitting(context, params):
    os._exit(3)


def killed(context, params):
    """What the kernel does for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def segfaulting(context, params):
    os.kill(os.getpid(), signal.SIGSEGV)


def device_lost(context, params):
    raise RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")


def full_disk(context, params):
    """What writing a result to a full disk raises, from the system itself."""
    with Path("/dev/full").open("wb", buffering=0) as stream:
        stream.write(b"result")


def hungry_estimate(checkpoints, params):
    return Estimate(memory_bytes=params.megabytes * 1_000_000)


class Count:
    def start(self):
        import torch

        return {"count": torch.zeros(1)}

    def step(self, state, batch):
        time.sleep(0.02)
        state["count"] += len(batch)
        return state

    def finish(self, state):
        return state["count"]


def hungry(context, params):
    """Takes what its estimate says; what is learnt from its peak is the same."""
    import torch

    taken = torch.ones(params.megabytes * 1_000_000, dtype=torch.uint8)
    assert taken.sum() == params.megabytes * 1_000_000
    context.fold("count", Count(), context.items(list(range(params.steps))))


def weighing(context, params):
    """A sum over the weights, and a whole forward pass's worth of looking at them."""
    module = context.model().module
    context.facts({"sum": float(sum(value.double().sum() for value in module.parameters()))})


def spoiling(context, params):
    """Leaves the model otherwise than it was."""
    module = context.model().module
    for value in module.parameters():
        value.data += 1.0
    module.train()


def littering(context, params):
    """Leaves its process otherwise than it was."""
    import torch

    os.chdir("/tmp")
    os.environ["HOSTILE"] = "1"
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.backends.cuda.enable_math_sdp(False)
    torch.set_autocast_enabled("cpu", True)
    sys.path.insert(0, "/tmp")
    signal.alarm(1)
    torch.set_num_threads(1 if torch.get_num_threads() > 1 else 2)


def tidy(context, params):
    """What its process is like; it takes longer than an alarm that was left."""
    import torch

    time.sleep(1.2)
    context.facts(
        {
            "folder": str(Path.cwd()),
            "environment": "HOSTILE" in os.environ,
            "dtype": str(torch.get_default_dtype()),
            "gradients": torch.is_grad_enabled(),
            "threads": torch.get_num_threads(),
            "benchmark": torch.backends.cudnn.benchmark,
            "math": torch.backends.cuda.math_sdp_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "path": sys.path[0],
        }
    )
