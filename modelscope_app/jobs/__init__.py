"""Jobs: submitting an analysis, executing it in stages that survive being killed, and the service that queues them.

`Client`, `AsyncClient` and `JobInfo` are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelscope_app.jobs.answers import JobInfo
    from modelscope_app.jobs.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "JobInfo"]

_MODULE_OF = {"AsyncClient": "client", "Client": "client", "JobInfo": "answers"}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value
