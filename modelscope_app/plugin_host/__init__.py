"""Finding plugins, loading them one by one, calling them safely, and what their params look like from outside."""

from modelscope_app.plugin_host.discovery import GROUP, Candidate
from modelscope_app.plugin_host.functions import load_function
from modelscope_app.plugin_host.host import BoundAnalysis, Contributed, PluginHost
from modelscope_app.plugin_host.loading import Loaded
from modelscope_app.plugin_host.options import ParamField, ParamRow, param_fields, params_json, params_schema, params_table, written
from modelscope_app.plugin_host.parsing import parse_params
from modelscope_app.plugin_host.report import HostReport, PluginReport

__all__ = [
    "GROUP",
    "BoundAnalysis",
    "Candidate",
    "Contributed",
    "HostReport",
    "Loaded",
    "ParamField",
    "ParamRow",
    "PluginHost",
    "PluginReport",
    "load_function",
    "param_fields",
    "params_json",
    "params_schema",
    "params_table",
    "parse_params",
    "written",
]
