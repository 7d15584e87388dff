"""What a tensor's name says: which stack of layers it belongs to, which layer, which module, and which names a pattern picks.

>>> placed("model.layers.3.self_attn.q_proj.weight")
Place(stack='model.layers', layer=3, module='self_attn.q_proj')
>>> placed("model.layers.3.mlp.experts.17.w1.weight").module
'mlp.experts.*.w1'
>>> placed("layers.0.bias")
Place(stack='layers', layer=0, module='bias')
>>> placed("model.embed_tokens.weight")
Place(stack='', layer=None, module='model.embed_tokens')
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from modelscope_app.api import BadInput, TensorHeader

_INDEX = re.compile(r"[0-9]{1,9}")
_EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|token_embedding|token_embd)(\.weight)?")
LONGEST_LISTING = 8


class Place(NamedTuple):
    """Where in the model a tensor sits."""

    stack: str
    """What stands before the layer number, as `model.layers`; empty outside layers."""
    layer: int | None
    """0-based layer: the first number in the name."""
    module: str
    """What stands between the layer number and the parameter's own name, or that name where nothing does; later numbers
    (experts) become `*`."""


def placed(name: str) -> Place:
    """The place a tensor name tells of. Never fails: a name without structure is its own module."""
    parts = name.split(".")
    position = next((i for i, part in enumerate(parts) if _INDEX.fullmatch(part)), None)
    if position is None:
        return Place("", None, ".".join(parts[:-1]) or name)
    stack = ".".join(parts[:position])
    inner = ["*" if _INDEX.fullmatch(part) else part for part in parts[position + 1 : -1]]
    return Place(stack, int(parts[position]), ".".join(inner) or parts[-1])


def module_labels(names: Iterable[str]) -> dict[str, str]:
    """A module label for each tensor name: the module, with its stack before it where two stacks hold modules of one name.

    Modules of two stacks never share a label: where the stack before some does not tell all apart, every label has it, and
    names made to look alike even then are numbered.
    """
    places = {name: placed(name) for name in names}
    modules = dict.fromkeys((place.stack, place.module) for place in places.values())
    stacks = Counter(module for _, module in modules)
    full = {(stack, module): f"{stack}.*.{module}" if stack else module for stack, module in modules}
    short = {(stack, module): module if stacks[module] == 1 else full[stack, module] for stack, module in modules}
    chosen = short if len(set(short.values())) == len(modules) else full
    taken: set[str] = set()
    for key, label in chosen.items():
        number = 1
        while chosen[key] in taken:
            number += 1
            chosen[key] = f"{label} ({number})"
        taken.add(chosen[key])
    return {name: chosen[place.stack, place.module] for name, place in places.items()}


def matching(names: Iterable[str], patterns: str) -> list[str]:
    """Names that match one of the comma-separated patterns with `*` and `?`, in their order. Raises BadInput if there are none.

    What is itself a name picks that tensor alone, the whole before its parts: `x,y` and `w[1]` mean the tensors called that.
    """
    given = list(names)
    if patterns in given:
        return [patterns]
    wanted = {pattern.strip() for pattern in patterns.split(",")}
    exact = wanted.intersection(given)
    globs = [pattern.replace("[", "[[]") for pattern in wanted - exact]
    found = [name for name in given if name in exact or any(fnmatchcase(name, glob) for glob in globs)]
    if not found:
        raise BadInput(f"no tensor matches --only {patterns!r}; `mscope inspect CHECKPOINT --tensors` lists the names")
    return found


def input_embedding(headers: Mapping[str, TensorHeader], config: Mapping[str, Any] | None) -> str | None:
    """Name of the token embedding, (vocabulary, hidden), or None.

    Found by the names architectures give it; failing that, the only matrix with as many rows as config.json's `vocab_size`.
    """
    matrices = [name for name, header in headers.items() if len(header.shape) == 2]
    for name in matrices:
        if _EMBEDDING.fullmatch(name):
            return name
    configs = [config or {}, (config or {}).get("text_config")]
    sizes = [each.get("vocab_size") for each in configs if isinstance(each, Mapping)]
    candidates = [name for name in matrices if headers[name].shape[0] in sizes]
    return candidates[0] if len(candidates) == 1 else None


def listing(names: Iterable[str]) -> str:
    """Names in a sentence: the first few, then how many more."""
    given = list(names)
    rest = len(given) - LONGEST_LISTING
    return ", ".join(given[:LONGEST_LISTING]) + (f" and {rest} more" if rest > 0 else "")
