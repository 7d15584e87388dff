"""Which weights influence is computed for, and how a weight's uses become inputs and output gradients.

A weight matrix (out, in) may be used more than once in a forward pass: a module called twice, two modules that share it, an LM head
tied to the embedding. Its gradient is the sum over all uses, so one `Weight` knows them all. Each kind of module is brought to the
same form: output = W @ input, with a column for the bias where it has one.

| module                          | W here                     | input           | output          |
|---------------------------------|----------------------------|-----------------|-----------------|
| Linear                          | its weight                 | its input, 1    | its output      |
| Conv1D of GPT-2                 | its weight, transposed     | its input, 1    | its output      |
| Embedding, by itself            | its weight, transposed     | one-hot token   | its output      |
| Embedding tied to a linear head | the head's                 | its output's gradient | one-hot token   |

In the last line input and output change places: the gradient of W is the same sum of outer products.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import torch
from torch import nn

from modelscope_app.api import BadInput, Model

LARGEST_FACTOR = 16_384
"""Width beyond which a Kronecker factor is refused: its eigendecomposition in float64 takes 2 GB and most of an hour."""
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
Kind = Literal["linear", "conv1d", "embedding", "embedding-transposed"]


class Use(NamedTuple):
    """One module that uses a weight."""

    module: nn.Module
    kind: Kind


class Weight(NamedTuple):
    """A weight matrix that influence is computed for."""

    name: str
    """Of the module it belongs to, or of the first of several."""
    uses: tuple[Use, ...]
    inputs: int
    """Width of the input, with the column of ones where there is a bias."""
    outputs: int
    has_bias: bool
    contracted_in: torch.dtype | None = None
    """In which its inputs and gradients are summed and multiplied; None for the model's own, and float32 at least."""

    @property
    def size(self) -> int:
        """Elements of the weight and its bias."""
        return self.inputs * self.outputs


def chosen_weights(model: Model, modules: str) -> list[Weight]:
    """The weights that `modules` names: `mlp`, `attention`, `all`, or names and patterns with `*`, separated by commas.

    The three words and patterns cover linear layers inside the decoder layers, or every linear layer of a model without any; an LM
    head or an embedding is taken only where its name is spelled in full. Raises BadInput for what matches nothing, and for a factor
    wider than `LARGEST_FACTOR`.
    """
    named = {name: module for name, module in model.module.named_modules() if kind_of(module) is not None}
    inside = _inside_layers(model, named)
    chosen: dict[str, nn.Module] = {}
    for part in filter(None, (part.strip() for part in modules.split(","))):
        found = _matching(part, named, inside)
        if not found:
            raise BadInput(_nothing_found(part, named, inside))
        chosen |= {name: named[name] for name in found}
    if not chosen:
        raise BadInput("--modules is empty; mlp, attention and all are possible, or the name of a module, as in model.layers.*.mlp.*")
    weights = _grouped([name for name in named if name in chosen], named)
    for weight in weights:
        widest = max(weight.inputs, weight.outputs)
        if widest > LARGEST_FACTOR:
            raise BadInput(f"{weight.name}: a factor would be {widest:,} wide, and at most {LARGEST_FACTOR:,} are decomposed; leave it out")
    return weights


def kind_of(module: nn.Module) -> Kind | None:
    """How a module uses its weight; None for a module without one of these kinds."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    is_conv1d = type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # of transformers, which need not be imported for it
    return "conv1d" if is_conv1d else None


def _inside_layers(model: Model, named: dict[str, nn.Module]) -> list[str]:
    """Names of the linear layers in the decoder layers, or of all where there are no decoder layers."""
    linears = [name for name, module in named.items() if kind_of(module) in ("linear", "conv1d")]
    try:
        count = model.sites.layer_count
    except BadInput:
        return linears
    lists = [name for name, module in model.module.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        return linears
    prefix = min(lists, key=lambda name: name.count(".")) + "."
    within = [name for name in linears if name.startswith(prefix)]
    return within or linears


def _matching(part: str, named: dict[str, nn.Module], inside: Sequence[str]) -> list[str]:
    if part == "all":
        return list(inside)
    if part in ("mlp", "attention"):
        attention = [name for name in inside if _ATTENTION.search(name)]
        return attention if part == "attention" else [name for name in inside if name not in set(attention)]
    if part in named:
        return [part]
    return [name for name in inside if fnmatchcase(name, part)]


def _nothing_found(part: str, named: dict[str, nn.Module], inside: Sequence[str]) -> str:
    some = ", ".join(list(inside)[:3]) or ", ".join(list(named)[:3]) or "none"
    return f"--modules {part!r} matches no linear layer inside the model's layers; there are {some} ... ({len(inside)} of them)"


def _grouped(names: Sequence[str], named: dict[str, nn.Module]) -> list[Weight]:
    """Names that share a weight become one, together with modules that were not named and share it too."""
    by_weight: dict[int, list[str]] = {}
    for name, module in named.items():
        by_weight.setdefault(id(module.weight), []).append(name)
    weights, seen = [], set()
    for name in names:
        key = id(named[name].weight)
        if key not in seen:
            seen.add(key)
            weights.append(_weight(by_weight[key], named))
    return weights


def _weight(names: Sequence[str], named: dict[str, nn.Module]) -> Weight:
    modules = [named[name] for name in names]
    kinds = [kind_of(module) for module in modules]
    if len(set(kinds)) > 1 and set(kinds) != {"linear", "embedding"}:
        raise BadInput(f"{' and '.join(names)} share a weight in a way that is not supported")
    biases = {id(bias): bias for module in modules if (bias := getattr(module, "bias", None)) is not None}
    if len(biases) > 1 or (biases and any(getattr(module, "bias", None) is None for module in modules)):
        raise BadInput(f"{' and '.join(names)} share a weight and not its bias, which is not supported")
    uses = tuple(
        Use(module, "embedding-transposed" if kind == "embedding" and "linear" in kinds else kind)
        for module, kind in zip(modules, kinds, strict=True)
        if kind is not None
    )
    main = next((name for name, kind in zip(names, kinds, strict=True) if kind == "linear"), names[0])
    outputs, inputs = _shape(named[main])
    return Weight(main, uses, inputs + bool(biases), outputs, bool(biases))


def _shape(module: nn.Module) -> tuple[int, int]:
    """(out, in)."""
    weight = module.weight
    rows, columns = int(weight.shape[0]), int(weight.shape[1])  # type: ignore[index]
    return (rows, columns) if kind_of(module) == "linear" else (columns, rows)


def total_size(weights: Iterable[Weight]) -> int:
    """Elements of all of them."""
    return sum(weight.size for weight in weights)
