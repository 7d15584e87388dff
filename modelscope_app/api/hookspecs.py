"""The hooks. A plugin is a module that implements some of them and says which API versions it supports:

    MODELSCOPE_API = (1, 1)

    @hookimpl
    def modelscope_analyses():
        return [Analysis(name="stats", ...)]

Hooks return frozen values and are called one plugin at a time, so nothing depends on registration order and a plugin that
raises takes nobody else with it.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from modelscope_app.api.analysis import Analysis
from modelscope_app.api.architecture import Architecture, Panel, Reader

PROJECT_NAME = "modelscope_app"
API_VERSION = 1

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def modelscope_analyses() -> Iterable[Analysis]:  # type: ignore[empty-body]
    """Analyses this plugin contributes."""


@hookspec
def modelscope_panels() -> Iterable[Panel]:  # type: ignore[empty-body]
    """Textual widgets this plugin contributes."""


@hookspec
def modelscope_architectures() -> Iterable[Architecture]:  # type: ignore[empty-body]
    """Model families this plugin can build."""


@hookspec
def modelscope_readers() -> Iterable[Reader]:  # type: ignore[empty-body]
    """Data formats this plugin can read."""
