"""Randomness that depends on what is drawn for, not on what was drawn before.

A generator keyed by (seed, stage, example id) gives the same draws whatever the batching, the sharding or the resuming. The
running generators (torch, numpy, random) are seeded at the start of every stage from (seed, stage), so a stage behaves the
same whether the ones before it ran or were read back.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed from `key`.

    >>> keyed_seed(0, "labels", 7) == keyed_seed(0, "labels", 7)
    True
    >>> keyed_seed(0, "labels", 7) == keyed_seed(0, "labels", "7")
    False
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `key`."""
    import torch

    return torch.Generator().manual_seed(keyed_seed(*key))


def seed_running_generators(*key: int | str) -> None:
    """Seed torch's, numpy's and Python's running generators by `key`."""
    import numpy
    import torch

    seed = keyed_seed(*key)
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)


def running_generators() -> str:
    """The states of the running generators, as text."""
    import numpy
    import torch

    kind, keys, position, has_gauss, gauss = numpy.random.get_state()
    cuda = [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    state: dict[str, Any] = {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": cuda,
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)],
        "random": random.getstate(),
    }
    return json.dumps(state)


def restore_running_generators(text: str) -> None:
    """Put the running generators where `running_generators` found them."""
    import numpy
    import torch

    state = json.loads(text)
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["torch"]), dtype=torch.uint8))
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all([torch.tensor(values, dtype=torch.uint8) for values in state["cuda"]])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, gauss))
    version, values, gauss_next = state["random"]
    random.setstate((version, tuple(values), gauss_next))
