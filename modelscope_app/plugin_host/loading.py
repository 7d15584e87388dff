"""Importing one plugin and learning which hooks it implements.

Each plugin gets a pluggy manager of its own: in a shared one a plugin that raises ends the call for those after it, and one
that fails validation may stay registered.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from dataclasses import dataclass
from types import ModuleType

import pluggy

from modelscope_app.api import API_VERSION, PROJECT_NAME, hookspecs
from modelscope_app.plugin_host.discovery import Candidate
from modelscope_app.plugin_host.isolation import attempt

HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("modelscope_"))
"""Names of the hooks there are."""

HEAVY_MODULES = ("torch", "transformers", "textual", "polars", "matplotlib", "scipy")
"""What a plugin module must not import at its top: every start of `mscope` that needs one of its analyses would pay."""

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A plugin after an attempt to import it."""

    candidate: Candidate
    manager: pluggy.PluginManager | None = None
    """Knows this plugin alone; None where the plugin is broken."""
    import_ms: float | None = None
    """Milliseconds its import took; what was imported before it by others is not counted. None where it was not tried."""
    api: tuple[int, int] | None = None
    """The range of API versions it says it supports."""
    hooks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """What is wrong; for a broken plugin the first says why."""
    warnings: tuple[str, ...] = ()
    """What works and should be better."""

    @property
    def is_broken(self) -> bool:
        """Whether nothing of it can be used."""
        return self.manager is None


def loaded(candidate: Candidate) -> Loaded:
    """Import the plugin and register its hooks. Raises nothing: what goes wrong is in `problems`."""
    if not _NAME.fullmatch(candidate.name):
        return Loaded(candidate, problems=(f"the entry-point name {candidate.name!r} is not lower-case words joined by dashes",))
    if ":" in candidate.module:
        return Loaded(candidate, problems=(f"its entry point names {candidate.module!r}; it must name a module, as package.plugin",))
    modules_before = set(sys.modules)
    imported = attempt(lambda: importlib.import_module(candidate.module))
    if imported.error is not None or imported.value is None:
        return Loaded(candidate, import_ms=imported.milliseconds, problems=(f"its import fails: {imported.error}",))
    module = imported.value
    warnings = _heavy_imports(candidate, modules_before)
    api, problem = _api_range(module)
    if problem is not None:
        return Loaded(candidate, import_ms=imported.milliseconds, api=api, problems=(problem,), warnings=warnings)
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    registered = attempt(lambda: manager.register(module, candidate.name))
    if registered.error is not None:
        reason = registered.error.partition(": ")[2]
        return Loaded(
            candidate, import_ms=imported.milliseconds, api=api, problems=(f"a hook is declared wrongly: {reason}",), warnings=warnings
        )
    hooks, problems = _hooks(manager, module)
    return Loaded(candidate, manager, imported.milliseconds, api, hooks, problems, warnings)


def _api_range(module: ModuleType) -> tuple[tuple[int, int] | None, str | None]:
    """The range a plugin states, and a sentence where it is missing, malformed or leaves this version out."""
    advice = f"write MODELSCOPE_API = ({API_VERSION}, {API_VERSION}) into {module.__name__}"
    stated = getattr(module, "MODELSCOPE_API", None)
    if stated is None:
        return None, f"it does not say which API versions it supports; {advice}"
    is_range = isinstance(stated, tuple | list) and len(stated) == 2 and all(type(version) is int for version in stated)
    if not is_range or stated[0] > stated[1]:
        return None, f"its MODELSCOPE_API is not a pair of integers, oldest and newest; {advice}"
    oldest, newest = stated
    if not oldest <= API_VERSION <= newest:
        what = "update the plugin" if newest < API_VERSION else "update modelscope-app"
        return (oldest, newest), f"it supports API {oldest} to {newest}, this is {API_VERSION}; {what}"
    return (oldest, newest), None


def _hooks(manager: pluggy.PluginManager, module: ModuleType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hooks it implements, and sentences about functions that look like hooks and are none."""
    problems = []
    callers = manager.get_hookcallers(module) or []
    for caller in callers:
        if not caller.has_spec():
            problems.append(f"{caller.name} is not a hook{_nearest_hook(caller.name)}")
        elif any(implementation.wrapper or implementation.hookwrapper for implementation in caller.get_hookimpls()):
            problems.append(f"{caller.name} is a hook wrapper, which plugins cannot have; return the values instead")
    marked = {implementation.function for caller in callers for implementation in caller.get_hookimpls()}
    for name, value in vars(module).items():
        if not inspect.isfunction(value) or value in marked:
            continue
        if name in HOOKS:
            problems.append(f"{name} lacks the @hookimpl marker, so it is never called")
        elif name.startswith("modelscope_") or difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.85):
            problems.append(f"{name} is not a hook{_nearest_hook(name)}")
    wrong = {problem.split(" ", 1)[0] for problem in problems}
    hooks = tuple(sorted(caller.name for caller in callers if caller.has_spec() and caller.name not in wrong))
    if not hooks and not problems:
        problems.append(f"it implements no hook; there are {', '.join(HOOKS)}")
    return hooks, tuple(sorted(problems))


def _nearest_hook(name: str) -> str:
    near = difflib.get_close_matches(name, HOOKS, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(HOOKS)}"


def _heavy_imports(candidate: Candidate, modules_before: set[str]) -> tuple[str, ...]:
    """A warning for each heavy library the plugin's import brought in, or that its own modules refer to.

    The second catches a plugin that imports what another had imported already.
    """
    new = set(sys.modules) - modules_before
    heavy = {name for name in HEAVY_MODULES if name in new}
    own_package = candidate.module.partition(".")[0]
    for name in new:
        module = sys.modules.get(name)
        if name.partition(".")[0] == own_package and isinstance(module, ModuleType):
            heavy |= _referred(module).intersection(HEAVY_MODULES)
    return tuple(
        f"it imports {name} at its top, so every command that needs the plugin pays for it; import it inside the functions that use it"
        for name in sorted(heavy)
    )


def _referred(module: ModuleType) -> set[str]:
    """Top-level packages of the modules, classes and functions in a module's globals."""
    packages = set()
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            packages.add(value.__name__.partition(".")[0])
        elif isinstance(value, type) or inspect.isfunction(value):
            packages.add(str(value.__module__).partition(".")[0])
    return packages
