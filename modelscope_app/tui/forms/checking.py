"""What is wrong with a form, field by field, in the words of `mscope run`; and what it comes to once nothing is.

Called in the thread of plugins: validators are theirs. Imports pydantic when called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from modelscope_app.api import Checkpoints, MscopeError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from modelscope_app.plugin_host import BoundAnalysis, ParamField

DEVICE, DTYPE, SEED = "device", "dtype", "seed"
"""Keys of the host's own options, which no param can have."""
CHECKPOINTS = "checkpoints"
"""Key of what is wrong with how many there are; that of one of them is `checkpoint_key`."""
WHOLE = ""
"""Key of what concerns no single field."""

_LARGEST_SEED = 2**63 - 1
_MOST_LAYERS = 1000


def checkpoint_key(position: int) -> str:
    """Of the field of a checkpoint, counted from 0. No param is called so."""
    return f"{CHECKPOINTS} {position}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """An analysis, ready for a form."""

    bound: BoundAnalysis
    fields: tuple[ParamField, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a form says: text as it stands in its fields."""

    values: Mapping[str, str | bool]
    """Of the params that are not left to their defaults."""
    checkpoints: Sequence[str]
    """As typed. Empty where a field is empty."""
    device: str = "auto"
    dtype: str = "auto"
    seed: str = "0"


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of looking at it."""

    problems: Mapping[str, str] = field(default_factory=dict)
    """A sentence for each field that is wrong, by key."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """All of them, as job.json keeps them; empty while something is wrong."""
    checkpoints: tuple[str, ...] = ()
    """Absolute, except `hf:org/name`."""
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    command: str | None = None
    """The shell command that does the same; None while something is wrong."""

    @property
    def is_right(self) -> bool:
        """Whether it can be run."""
        return not self.problems


def checked(loaded: Loaded, asked: Asked) -> Checked:
    """Look at everything, and put it together where it is right."""
    from modelscope_app.jobs.submission import HostOptions, headless_command
    from modelscope_app.plugin_host import params_json

    params, problems = checked_params(loaded.bound.analysis.params, loaded.fields, asked.values)
    problems = _host_problems(asked) | checkpoint_problems(loaded.bound, asked.checkpoints) | problems
    if problems or params is None:
        return Checked(problems)
    try:
        paths = tuple(_absolute(path) for path in asked.checkpoints if path)
        options = HostOptions(asked.device, asked.dtype, int(asked.seed or 0))
        command = headless_command(loaded.bound, paths, params, options)
        return Checked({}, params_json(params), paths, options.device, options.dtype, options.seed, command)
    except MscopeError as error:
        return Checked({WHOLE: str(error)})


def checked_params(
    model: type[BaseModel], fields: Sequence[ParamField], values: Mapping[str, object]
) -> tuple[BaseModel | None, dict[str, str]]:
    """The params, or a sentence for each field that is wrong: the one `parse_params` has for it.

    `parse_params` puts its sentences into one text. A field's own is found by asking for that field alone, and counts if it is
    part of that text; what is left of the text then concerns no single field.
    """
    from modelscope_app.plugin_host import parse_params

    try:
        return parse_params(model, values), {}
    except MscopeError as error:
        said = str(error)
    required = {field.name: f"{field.option} is required: it takes {field.takes}" for field in fields if field.required}
    problems: dict[str, str] = {}
    left = said
    for one in fields:
        sentence = required.get(one.name) if one.name not in values else _said_of_one(model, one.name, values[one.name], required)
        if sentence and sentence in left:
            problems[one.name] = sentence
            left = _without(left, sentence)
    if left.strip("; "):
        problems[WHOLE] = left
    return None, problems


def changed_params(loaded: Loaded, asked: Asked) -> dict[str, Any]:
    """The params that differ from their defaults, as a params file has them. Raises MscopeError."""
    from modelscope_app.plugin_host import params_json

    params, problems = checked_params(loaded.bound.analysis.params, loaded.fields, asked.values)
    if params is None:
        raise MscopeError("; ".join(problems.values()))
    stored = params_json(params)
    return {field.name: stored[field.name] for field in loaded.fields if field.required or getattr(params, field.name) != field.default}


def layers_of(checkpoint: str) -> int | None:
    """How many layers its config says it has. Reads headers."""
    from modelscope_app.checkpoints import open_checkpoint

    try:
        config = open_checkpoint(checkpoint).config or {}
    except (MscopeError, OSError):
        return None
    layers = next((config[key] for key in ("num_hidden_layers", "n_layer", "n_layers") if isinstance(config.get(key), int)), None)
    return layers if layers is not None and 0 < layers <= _MOST_LAYERS else None


def checkpoint_problems(bound: BoundAnalysis, paths: Sequence[str]) -> dict[str, str]:
    """What is wrong with the checkpoints: each alone, and how many they are. Reads headers."""
    from modelscope_app.jobs.submission import open_checkpoints

    takes = bound.analysis.checkpoints
    problems: dict[str, str] = {}
    one_of_the_kind = replace(bound, analysis=replace(bound.analysis, checkpoints=Checkpoints(kind=takes.kind)))
    for position, path in enumerate(paths):
        if path:
            try:
                open_checkpoints(one_of_the_kind, [path])
            except (MscopeError, OSError) as error:
                problems[checkpoint_key(position)] = str(error)
        elif position < takes.minimum:
            what = "a series: a folder of checkpoints of one training run" if takes.kind == "series" else "a checkpoint"
            problems[checkpoint_key(position)] = f"required: {bound.id} takes {what}, as a folder, a file or hf:org/name"
    given = sum(map(bool, paths))
    if takes.maximum is not None and given > takes.maximum:
        problems[CHECKPOINTS] = f"{bound.id} takes {takes}, and {given} were given"
    return problems


def _host_problems(asked: Asked) -> dict[str, str]:
    from modelscope_app.models.names import check_device, check_dtype

    problems = {}
    for key, check, value in ((DEVICE, check_device, asked.device), (DTYPE, check_dtype, asked.dtype)):
        try:
            check(value)
        except UsageError as error:
            problems[key] = str(error)
    seed = asked.seed.strip()
    if seed and not (seed.isascii() and seed.isdigit() and len(seed) <= 19 and int(seed) <= _LARGEST_SEED):
        problems[SEED] = "--seed takes a whole number from 0 to 2^63 - 1"
    return problems


def _said_of_one(model: type[BaseModel], name: str, value: object, required: Mapping[str, str]) -> str:
    """What `parse_params` says of one field, given alone; empty where nothing is wrong with it."""
    from modelscope_app.plugin_host import parse_params

    try:
        parse_params(model, {name: value})
    except MscopeError as error:
        said = str(error)
        for other, sentence in required.items():
            if other != name:
                said = _without(said, sentence)
        return said
    return ""


def _without(text: str, sentence: str) -> str:
    """A text of sentences without one of them."""
    for found in (f"{sentence}; ", f"; {sentence}", sentence):
        if found in text:
            return text.replace(found, "", 1)
    return text


def _absolute(path: str) -> str:
    from modelscope_app.checkpoints.finding import absolute
    from modelscope_app.checkpoints.hub_cache import PREFIX

    return path if path.startswith(PREFIX) else str(absolute(path))
