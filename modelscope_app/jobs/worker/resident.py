"""The models a worker keeps on its devices between jobs.

The main thread builds, uses and checks them; the thread that reads messages may drop those that the running job does not use.
A model is known by its content and by everything that decides how it is built, so that a checkpoint saved again, another dtype
or another builder is another model. A job that asks for one checkpoint twice gets two models.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from modelscope_app.api import MscopeError
from modelscope_app.jobs.ledger import Holding
from modelscope_app.jobs.out_of_memory import is_device_lost, release_cached_memory, release_unused_gpu_memory

if TYPE_CHECKING:
    from modelscope_app.api import Architecture
    from modelscope_app.checkpoints import OpenCheckpoint
    from modelscope_app.jobs.worker.as_built import AsBuilt
    from modelscope_app.models import BuiltModel


class Key(NamedTuple):
    """What tells one resident model from another."""

    fingerprint: str
    path: str
    device: str
    dtype: str
    """As asked, but never `auto` where the checkpoint stores floating-point values of one type."""
    builder: str | None = None
    """`package.module:function` of the plugin that builds it."""
    copy: int = 0
    """How many models like it the same job was given before."""


class Resident:
    """One model that is there."""

    def __init__(self, built: BuiltModel, as_built: AsBuilt | None) -> None:
        self.built = built
        self.as_built = as_built
        """None where it cannot be checked, so that only the job that built it gets it."""
        self.memory_bytes = built.memory_bytes
        self.dtype = str(built.dtype).removeprefix("torch.")
        self.since = self.last_used = time.time()
        self.is_leaving = False
        """To be dropped once the running job has ended."""


class ResidentModels:
    """Implements `jobs.models.ModelSource`. `on_change` is told what is resident after every change."""

    def __init__(self, on_change: Callable[[list[dict[str, Any]]], None]) -> None:
        self.newly_built_bytes = 0
        self._on_change = on_change
        self._guard = threading.RLock()
        self._models: dict[Key, Resident] = {}
        self._in_use: list[Key] = []
        self._fingerprints: Mapping[str, str] = {}

    def begin(self, fingerprints: Mapping[str, str]) -> None:
        """A job begins, whose checkpoints have these fingerprints, by path; those that are not named here are computed."""
        self._fingerprints = fingerprints
        self.newly_built_bytes = 0

    def model(self, checkpoint: OpenCheckpoint, device: str, dtype: str, architectures: Sequence[Architecture]) -> BuiltModel:
        """The checkpoint, resident or built; models of what its path held before are dropped. Raises as `models.build_model`."""
        key = self._key(checkpoint, device, dtype)
        model_type = (checkpoint.config or {}).get("model_type")
        key = key._replace(builder=next((one.build for one in architectures if one.model_type == model_type), None))
        with self._guard:
            key = key._replace(copy=sum(used._replace(copy=0) == key for used in self._in_use))
            self._in_use.append(key)
            found = self._models.get(key)
        if found is not None:
            return found.built
        self._drop(lambda other, model: other.path == key.path and other.fingerprint != key.fingerprint and other not in self._in_use)
        try:
            resident = _build(checkpoint, device, dtype, architectures)
        except BaseException:
            with self._guard:
                self._in_use.remove(key)
            raise
        self.newly_built_bytes += resident.memory_bytes
        with self._guard:
            self._models[key] = resident
        self._say()
        return resident.built

    def holdings(self, device: str, checkpoints: Sequence[OpenCheckpoint], dtype: str) -> list[Holding]:
        """What is resident on a device; a job needs those of its checkpoints, each as often as it names it."""
        with self._guard:
            paths = {key.path for key in self._models}
            wanted = [self._key(checkpoint, device, dtype) for checkpoint in checkpoints if str(checkpoint.path) in paths]
            return [
                Holding(key, model.memory_bytes, model.last_used, key.copy < wanted.count(key._replace(builder=None, copy=0)))
                for key, model in self._models.items()
                if key.device == device
            ]

    def evict(self, keys: Sequence[Any]) -> None:
        """Drop these models."""
        self._drop(lambda key, model: key in keys)

    def unload(self, fingerprint: str | None, idle_seconds: float) -> None:
        """Drop the models of a checkpoint (None: all) that nobody used for so long; those in use after their job, if it may be now."""

        def goes(key: Key, model: Resident) -> bool:
            if fingerprint not in (None, key.fingerprint):
                return False
            if key in self._in_use:
                model.is_leaving = model.is_leaving or idle_seconds <= 0
                return False
            return time.time() - model.last_used >= idle_seconds

        self._drop(goes)
        if idle_seconds <= 0:
            release_unused_gpu_memory()

    def end(self) -> list[str]:
        """The job has ended: drop the models it did not leave as they were. A sentence for each. Raises what a lost device raises."""
        sentences = [sentence for key in dict.fromkeys(self._in_use) if (sentence := self._ended(key)) is not None]
        with self._guard:
            used, self._in_use = self._in_use, []
        self._drop(lambda key, model: model.is_leaving)
        if used:
            self._say()
        return sentences

    def _ended(self, key: Key) -> str | None:
        model = self._models[key]
        reason = _difference(model)
        model.last_used = time.time()
        if reason is None:
            return None
        model.is_leaving = True
        return f"the model of {key.path} was not left as it was ({reason}) and is built anew for the next job"

    def _drop(self, goes: Callable[[Key, Resident], bool]) -> None:
        with self._guard:
            dropped = [key for key, model in self._models.items() if goes(key, model)]
            for key in dropped:
                del self._models[key]
        if dropped:
            release_cached_memory()
            self._say()

    def _say(self) -> None:
        with self._guard:
            self._on_change(
                [
                    {
                        "path": key.path,
                        "fingerprint": key.fingerprint,
                        "device": key.device,
                        "dtype": model.dtype,
                        "memory_bytes": model.memory_bytes,
                        "since": model.since,
                        "last_used": model.last_used,
                    }
                    for key, model in self._models.items()
                ]
            )

    def _key(self, checkpoint: OpenCheckpoint, device: str, dtype: str) -> Key:
        path = str(checkpoint.path)
        return Key(self._fingerprints.get(path) or checkpoint.fingerprint, path, device, _dtype(checkpoint, dtype))


def _build(checkpoint: OpenCheckpoint, device: str, dtype: str, architectures: Sequence[Architecture]) -> Resident:
    from modelscope_app.jobs.worker.as_built import AsBuilt
    from modelscope_app.models import build_model

    built = build_model(checkpoint, device, dtype, architectures)
    try:
        return Resident(built, AsBuilt(built))
    except (RuntimeError, TypeError, NotImplementedError) as error:  # a plugin's own kind of tensor
        if is_device_lost(error):
            raise
        return Resident(built, None)


def _difference(model: Resident) -> str | None:
    if model.as_built is None:
        return "its parameters cannot be compared"
    try:
        return model.as_built.difference()
    except MscopeError as error:
        return str(error)
    except Exception as error:
        if is_device_lost(error):
            raise
        return f"comparing it failed: {type(error).__name__}: {error}"


def _dtype(checkpoint: OpenCheckpoint, asked: str) -> str:
    from modelscope_app.models.names import check_dtype
    from modelscope_app.models.stored_values import floating_dtypes

    name = check_dtype(asked)
    if name is not None:
        return name
    stored = floating_dtypes(checkpoint.tensors.values())
    return str(next(iter(stored))).removeprefix("torch.") if len(stored) == 1 else "auto"
