"""What is known about each plugin, as a frozen value that the doctor prints and the terminal app shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

PluginState = Literal["ok", "partly broken", "broken", "disabled"]


@dataclass(frozen=True, slots=True)
class PluginReport:
    """One plugin, after the host has tried everything about it."""

    name: str
    distribution: str
    version: str
    module: str
    state: PluginState
    """`broken`: nothing of it can be used. `partly broken`: what its problems name cannot. `disabled`: not imported."""
    import_ms: float | None
    """Milliseconds its import took, without what others had imported before it; None where it was not imported."""
    api: tuple[int, int] | None
    """Oldest and newest API version it supports."""
    hooks: tuple[str, ...] = ()
    analyses: tuple[str, ...] = ()
    """Ids."""
    architectures: tuple[str, ...] = ()
    """Model types."""
    readers: tuple[str, ...] = ()
    """Suffixes."""
    panels: tuple[str, ...] = ()
    """Names."""
    problems: tuple[str, ...] = ()
    """What cannot be used and why."""
    warnings: tuple[str, ...] = ()
    """What works and should be better."""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {**values, "import_ms": None if self.import_ms is None else round(self.import_ms, 1)}


@dataclass(frozen=True, slots=True)
class HostReport:
    """All plugins, and what concerns none of them alone."""

    plugins: tuple[PluginReport, ...]
    problems: tuple[str, ...] = ()
    """Distributions whose entry points cannot be read."""
    warnings: tuple[str, ...] = ()
    """Disabled names that are not installed."""

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is broken. Warnings do not count."""
        return not self.problems and not any(plugin.problems for plugin in self.plugins)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "healthy": self.is_healthy,
            "plugins": [plugin.to_json() for plugin in self.plugins],
            "problems": list(self.problems),
            "warnings": list(self.warnings),
        }
