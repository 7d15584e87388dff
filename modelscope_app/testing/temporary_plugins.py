"""Plugins that exist for one test: a module and the metadata of a distribution, written into a folder of their own.

They are found by the same code that finds installed ones, so a test sees what a user would.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import textwrap
from collections.abc import Collection
from pathlib import Path

from modelscope_app.plugin_host import GROUP, PluginHost


class TemporaryPlugins:
    """A folder of plugins. It must be on `sys.path` for them to be imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Where modules and metadata are written."""

    def write(self, name: str, source: str, distribution: str | None = None, version: str = "1.0") -> str:
        """Install a plugin called `name` whose module is `source`; the module's name.

        `distribution` is the pip package it pretends to come from (default: `modelscope-NAME`); one of the same name gets one
        more entry point.
        """
        distribution = distribution or f"modelscope-{name}"
        stem = re.sub(r"\W", "_", distribution)
        metadata = self.folder / f"{stem}-{version}.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", encoding="utf-8")
        entry_points = metadata / "entry_points.txt"
        written = entry_points.read_text(encoding="utf-8") if entry_points.exists() else f"[{GROUP}]\n"
        module = self.module(f"{stem}_{written.count('=')}", source)
        entry_points.write_text(f"{written}{name} = {module}\n", encoding="utf-8")
        return module

    def module(self, name: str, source: str) -> str:
        """Write a module that plugins can name, as `name.py`; its name."""
        (self.folder / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        importlib.invalidate_caches()
        return name

    def host(self, disabled: Collection[str] = ()) -> PluginHost:
        """A plugin host that sees these plugins and no others."""
        return PluginHost(disabled, search_path=[str(self.folder)])

    def environment(self) -> dict[str, str]:
        """Environment variables for a process that sees these plugins beside the installed ones."""
        path = os.pathsep.join(part for part in (str(self.folder), os.environ.get("PYTHONPATH", "")) if part)
        return {**os.environ, "PYTHONPATH": path}

    def forget_modules(self) -> None:
        """Remove what was imported from the folder, so that the next test imports its own."""
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and Path(file).is_relative_to(self.folder):
                del sys.modules[name]
