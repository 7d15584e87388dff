"""Whether a process still runs what is on disk: Python imports a file once, so one that lives on after an edit runs the old code.

Workers and preparers look before each job and end where something has changed; the service starts others. Looked at are

- the imported modules of modelscope_app and of installed plugins, and every other one that lies outside the folders Python installs
  packages into, where somebody may be editing it;
- the distributions on `sys.path` and their entry points, so that installing, upgrading and removing are noticed;
- config.toml, which says which plugins are disabled.

A module that fails to import leaves nothing behind to look at: whoever met a broken plugin has to end without asking here.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_LOADED = time.time()
"""When this module was imported. Import it first: what is written later than this counts as changed."""

_TICK_SECONDS = 0.02
"""File systems take their time from a clock that stands still between ticks, so a file may look older than it is by so much."""

_OWN_PACKAGE = __name__.partition(".")[0]
_METADATA_FOLDERS = (".dist-info", ".egg-info")


class _State(NamedTuple):
    """What tells that a file is still the one it was."""

    inode: int
    size: int
    modified_ns: int


class ImportedFiles:
    """The files this process was made of. `changed` is called from one thread."""

    def __init__(self) -> None:
        from modelscope_app import settings
        from modelscope_app.locations import config_dir
        from modelscope_app.plugin_host.discovery import installed_plugins

        self._since = _LOADED
        self._watched_packages = {_OWN_PACKAGE, "__main__"}
        self._watched_packages |= {candidate.module.partition(".")[0] for candidate in installed_plugins().candidates}
        self._installed_below = _installation_folders()
        self._modules: set[str] = set()
        """Names that were looked at, watched or not."""
        self._files: dict[str, _State | None] = {}
        self._folders: dict[str, _State | None] = {}
        """Of `sys.path`."""
        self._distributions: dict[str, dict[str, _State | None]] = {}
        """By folder of `sys.path`: the metadata folders in it."""
        config = str(config_dir() / settings.FILE_NAME)
        self._files[config] = _state(config)
        for folder in dict.fromkeys(sys.path):
            self._folders[folder] = _state(folder)
            self._distributions[folder] = _metadata_folders(folder)
            for name in self._distributions[folder]:
                entry_points = os.path.join(folder, name, "entry_points.txt")  # noqa: PTH118 - a hundred of them
                if (state := _state(entry_points)) is not None:
                    self._files[entry_points] = state

    def changed(self) -> str | None:
        """The path of a file that is not what this process began with, or has imported since; None where all are."""
        now = time.time()
        for path, state in self._files.items():
            if _state(path) != state:
                return path
        for path in self._newly_imported():
            try:
                found = os.stat(path)  # noqa: PTH116
            except OSError:
                return path
            # The time of the inode's change cannot be set back; one in the future is a clock of another machine.
            if self._since - _TICK_SECONDS < found.st_ctime <= now:
                return path
            self._files[path] = _of(found)
        self._since = now
        return self._changed_installation()

    def _newly_imported(self) -> list[str]:
        """Files to watch of modules that were imported since the last look."""
        modules = {name: module for name, module in list(sys.modules.items()) if name not in self._modules}
        self._modules.update(modules)
        paths = []
        for name, module in modules.items():
            path = _file_of(module)
            if path is not None and path not in self._files and self._is_watched(name.partition(".")[0], path):
                paths.append(path)
        return list(dict.fromkeys(paths))

    def _is_watched(self, package: str, path: str) -> bool:
        if package in self._watched_packages:
            return True
        if path.startswith(self._installed_below):
            return False
        # An installed library may import files it has just written (compiled kernels); those are nobody's source.
        home = _file_of(sys.modules.get(package))
        return home is None or not home.startswith(self._installed_below)

    def _changed_installation(self) -> str | None:
        for folder, before in self._folders.items():
            now = _state(folder)
            if now == before:
                continue
            found, known = _metadata_folders(folder), self._distributions[folder]
            for name in (*known, *found):
                if found.get(name) != known.get(name):
                    return str(Path(folder) / name)
            self._folders[folder] = now  # something else came or went, as __pycache__ does
        return None


def _installation_folders() -> tuple[str, ...]:
    """The standard library and the folders packages are installed into, each with its separator."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += site.getsitepackages()
    folders.append(site.getusersitepackages())
    return tuple(dict.fromkeys(folder.rstrip(os.sep) + os.sep for folder in folders if folder))


def _file_of(module: Any) -> str | None:
    """Where a module was read from; lazy ones are not woken."""
    path = getattr(module, "__dict__", {}).get("__file__")
    return path if isinstance(path, str) and os.path.isabs(path) else None  # noqa: PTH117


def _metadata_folders(folder: str) -> dict[str, _State | None]:
    return {name: _state(os.path.join(folder, name)) for name in _names_in(folder) if name.endswith(_METADATA_FOLDERS)}  # noqa: PTH118


def _names_in(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
    except OSError:
        return


def _state(path: str) -> _State | None:
    try:
        return _of(os.stat(path))  # noqa: PTH116 - before each job, for hundreds of files
    except (OSError, ValueError):
        return None


def _of(found: os.stat_result) -> _State:
    return _State(found.st_ino, found.st_size, found.st_mtime_ns)
