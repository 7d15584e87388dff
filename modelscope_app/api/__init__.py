"""The contract for plugin authors. Imports neither torch nor textual, and nothing else of this package.

Names are resolved when first used: the terminal app is on the screen before views, hooks and contexts are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelscope_app.api.analysis import Analysis, CheckpointKind, Checkpoints, Estimate
    from modelscope_app.api.architecture import Architecture, Panel, PanelApp, Reader
    from modelscope_app.api.context import (
        Checkpoint,
        DataRows,
        Example,
        FamilyAdapter,
        FinishedRun,
        Fold,
        JobContext,
        LabelledFeatures,
        MergeableFold,
        Model,
        Prefix,
        Series,
        Sites,
        Source,
        TokenBatch,
        Tokenizer,
    )
    from modelscope_app.api.errors import AssertionFailed, BadInput, ExitCode, JobCancelled, JobFailed, MscopeError, UsageError
    from modelscope_app.api.hookspecs import API_VERSION, PROJECT_NAME, hookimpl, hookspec
    from modelscope_app.api.params import CheckpointPath, DataFile, InputFile, Meaning, RunReference, Selection, SiteName
    from modelscope_app.api.sites import SITE_KINDS, Site
    from modelscope_app.api.tensor_header import TensorHeader
    from modelscope_app.api.text import neutralised
    from modelscope_app.api.views import (
        BarsView,
        FactsView,
        GraphView,
        HeatMapView,
        HistogramView,
        LinesView,
        TableView,
        TokenStripView,
        View,
        view_from_json,
    )

__all__ = [
    "API_VERSION",
    "PROJECT_NAME",
    "SITE_KINDS",
    "Analysis",
    "Architecture",
    "AssertionFailed",
    "BadInput",
    "BarsView",
    "Checkpoint",
    "CheckpointKind",
    "CheckpointPath",
    "Checkpoints",
    "DataFile",
    "DataRows",
    "Estimate",
    "Example",
    "ExitCode",
    "FactsView",
    "FamilyAdapter",
    "FinishedRun",
    "Fold",
    "GraphView",
    "HeatMapView",
    "HistogramView",
    "InputFile",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "LabelledFeatures",
    "LinesView",
    "Meaning",
    "MergeableFold",
    "Model",
    "MscopeError",
    "Panel",
    "PanelApp",
    "Prefix",
    "Reader",
    "RunReference",
    "Selection",
    "Series",
    "Site",
    "SiteName",
    "Sites",
    "Source",
    "TableView",
    "TensorHeader",
    "TokenBatch",
    "TokenStripView",
    "Tokenizer",
    "UsageError",
    "View",
    "hookimpl",
    "hookspec",
    "neutralised",
    "view_from_json",
]

_MODULE_OF = {
    "API_VERSION": "hookspecs",
    "Analysis": "analysis",
    "Architecture": "architecture",
    "AssertionFailed": "errors",
    "BadInput": "errors",
    "BarsView": "views",
    "Checkpoint": "context",
    "CheckpointKind": "analysis",
    "CheckpointPath": "params",
    "Checkpoints": "analysis",
    "DataFile": "params",
    "Estimate": "analysis",
    "DataRows": "context",
    "Example": "context",
    "ExitCode": "errors",
    "FactsView": "views",
    "FamilyAdapter": "context",
    "FinishedRun": "context",
    "Fold": "context",
    "GraphView": "views",
    "HeatMapView": "views",
    "HistogramView": "views",
    "InputFile": "params",
    "JobCancelled": "errors",
    "JobContext": "context",
    "JobFailed": "errors",
    "LabelledFeatures": "context",
    "LinesView": "views",
    "Meaning": "params",
    "MergeableFold": "context",
    "Model": "context",
    "Prefix": "context",
    "MscopeError": "errors",
    "PROJECT_NAME": "hookspecs",
    "Panel": "architecture",
    "PanelApp": "architecture",
    "Reader": "architecture",
    "RunReference": "params",
    "SITE_KINDS": "sites",
    "Selection": "params",
    "Series": "context",
    "Site": "sites",
    "SiteName": "params",
    "Sites": "context",
    "Source": "context",
    "TableView": "views",
    "TensorHeader": "tensor_header",
    "TokenBatch": "context",
    "TokenStripView": "views",
    "Tokenizer": "context",
    "UsageError": "errors",
    "View": "views",
    "hookimpl": "hookspecs",
    "hookspec": "hookspecs",
    "neutralised": "text",
    "view_from_json": "views",
}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value
