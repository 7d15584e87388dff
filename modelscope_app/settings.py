"""Settings: config.toml in the settings folder, with environment variables on top.

    [plugins]
    disabled = ["name"]              # never imported; MSCOPE_DISABLE_PLUGINS=a,b adds to it

    [runs]
    save_interval_seconds = 5.0      # how often a running stage is saved; MSCOPE_SAVE_INTERVAL_SECONDS replaces it

    [service]
    idle_minutes = 30.0              # the service ends after so long without a job or a client
    resident_idle_minutes = 10.0     # a model nobody used for so long leaves its device
    cpu_workers = 1                  # jobs on the CPU at a time
    cancel_grace_seconds = 5.0       # from asking a job to stop to SIGTERM, and from there to SIGKILL
    memory_limit_gb = {}             # the most that jobs may take of a device, as {cpu = 16.0, "cuda:0" = 40.0}

    [tui]
    theme = "auto"                   # mscope-dark, or ansi-dark where the terminal has 16 colours; ctrl+p lists the others
    mouse = true                     # false leaves the mouse to the terminal, for its own way to select text
    updates_per_second = 4.0         # how often progress is drawn, at most
    keys = {}                        # other keys for what a key does, as {run = "f5", quit = "ctrl+x"}

A file that cannot be read, a key nobody knows and a value out of range are errors that name file and key: a misspelt
setting that is ignored would be one the user believes in.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelscope_app import locations
from modelscope_app.api import BadInput

FILE_NAME = "config.toml"
_SURELY_MEANT = 0.7
"""How alike two names of settings are, from 0 to 1, when one is likely to be the other misspelt."""


_DEVICE = r"^(cpu|cuda:(0|[1-9][0-9]*))$"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PluginSettings(_Table):
    """`[plugins]`."""

    disabled: frozenset[str] = Field(default=frozenset(), strict=False)
    """Entry-point names that are never imported."""


class RunSettings(_Table):
    """`[runs]`."""

    save_interval_seconds: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    """Seconds between two saves of a running stage's state; 0 saves after every step."""


class ServiceSettings(_Table):
    """`[service]`."""

    idle_minutes: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Minutes without a job or a client after which the service ends."""
    resident_idle_minutes: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Minutes after which a model that nobody used leaves its device."""
    cpu_workers: int = Field(default=1, ge=1, le=64)
    """Jobs that run on the CPU at a time."""
    cancel_grace_seconds: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """Seconds from asking a job to stop to SIGTERM, and from there to SIGKILL."""
    memory_limit_gb: dict[Annotated[str, Field(pattern=_DEVICE)], Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default={})
    """GB (10^9 bytes) that models and jobs may take of a device; one that is not named has all its memory."""

    def memory_limit_bytes(self, device: str) -> int | None:
        """The limit of one device, in bytes."""
        gigabytes = self.memory_limit_gb.get(device)
        return None if gigabytes is None else int(gigabytes * 1e9)


class TuiSettings(_Table):
    """`[tui]`."""

    theme: str = "auto"
    """Name of a theme; `auto` looks at what the terminal can show."""
    mouse: bool = True
    """Whether the app takes the mouse, or leaves it to the terminal."""
    updates_per_second: float = Field(default=4.0, gt=0, le=4, allow_inf_nan=False)
    """How often progress is drawn, at most."""
    keys: dict[str, str] = Field(default={})
    """Keys, comma-separated, by the id of what they do."""


class Settings(_Table):
    """Everything that can be set."""

    plugins: PluginSettings = PluginSettings()
    runs: RunSettings = RunSettings()
    service: ServiceSettings = ServiceSettings()
    tui: TuiSettings = TuiSettings()


def read_settings(path: Path | None = None) -> Settings:
    """The settings in `path` (default: config.toml in the settings folder), with the environment's on top.

    No file means the defaults. Raises BadInput naming the file and the key, or the variable.
    """
    path = path or locations.config_dir() / FILE_NAME
    return _with_environment(_from_file(path))


def _from_file(path: Path) -> Settings:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: the settings cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: not valid TOML ({error})") from None
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{path}: {_sentence(error)}") from None


def _with_environment(settings: Settings) -> Settings:
    disabled = {name.strip() for name in os.environ.get("MSCOPE_DISABLE_PLUGINS", "").split(",")} - {""}
    if disabled:
        plugins = PluginSettings(disabled=settings.plugins.disabled | disabled)
        settings = settings.model_copy(update={"plugins": plugins})
    if interval := os.environ.get("MSCOPE_SAVE_INTERVAL_SECONDS"):
        try:
            runs = RunSettings(save_interval_seconds=float(interval))
        except ValueError:
            raise BadInput(f"MSCOPE_SAVE_INTERVAL_SECONDS={interval}: takes a number of seconds, 0 or more") from None
        settings = settings.model_copy(update={"runs": runs})
    return settings


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    if parts[-1] == "[key]":
        return f'{".".join(parts[:-2])}: {_shown(parts[-2])} is no device; its keys are cpu and cuda:N, as in {{"cuda:0" = 40.0}}'
    key = ".".join(parts)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}; {_meant(key)}"
    if first["type"] == "dict_type":
        return f"{key} = {_shown(first['input'])}: takes a table, as {{cpu = 16.0}}"
    if first["type"] == "model_type":
        return f"{key} = {_shown(first['input'])}: takes a table, as [{key}] on a line of its own"
    return f"{key} = {_shown(first['input'])}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def _meant(key: str) -> str:
    """What may have been meant by a key nobody knows. One in a table may stand in the wrong table, and never means a table."""
    known = _known_keys()
    table, dot, name = key.partition(".")
    if not dot:
        near = difflib.get_close_matches(key, known, n=1)
        return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    in_tables = {one.partition(".")[2]: one for one in known if "." in one}
    near = difflib.get_close_matches(name, in_tables, n=1, cutoff=_SURELY_MEANT)
    return f"did you mean {in_tables[near[0]]}?" if near else f"known are {', '.join(one for one in known if one.startswith(f'{table}.'))}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _known_keys() -> list[str]:
    keys = []
    for table_name, table in Settings.model_fields.items():
        keys.append(table_name)
        if isinstance(table.annotation, type) and issubclass(table.annotation, BaseModel):
            keys += [f"{table_name}.{name}" for name in table.annotation.model_fields]
    return keys
