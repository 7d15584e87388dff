"""`package.module:function` strings: importing what they name where a job runs, and checking that it is there without importing."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from modelscope_app.api import JobFailed, MscopeError
from modelscope_app.plugin_host.isolation import described


def load_function(reference: str) -> Callable[..., Any]:
    """The function `reference` names, its module imported.

    Raises JobFailed with a sentence where the reference is not `package.module:function`, the module does not import, or has
    no such function.
    """
    module_name, colon, name = reference.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise JobFailed(f"{reference!r} is not package.module:function")
    try:
        module = importlib.import_module(module_name)
    except (KeyboardInterrupt, MscopeError):
        raise
    except BaseException as error:
        raise JobFailed(f"{module_name}, which {reference} names, does not import: {described(error)}") from error
    function: Any = getattr(module, name, None)
    if function is None:
        raise JobFailed(f"{module_name} has no function {name!r}{_nearest(name, vars(module))}")
    if not callable(function):
        raise JobFailed(f"{reference} is of type {type(function).__name__} and cannot be called")
    found: Callable[..., Any] = function
    return found


def missing_function(reference: str) -> str | None:
    """Why `load_function(reference)` would find nothing, as far as can be said without importing anything; None if all is well.

    The module's source is parsed, not run, so that checking an analysis never costs an import of torch. A module without
    source, with `from x import *` or with a `__getattr__` gets the benefit of the doubt.
    """
    module_name, _, name = reference.partition(":")
    try:
        spec = _spec_without_import(module_name)
    except Exception as error:
        return f"{reference}: looking for its module failed ({described(error)})"
    if spec is None:
        return f"{reference}: there is no module {module_name}"
    if not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        return f"{reference}: {spec.origin} cannot be read as Python ({described(error)})"
    names = set(_names(tree.body))
    if name in names or "*" in names or "__getattr__" in names:
        return None
    return f"{reference}: {spec.origin} defines no {name!r}{_nearest(name, names)}"


def _spec_without_import(module_name: str) -> ModuleSpec | None:
    """Like `importlib.util.find_spec`, which imports parent packages; this does not."""
    path: Any = None
    spec: ModuleSpec | None = None
    full_name = ""
    for part in module_name.split("."):
        full_name = f"{full_name}.{part}" if full_name else part
        found = (finder.find_spec(full_name, path) for finder in sys.meta_path)
        spec = next((candidate for candidate in found if candidate is not None), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and full_name != module_name:
            return None
    return spec


def _names(body: Iterable[ast.stmt]) -> Iterable[str]:
    """Names a module's top level binds, in whichever branch."""
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                for alias in aliases:
                    yield alias.asname or alias.name.partition(".")[0]
            case ast.Assign(targets=targets):
                for target in targets:
                    yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                yield name
            case _:
                for inner in ("body", "orelse", "finalbody"):
                    yield from _names(getattr(statement, inner, []))
                for handler in getattr(statement, "handlers", []):
                    yield from _names(handler.body)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
