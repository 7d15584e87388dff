"""Which plugins are installed, read from the metadata of distributions without importing any.

`importlib.metadata.entry_points` stops for everybody at the first file that does not parse, so each distribution is read
alone here, and one that cannot be read is a sentence.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions

from modelscope_app.api import PROJECT_NAME

GROUP = PROJECT_NAME
"""The entry-point group plugins register in."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry point that says it is a plugin. Nothing of it has been imported."""

    name: str
    """The entry-point name, which begins the ids of its analyses."""
    module: str
    """What the entry point names: `package.plugin`."""
    distribution: str
    """The pip package it was installed with."""
    version: str
    """That package's version."""

    @property
    def origin(self) -> str:
        """Where it comes from, for messages."""
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class Installed:
    """What a search found."""

    candidates: tuple[Candidate, ...]
    """By name, then distribution; two may have one name."""
    problems: tuple[str, ...]
    """A sentence for each distribution whose entry points cannot be read."""


def installed_plugins(search_path: Sequence[str] | None = None) -> Installed:
    """The entry points of the plugin group, of all distributions on `search_path` (default: `sys.path`).

    Of two installations of one distribution the first on the path counts, as for imports.
    """
    candidates: list[Candidate] = []
    problems: list[str] = []
    seen: set[str] = set()
    found = distributions() if search_path is None else distributions(path=list(search_path))
    for distribution in found:
        try:
            text = distribution.read_text("entry_points.txt")
        except (OSError, ValueError) as error:
            problems.append(f"{_label(distribution)[0]}: its entry_points.txt cannot be read ({error})")
            continue
        if not text or GROUP not in text:
            continue
        name, version = _label(distribution)
        normalised = re.sub(r"[-_.]+", "-", name).lower()
        if normalised in seen:
            continue
        seen.add(normalised)
        try:
            entries = [entry for entry in distribution.entry_points if entry.group == GROUP]
        except Exception as error:
            problems.append(f"{name}: its entry_points.txt does not parse ({type(error).__name__}: {error}); reinstall it")
            continue
        candidates += [_candidate(entry, name, version) for entry in entries]
    candidates.sort(key=lambda candidate: (candidate.name, candidate.distribution))
    return Installed(tuple(candidates), tuple(problems))


def _candidate(entry: EntryPoint, distribution: str, version: str) -> Candidate:
    return Candidate(name=entry.name, module=entry.value, distribution=distribution, version=version)


def _label(distribution: Distribution) -> tuple[str, str]:
    """Name and version as its metadata says, which may be damaged."""
    name, version = "", ""
    with contextlib.suppress(Exception):
        metadata = distribution.metadata
        name, version = metadata["Name"], metadata["Version"]
    return name or f"a distribution without a name in {distribution.locate_file('')}", version or ""
