"""What a form remembers: the values used last, by analysis, and presets with a name.

Values used last lie in the state folder, as text, and are forgotten when the analysis has another version. Checkpoints are never
among them. Presets are JSON files in the settings folder which `mscope run ANALYSIS --params FILE` reads too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelscope_app.api import BadInput, UsageError
from modelscope_app.locations import config_dir, state_dir
from modelscope_app.runs.atomic import write_json
from modelscope_app.runs.reading import json_value

Values = Mapping[str, str | bool]

_FORMAT = 1
_LARGEST_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+=-]{0,63}")


def last_used(analysis: str, version: int) -> dict[str, str | bool]:
    """The values a form of this analysis had last, by key; none where there are none for this version, or the file is damaged."""
    try:
        stored = json_value(_last_used_path(analysis))
        if stored["format"] != _FORMAT or stored["version"] != version:
            return {}
        return {str(key): value for key, value in stored["values"].items() if isinstance(value, str | bool)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BadInput):
        return {}


def keep_last_used(analysis: str, version: int, values: Values) -> None:
    """Remember them. Raises OSError, BadInput."""
    path = _last_used_path(analysis)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(path, {"format": _FORMAT, "version": version, "values": dict(values)})


def preset_folder(analysis: str) -> Path:
    """Where its presets lie."""
    return config_dir() / "presets" / _file_name(analysis)


def presets(analysis: str) -> list[str]:
    """Names of its presets, in the order of the alphabet."""
    try:
        found = [path.stem for path in preset_folder(analysis).iterdir() if path.suffix == ".json"]
    except OSError:
        return []
    return sorted(name for name in found if _NAME.fullmatch(name))


def preset_path(analysis: str, name: str) -> Path:
    """The file of a preset. Raises UsageError for a name that none can have."""
    name = name.strip()
    if not _NAME.fullmatch(name):
        raise UsageError("the name of a preset has 1 to 64 letters, digits, spaces and . _ + = -, and begins with a letter or a digit")
    return preset_folder(analysis) / f"{name}.json"


def save_preset(analysis: str, name: str, params: Mapping[str, Any]) -> Path:
    """Write a preset, over one of the same name; where it lies. Raises UsageError, BadInput."""
    path = preset_path(analysis, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, dict(params))
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def read_preset(analysis: str, name: str) -> dict[str, Any]:
    """Params of a preset, by name. Raises UsageError, BadInput."""
    path = preset_path(analysis, name)
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise BadInput(f"{path}: is too large for a preset")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: holds no table of options")
    return {str(key).replace("-", "_"): item for key, item in value.items()}


def delete_preset(analysis: str, name: str) -> None:
    """Remove it. Raises UsageError, BadInput."""
    path = preset_path(analysis, name)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f"{path}: cannot be removed ({error.strerror or error})") from None


def _last_used_path(analysis: str) -> Path:
    return state_dir() / "forms" / f"{_file_name(analysis)}.json"


def _file_name(analysis: str) -> str:
    """The id of an analysis as the name of a file; that of a plugin may hold anything."""
    return re.sub(r"[^A-Za-z0-9._-]|^\.", "_", analysis)
