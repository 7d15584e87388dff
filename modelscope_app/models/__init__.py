"""A checkpoint as a running torch model: building it, reading and writing its activations. Imports torch."""

from modelscope_app.models.build import build_model
from modelscope_app.models.built import BuiltModel
from modelscope_app.models.devices import resolve_device, resolve_dtype
from modelscope_app.models.sites import ModelSites

__all__ = ["BuiltModel", "ModelSites", "build_model", "resolve_device", "resolve_dtype"]
