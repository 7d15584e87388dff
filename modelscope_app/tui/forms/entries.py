"""The lines of a form as values: what each is called, what it takes, how it is drawn. Made from params, and for the host's own options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from modelscope_app.api import Checkpoints
from modelscope_app.api.params import SelectionKind
from modelscope_app.api.sites import SITE_KINDS
from modelscope_app.tui.forms.checking import DEVICE, DTYPE, SEED, checkpoint_key

if TYPE_CHECKING:
    from modelscope_app.plugin_host import ParamField

Drawn = Literal["text", "flag", "choice"]
Pick = Literal["checkpoint", "series", "data-file", "file", "run", "selection"]
"""What can be chosen from a list instead of typed."""

NO_CHOICE = "none"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line."""

    key: str
    """Name of the param, or what `checking` calls the others."""
    label: str
    takes: str
    """In words."""
    help: str = ""
    default: str | bool | None = None
    """As it would be typed; None where leaving it empty is the default, or there is none."""
    default_text: str = ""
    """The default, for people; empty where there is none."""
    required: bool = False
    drawn: Drawn = "text"
    choices: tuple[str, ...] = ()
    pick: Pick | None = None
    selections: tuple[SelectionKind, ...] = ()
    """Kinds of what can be filled in from what the user is on."""
    suggestions: tuple[str, ...] = ()
    is_list: bool = False
    empty_is_a_value: bool = False
    """Whether an emptied field means the empty text or list, and not the default."""
    can_be_none: bool = False
    """Whether `none` can be typed in it for no value."""

    @property
    def is_pickable(self) -> bool:
        """Whether there is something to choose from."""
        return self.pick is not None or bool(self.suggestions)


def param_entry(field: ParamField, sites: Sequence[str] = ()) -> Entry:
    """The line of a param."""
    from modelscope_app.plugin_host import written

    drawn: Drawn = "flag" if field.is_flag else "choice" if field.choices and not field.is_list else "text"
    choices = (*field.choices, NO_CHOICE) if drawn == "choice" and field.type.is_optional else field.choices
    kind = field.meaning.kind if field.meaning is not None else None
    if drawn == "flag":
        default: str | bool | None = bool(field.default) if field.default is not None else None
    elif drawn == "choice" and field.default is None and not field.required:
        default = NO_CHOICE if field.type.is_optional else None
    else:
        default = None if field.default is None else written(field.default)
    return Entry(
        key=field.name,
        label=field.name.replace("_", "-"),
        takes=field.takes,
        help=field.help,
        default=default,
        default_text="" if field.required else field.default_text,
        required=field.required,
        drawn=drawn,
        choices=choices,
        pick=kind if kind is not None and kind != "site" else None,
        selections=field.meaning.selections if field.meaning is not None else (),
        suggestions=tuple(sites) if kind == "site" else (),
        is_list=field.is_list,
        empty_is_a_value=not field.required and default is not None and (field.type.is_text or field.is_list),
        can_be_none=field.type.is_optional and not field.type.is_text,
    )


def host_entries(devices: Sequence[str]) -> tuple[Entry, ...]:
    """Where and how: device, dtype and seed. `devices` are those there are, as far as that is known."""
    from modelscope_app.models.names import DTYPE_BYTES

    where = Entry(
        DEVICE,
        "device",
        "auto, cpu, cuda or cuda:N",
        "where it runs; auto takes a GPU where there is one",
        default="auto",
        default_text="auto",
        suggestions=tuple(dict.fromkeys(("auto", "cpu", *devices, "cuda:0"))),
    )
    how = Entry(
        DTYPE,
        "dtype",
        "auto, or a floating-point type",
        "the type a model computes in; auto is the one it is stored in",
        default="auto",
        default_text="auto",
        drawn="choice",
        choices=("auto", *sorted(DTYPE_BYTES)),
    )
    return where, how, Entry(SEED, "seed", "a whole number from 0 on", "seed of everything random", default="0", default_text="0")


def checkpoint_entries(takes: Checkpoints, count: int) -> tuple[Entry, ...]:
    """Lines for `count` checkpoints, and the empty ones beside them: as many as are needed, and one more where more are taken."""
    lines = max(count + 1, takes.minimum)
    if takes.maximum is not None:
        lines = min(lines, max(takes.maximum, count))
    word = "series" if takes.kind == "series" else "checkpoint"
    what = {
        "weights": "a checkpoint: a folder, a file or hf:org/name",
        "model": "a checkpoint with a config.json, so that its model can be built",
        "language-model": "a checkpoint of a language model, with its tokenizer",
        "series": "a folder of checkpoints of one training run",
    }[takes.kind]
    return tuple(
        Entry(
            key=checkpoint_key(position),
            label=word if lines == 1 else f"{word} {position + 1}",
            takes=what,
            help=f"what is analysed; it takes {takes}",
            required=position < takes.minimum,
            pick="series" if takes.kind == "series" else "checkpoint",
        )
        for position in range(lines)
    )


def typed_text(entry: Entry, value: Any) -> str | bool | None:
    """A value from JSON as it would be typed; None where it is left to the default."""
    from modelscope_app.plugin_host import written

    if value is None and not entry.can_be_none:
        return None
    return value if isinstance(value, bool) else written(value)


def sites_of(layers: int) -> tuple[str, ...]:
    """All sites of a model of so many layers, in the order the data pass them.

    >>> sites_of(1)
    ('resid_pre.0', 'resid_post.0', 'attn_out.0', 'mlp_out.0', 'head_out.0')
    """
    return tuple(f"{kind}.{layer}" for layer in range(layers) for kind in SITE_KINDS)
