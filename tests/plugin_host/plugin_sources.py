"""Sources of plugins that behave and of plugins that do not."""

from __future__ import annotations

HEAD = """
from pydantic import BaseModel, Field
from modelscope_app.api import Analysis, Architecture, Checkpoints, Panel, Reader, hookimpl

MODELSCOPE_API = (1, 1)

class Params(BaseModel):
    bins: int = Field(64, ge=1, le=512, description="how many bins")

def analysis(name, **more):
    return Analysis(name=name, title=name.title(), summary="What is it?", params=Params, run=f"{__name__}:run", **more)

def run(context, params):
    context.facts({"bins": params.bins})
"""

WORKING = (
    HEAD
    + """
@hookimpl
def modelscope_analyses():
    return [analysis("stats"), analysis("diff")]
"""
)

RAISES_AT_IMPORT = "raise KeyError('no such thing')\n" + WORKING
EXITS_AT_IMPORT = "import sys\nsys.exit(7)\n" + WORKING
SYNTAX_ERROR = "def broken(:\n"
MISSING_IMPORT = "import a_module_that_is_not_there\n" + WORKING
PRINTS_AT_IMPORT = "import os\nprint('hello from print')\nos.system('echo hello from a child')\n" + WORKING

RAISES_IN_HOOK = (
    HEAD
    + """
@hookimpl
def modelscope_analyses():
    raise RuntimeError("the hook broke")

@hookimpl
def modelscope_readers():
    return [Reader(".pipes", f"{__name__}:run")]
"""
)
EXITS_IN_HOOK = RAISES_IN_HOOK.replace('raise RuntimeError("the hook broke")', "raise SystemExit(3)")
RAISES_LAZILY = (
    HEAD
    + """
@hookimpl
def modelscope_analyses():
    yield analysis("stats")
    raise RuntimeError("too late")
"""
)
ENDLESS = (
    HEAD
    + """
@hookimpl
def modelscope_analyses():
    number = 0
    while True:
        number += 1
        yield analysis(f"a{number}")
"""
)
LAZY = (
    HEAD
    + """
@hookimpl
def modelscope_analyses():
    yield analysis("stats")
"""
)


def with_hook(body: str, hook: str = "modelscope_analyses", marker: str = "@hookimpl") -> str:
    """A plugin with one hook whose body is `body`."""
    return f"{HEAD}\n{marker}\ndef {hook}():\n    {body}\n"


def with_api(stated: str) -> str:
    """A working plugin with another statement about API versions."""
    return WORKING.replace("MODELSCOPE_API = (1, 1)", stated)
