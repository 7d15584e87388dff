"""Where things are kept: XDG folders, each movable by an environment variable.

| what                                      | variable            | default (Linux)              |
|-------------------------------------------|---------------------|------------------------------|
| runs                                      | MSCOPE_DATA_DIR     | ~/.local/share/modelscope-app |
| things that can be computed again         | MSCOPE_CACHE_DIR    | ~/.cache/modelscope-app       |
| settings                                  | MSCOPE_CONFIG_DIR   | ~/.config/modelscope-app      |
| the index of runs, service files          | MSCOPE_STATE_DIR    | ~/.local/state/modelscope-app |
| the service's socket                      | MSCOPE_RUNTIME_DIR  | $XDG_RUNTIME_DIR/modelscope-app |
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import platformdirs

from modelscope_app.api.errors import BadInput

APP_NAME = "modelscope-app"


def data_dir() -> Path:
    """Folder of runs."""
    return _folder("MSCOPE_DATA_DIR", platformdirs.user_data_dir(APP_NAME))


def cache_dir() -> Path:
    """Folder of what can be computed again."""
    return _folder("MSCOPE_CACHE_DIR", platformdirs.user_cache_dir(APP_NAME))


def config_dir() -> Path:
    """Folder of settings."""
    return _folder("MSCOPE_CONFIG_DIR", platformdirs.user_config_dir(APP_NAME))


def state_dir() -> Path:
    """Folder of indexes."""
    return _folder("MSCOPE_STATE_DIR", platformdirs.user_state_dir(APP_NAME))


def runtime_dir() -> Path:
    """Folder of sockets; gone after a logout or a restart of the machine.

    Sessions without XDG_RUNTIME_DIR have one in /tmp, and so have those where it names a folder that nobody made (after `su`).
    """
    given = os.environ.get("XDG_RUNTIME_DIR")
    is_there = given and os.path.isdir(given)  # noqa: PTH112 - Path.is_dir raises for a folder of another user
    return _folder("MSCOPE_RUNTIME_DIR", f"{given}/{APP_NAME}" if is_there else f"{tempfile.gettempdir()}/{APP_NAME}-{os.getuid()}")


def absolute_path(path: str | Path) -> Path:
    """`path` made absolute, `~` and `~user` read. Raises BadInput for a user nobody knows."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise BadInput(f"{path}: no home folder is known for that name; write the path out") from None


def _folder(variable: str, default: str) -> Path:
    return absolute_path(os.environ.get(variable) or default)
