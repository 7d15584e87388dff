"""A plugin whose analyses share a worker with others: they build models, and leave behind whatever an analysis can leave behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

from pydantic import BaseModel, Field

from modelscope_app.api import Analysis, Checkpoints, hookimpl

MODELSCOPE_API = (1, 1)

held = []
"""Weak references to tensors of jobs that ran out of memory."""


class Params(BaseModel):
    deed: str = Field("nothing", description="what is done")
    seconds: float = Field(0.0, ge=0, description="how long it takes")
    rows: int = Field(4, ge=1, description="items to pass over")
    megabytes: int = Field(0, ge=0, description="memory to take")


@hookimpl
def modelscope_analyses():
    def one(name, checkpoints=Checkpoints(0, 0)):  # noqa: B008 - a frozen value
        return Analysis(name, name, f"{name}?", Params, f"tenant:{name.replace('-', '_')}", checkpoints=checkpoints)

    return [
        one("model", Checkpoints(1, 3, "model")),
        one("series", Checkpoints(1, 1, "series")),
        one("weights", Checkpoints(1, 1)),
        one("surroundings"),
        one("deeds"),
        one("folding"),
        one("exhausting"),
    ]


class Output:
    """Sum of the outputs of a model, one item a step."""

    def __init__(self, model, seconds):
        self.model, self.seconds = model, seconds

    def start(self):
        import torch

        return {"sum": torch.zeros((), dtype=torch.float64)}

    def step(self, state, batch):
        import torch

        time.sleep(self.seconds)
        if self.model is not None:
            ids = torch.tensor([[item % 30 for item in batch]])
            with torch.no_grad():
                state["sum"] += self.model.unsettled_module(ids).logits.double().sum()
        return state

    def finish(self, state):
        return state["sum"]


def model(context, params):
    """Asks each checkpoint's model for something, then does to the first what `deed` says."""
    models = [context.model(number) for number in range(len(context.checkpoints))]
    total = context.fold("output", Output(models[0], params.seconds), context.items(list(range(params.rows)), 1))
    context.facts({"sum": float(total), "different": len({id(one.module) for one in models})})
    DEEDS[params.deed](models[0].module)


def series(context, params):
    context.facts({"sum": float(sum(context.model(number).module.lm_head.weight.sum() for number in range(len(context.checkpoints))))})


def weights(context, params):
    context.facts({"tensors": len(context.checkpoints[0].tensors)})


def folding(context, params):
    context.fold("nothing", Output(None, params.seconds), context.items(list(range(params.rows)), 1))


def ignore(*arguments):
    return None


def swap_rows(module):
    import torch

    with torch.no_grad():
        rows = module.model.embed_tokens.weight
        rows[[3, 4]] = rows[[4, 3]]


def add_one(module):
    import torch

    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[0, 0] += 1


def write_data(module):
    module.model.layers[0].mlp.up_proj.weight.data[1, 1] = 7.0


def negate(module):
    module.model.norm.weight.data.neg_()


def other_data(module):
    weight = module.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.clone()


def other_module(module):
    import torch

    old = module.model.layers[0].mlp.up_proj
    module.model.layers[0].mlp.up_proj = torch.nn.Linear(old.in_features, old.out_features, bias=False).requires_grad_(False).eval()


def other_parameter(module):
    import torch

    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.clone(), requires_grad=False)


def other_method(module):
    module.model.layers[0].mlp.forward = lambda hidden: hidden


def gradient(module):
    import torch

    weight = module.lm_head.weight
    weight.requires_grad_(True)
    (weight.sum() * torch.ones(())).backward()
    assert weight.grad is not None
    weight.requires_grad_(False)


def tensor_hook(module):
    weight = module.lm_head.weight.requires_grad_(True)
    weight.register_hook(ignore)
    weight.requires_grad_(False)


def buffer(module):
    module.model.rotary_emb.inv_freq *= 2


DEEDS = {
    "nothing": ignore,
    "gradient": gradient,
    "forward hook": lambda module: module.model.layers[0].register_forward_hook(ignore),
    "forward pre-hook": lambda module: module.register_forward_pre_hook(ignore),
    "backward hook": lambda module: module.lm_head.register_full_backward_hook(ignore),
    "backward pre-hook": lambda module: module.lm_head.register_full_backward_pre_hook(ignore),
    "state dict hook": lambda module: module.register_state_dict_post_hook(ignore),
    "state dict pre-hook": lambda module: module.register_state_dict_pre_hook(ignore),
    "load hook": lambda module: module.register_load_state_dict_post_hook(ignore),
    "tensor hook": tensor_hook,
    "train": lambda module: module.model.layers[1].train(),
    "requires_grad": lambda module: module.lm_head.weight.requires_grad_(True),
    "in place": add_one,
    "data write": write_data,
    "negated": negate,
    "row swap": swap_rows,
    "buffer": buffer,
    "other data": other_data,
    "other module": other_module,
    "other parameter": other_parameter,
    "added module": lambda module: module.add_module("probe", module.lm_head),
    "added parameter": lambda module: module.register_parameter("probe", None) or setattr(module, "probe", module.lm_head.weight),
    "other method": other_method,
    "config": lambda module: setattr(module.config, "output_hidden_states", True),
}


def change_surroundings():
    import resource

    import torch

    os.chdir("/usr")
    os.environ["TENANT"] = "was here"
    os.environ.pop("NO_COLOR", None)
    os.umask(0o077)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    torch.set_default_device("meta")
    torch.autograd.set_detect_anomaly(True)
    torch.nn.modules.module.register_module_forward_hook(ignore)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 44, resource.getrlimit(resource.RLIMIT_AS)[1]))
    import warnings

    warnings.simplefilter("error", ResourceWarning)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def seen_surroundings():
    import resource
    import warnings

    import torch

    umask = os.umask(0)
    os.umask(umask)
    return {
        "folder": str(Path.cwd()),
        "tenant": os.environ.get("TENANT", ""),
        "no color": os.environ.get("NO_COLOR", ""),
        "umask": umask,
        "gradients": torch.is_grad_enabled(),
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "device": str(torch.get_default_device()),
        "anomaly": torch.is_anomaly_enabled(),
        "hooks": len(torch.nn.modules.module._global_forward_hooks),
        "address space": resource.getrlimit(resource.RLIMIT_AS)[0],
        "filters": len(warnings.filters),
        "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_IGN,
    }


def surroundings(context, params):
    """What they are; with a deed, they are changed afterwards."""
    context.facts(seen_surroundings())
    if params.deed == "change":
        change_surroundings()


def deeds(context, params):
    """What an analysis can do to its process."""
    match params.deed:
        case "nothing":
            pass
        case "end":
            os._exit(9)
        case "fork":
            if os.fork() == 0:
                time.sleep(3600)
            os._exit(9)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "cuda":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        case "cuda when cancelled":
            context.log("waiting")
            try:
                while True:
                    context.check_cancelled()
                    time.sleep(0.01)
            except BaseException:
                raise RuntimeError("CUDA error: unspecified launch failure") from None
        case "thread":
            threading.Thread(target=time.sleep, args=(3600,), name="left over").start()
        case "read":
            context.facts({"read": sys.stdin.read(), "child": subprocess.run(["cat"], capture_output=True, text=True, check=True).stdout})
        case "print":
            print('{"say": "ended"}', flush=True)
            os.write(1, b'{"say": "ended"}\n')
            os.system("echo not a message")
        case "stuck":
            context.log("stuck")
            time.sleep(params.seconds)


def exhausting(context, params):
    """Takes memory until there is none; `held` says whether what earlier jobs took is still there."""
    import resource

    import torch

    context.facts({"still held": sum(reference() is not None for reference in held)})
    if not params.megabytes:
        return
    taken = torch.ones(params.megabytes << 18)
    held.append(weakref.ref(taken))
    in_a_circle = [taken]
    in_a_circle.append(in_a_circle)
    gc.collect()  # it is no longer young, so that nothing but a whole collection finds it
    gc.collect()
    if params.deed == "memory error":
        raise MemoryError
    resource.setrlimit(resource.RLIMIT_AS, (resource_bytes() + (64 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
    torch.ones(params.megabytes << 20)


def resource_bytes():
    """Address space in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
