"""The plugin host: finds plugins, imports as few as a command needs, calls each alone, and remembers what went wrong.

- `names()` imports nothing; `load(name)` and `analysis(id)` import one plugin; everything else imports all.
- A disabled plugin is never imported.
- A broken plugin is a line in the report, never an exception, until somebody asks for a thing of its.
- Two claims to one name (entry point, analysis, model type, suffix) refuse each other, naming both; neither wins.

A host is used from one thread: while a plugin runs, stdout of the whole process goes to stderr.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from modelscope_app.api import Analysis, Architecture, BadInput, Panel, Reader, UsageError
from modelscope_app.plugin_host.contributions import Contributions, contributions, key_of
from modelscope_app.plugin_host.discovery import Candidate, installed_plugins
from modelscope_app.plugin_host.functions import missing_function
from modelscope_app.plugin_host.loading import Loaded, loaded
from modelscope_app.plugin_host.report import HostReport, PluginReport, PluginState
from modelscope_app.settings import read_settings

Value = TypeVar("Value", Architecture, Panel, Reader)

_DOCTOR = "`mscope plugins doctor` says more"


@dataclass(frozen=True, slots=True)
class BoundAnalysis:
    """An analysis and the plugin it comes from."""

    id: str
    """`<plugin>.<name>`."""
    plugin: str
    analysis: Analysis
    distribution: str
    version: str
    """Of the distribution."""


@dataclass(frozen=True, slots=True)
class Contributed(Generic[Value]):
    """An architecture, reader or panel and the plugin it comes from."""

    plugin: str
    value: Value
    distribution: str
    version: str


class PluginHost:
    """The plugins of this environment. `disabled=None` takes the disabled ones from the settings.

    `search_path` looks for distributions there instead of on `sys.path`, which tests use to see their own plugins alone.
    """

    def __init__(self, disabled: Collection[str] | None = None, search_path: Sequence[str] | None = None) -> None:
        self._disabled = frozenset(read_settings().plugins.disabled if disabled is None else disabled)
        installed = installed_plugins(search_path)
        self.unreadable = installed.problems
        """A sentence for each distribution whose entry points cannot be read."""
        self._candidates: dict[str, list[Candidate]] = {}
        for candidate in installed.candidates:
            self._candidates.setdefault(candidate.name, []).append(candidate)
        self._loaded: dict[str, Loaded] = {}
        self._contributions: dict[tuple[str, str], Contributions[Any]] = {}

    def candidates(self) -> tuple[Candidate, ...]:
        """Every entry point there is, disabled ones too, without importing any."""
        return tuple(candidate for candidates in self._candidates.values() for candidate in candidates)

    def names(self) -> tuple[str, ...]:
        """Names of the installed plugins that are not disabled, without importing any."""
        return tuple(name for name in self._candidates if name not in self._disabled)

    def is_disabled(self, name: str) -> bool:
        """Whether a plugin of this name is never imported."""
        return name in self._disabled

    def load(self, name: str) -> Loaded:
        """Import one plugin, once. A broken one comes back with its problems.

        Raises UsageError for a name that is not installed (with the nearest) or that is disabled.
        """
        if name in self._loaded:
            return self._loaded[name]
        if name in self._disabled:
            raise UsageError(f"the plugin {name!r} is disabled, by MSCOPE_DISABLE_PLUGINS or plugins.disabled in config.toml")
        candidates = self._candidates.get(name)
        if candidates is None:
            raise UsageError(f"no plugin {name!r}{_suggestion(name, self.names(), 'mscope plugins list')}")
        if len(candidates) > 1:
            origins = " and ".join(candidate.distribution for candidate in candidates)
            problem = f"{origins} both register a plugin called {name!r}; uninstall one"
            self._loaded[name] = Loaded(candidates[0], problems=(problem,))
        else:
            self._loaded[name] = loaded(candidates[0])
        return self._loaded[name]

    def broken(self) -> tuple[str, ...]:
        """Names of the plugins that are broken, of those imported so far. Mending one takes another process."""
        return tuple(name for name, plugin in self._loaded.items() if plugin.is_broken)

    def load_all(self) -> tuple[Loaded, ...]:
        """Import every plugin that is not disabled; broken ones come back with their problems."""
        return tuple(self.load(name) for name in self.names())

    def analysis(self, id: str) -> BoundAnalysis:
        """The analysis `<plugin>.<name>`, importing that plugin alone.

        Raises UsageError for an unknown id, with the nearest known one (only then are all plugins imported), or for one of a
        disabled plugin; BadInput where the plugin, or this analysis of it, is broken.
        """
        plugin_name, _, name = id.partition(".")
        if plugin_name in self._disabled:
            raise UsageError(f"{id}: the plugin {plugin_name!r} is disabled, by MSCOPE_DISABLE_PLUGINS or plugins.disabled in config.toml")
        if plugin_name in self._candidates and name:
            plugin = self.load(plugin_name)
            if plugin.is_broken:
                raise BadInput(f"{id}: the plugin {plugin_name!r} ({plugin.candidate.origin}) is broken: {plugin.problems[0]}; {_DOCTOR}")
            found = self._of(plugin, "modelscope_analyses", Analysis)
            for analysis in found.values:
                if analysis.name == name:
                    return _bound(plugin, analysis)
            if name in found.refused:
                raise BadInput(f"{id}: {found.refused[name]}; {_DOCTOR}")
            problems = plugin.problems + found.problems
            if problems and not found.values:
                raise BadInput(f"{id}: the plugin {plugin_name!r} ({plugin.candidate.origin}) is broken: {problems[0]}; {_DOCTOR}")
        known = [bound.id for bound in self.analyses()]
        near = [other for other in known if other.partition(".")[2] == id] or difflib.get_close_matches(id, known, n=1)
        siblings = [other for other in known if other.partition(".")[0] == plugin_name]
        if near:
            advice = f"did you mean {near[0]}?"
        elif siblings:
            advice = f"the plugin {plugin_name!r} has {', '.join(siblings)}"
        else:
            advice = "`mscope analyses` lists what there is"
        raise UsageError(f"no analysis {id!r}; {advice}")

    def analyses(self) -> tuple[BoundAnalysis, ...]:
        """The analyses of all working plugins, by plugin, in the order each gives them."""
        return tuple(
            _bound(plugin, analysis) for plugin in self.load_all() for analysis in self._of(plugin, "modelscope_analyses", Analysis).values
        )

    def architectures(self) -> tuple[Architecture, ...]:
        """The architectures of all working plugins. Two that claim one model type are both here, so that whoever builds can
        refuse them by name; `architecture` does."""
        return tuple(claim.value for claims in self._claims("modelscope_architectures", Architecture).values() for claim in claims)

    def architecture(self, model_type: str) -> Contributed[Architecture] | None:
        """Who builds this model type; None where nobody does. Raises BadInput naming both where two plugins claim it."""
        return self._only("modelscope_architectures", Architecture, model_type, f"checkpoints of model_type {model_type!r}")

    def readers(self) -> tuple[Reader, ...]:
        """The data readers of all working plugins. A suffix that two claim is left out, so that neither wins; the report and
        `reader` name both."""
        return tuple(claims[0].value for claims in self._claims("modelscope_readers", Reader).values() if len(claims) == 1)

    def reader(self, suffix: str) -> Contributed[Reader] | None:
        """Who reads files of this suffix; None where nobody does. Raises BadInput naming both where two plugins claim it."""
        return self._only("modelscope_readers", Reader, suffix.lower(), f"{suffix} files")

    def panels(self) -> tuple[Contributed[Panel], ...]:
        """The panels of all working plugins. Their names are unique within a plugin only."""
        return tuple(
            Contributed(plugin.candidate.name, panel, plugin.candidate.distribution, plugin.candidate.version)
            for plugin in self.load_all()
            for panel in self._of(plugin, "modelscope_panels", Panel).values
        )

    def problems(self, name: str) -> tuple[str, ...]:
        """What is wrong with one plugin, its analyses included; the first sentence says why where it is broken."""
        plugin = self.load(name)
        return plugin.problems + self._of(plugin, "modelscope_analyses", Analysis).problems

    def report(self) -> HostReport:
        """Everything about every plugin: all imported, all hooks called, and each function a string names looked for."""
        names = set(self._candidates)
        missing = tuple(
            f"the disabled plugin {name!r} is not installed{_suggestion(name, sorted(names), 'mscope plugins list')}"
            for name in sorted(self._disabled - names)
        )
        return HostReport(tuple(self.plugin_report(name) for name in sorted(names)), self.unreadable, missing)

    def plugin_report(self, name: str) -> PluginReport:
        """Everything about one plugin. Others are imported too, to see whether two claim the same. Raises UsageError as `load`."""
        if name in self._disabled:
            candidate = self._candidates[name][0]
            return PluginReport(name, candidate.distribution, candidate.version, candidate.module, "disabled", None, None)
        plugin = self.load(name)
        analyses = self._of(plugin, "modelscope_analyses", Analysis)
        architectures = self._of(plugin, "modelscope_architectures", Architecture)
        readers = self._of(plugin, "modelscope_readers", Reader)
        panels = self._of(plugin, "modelscope_panels", Panel)
        problems = [*plugin.problems, *analyses.problems, *architectures.problems, *readers.problems, *panels.problems]
        problems += self._disputes(plugin, "modelscope_architectures", Architecture, "model_type")
        problems += self._disputes(plugin, "modelscope_readers", Reader, "suffix")
        references = [reference for analysis in analyses.values for reference in (analysis.run, analysis.estimate) if reference]
        references += [reference for value in architectures.values for reference in (value.build, value.adapter) if reference]
        references += [value.read for value in readers.values] + [value.widget for value in panels.values]
        problems += [problem for reference in dict.fromkeys(references) if (problem := missing_function(reference))]
        state: PluginState = "broken" if plugin.is_broken else "partly broken" if problems else "ok"
        candidates = self._candidates[name]
        return PluginReport(
            name=name,
            distribution=" and ".join(candidate.distribution for candidate in candidates),
            version=" and ".join(candidate.version for candidate in candidates),
            module=" and ".join(candidate.module for candidate in candidates),
            state=state,
            import_ms=plugin.import_ms,
            api=plugin.api,
            hooks=plugin.hooks,
            analyses=tuple(f"{name}.{analysis.name}" for analysis in analyses.values),
            architectures=tuple(key_of(value) for value in architectures.values),
            readers=tuple(key_of(value) for value in readers.values),
            panels=tuple(value.name for value in panels.values),
            problems=tuple(problems),
            warnings=plugin.warnings,
        )

    def _of(self, plugin: Loaded, hook: str, kind: type[Any]) -> Contributions[Any]:
        key = (plugin.candidate.name, hook)
        if key not in self._contributions:
            self._contributions[key] = contributions(plugin, hook, kind)
        return self._contributions[key]

    def _claims(self, hook: str, kind: type[Value]) -> dict[str, list[Contributed[Value]]]:
        claims: dict[str, list[Contributed[Value]]] = {}
        for plugin in self.load_all():
            candidate = plugin.candidate
            for value in self._of(plugin, hook, kind).values:
                claim: Contributed[Value] = Contributed(candidate.name, value, candidate.distribution, candidate.version)
                claims.setdefault(key_of(value), []).append(claim)
        return claims

    def _only(self, hook: str, kind: type[Value], key: str, what: str) -> Contributed[Value] | None:
        claims = self._claims(hook, kind).get(key, [])
        if len(claims) > 1:
            names = " and ".join(repr(claim.plugin) for claim in claims)
            raise BadInput(f"the plugins {names} both claim {what}; disable one with MSCOPE_DISABLE_PLUGINS={claims[-1].plugin}")
        return claims[0] if claims else None

    def _disputes(self, plugin: Loaded, hook: str, kind: type[Value], word: str) -> list[str]:
        sentences = []
        for key, claims in self._claims(hook, kind).items():
            names = [claim.plugin for claim in claims]
            if len(names) > 1 and plugin.candidate.name in names:
                others = " and ".join(repr(name) for name in names if name != plugin.candidate.name)
                sentences.append(f"{word} {key!r} is claimed by the plugin {others} too; neither counts until one is disabled")
        return sentences


def _bound(plugin: Loaded, analysis: Analysis) -> BoundAnalysis:
    candidate = plugin.candidate
    return BoundAnalysis(f"{candidate.name}.{analysis.name}", candidate.name, analysis, candidate.distribution, candidate.version)


def _suggestion(name: str, known: Sequence[str], command: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; `{command}` lists what is installed"
