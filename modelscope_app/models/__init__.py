"""A checkpoint as a running torch model: building it, reading and writing its activations.

Names are resolved when first used: `names` is wanted where torch is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelscope_app.models.build import build_model
    from modelscope_app.models.built import BuiltModel
    from modelscope_app.models.devices import resolve_device, resolve_dtype
    from modelscope_app.models.sites import ModelSites

__all__ = ["BuiltModel", "ModelSites", "build_model", "resolve_device", "resolve_dtype"]

_MODULE_OF = {"BuiltModel": "built", "ModelSites": "sites", "build_model": "build", "resolve_device": "devices", "resolve_dtype": "devices"}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value
