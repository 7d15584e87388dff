"""Reading and writing activations at sites, through hooks that live as long as a `with`.

Hooks act in the order in which the contexts were entered, so a `read` inside a `write` sees what was written, and a second
`write` at a site is handed what the first one made of it. Tensors are the model's own: with gradients enabled they stay in the
graph, and whoever changes one in place changes the model's computation.

`head_out.l` is not in the model; it is computed at the output projection W (hidden, head * size) of attention, whose input z
is the concatenated heads:

    head_out[h] = W[:, h] z[h]          attention output = sum_h head_out[h] + bias

Writing it therefore replaces the projection's output by the sum over what the function returns, plus the bias. Even an
unchanged value then passes through another order of summation, so it may differ in the last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from modelscope_app.api import SITE_KINDS, BadInput, FamilyAdapter, JobFailed, Site

Change = Callable[[torch.Tensor], torch.Tensor]


class ModelSites:
    """The sites of one model; implements `modelscope_app.api.Sites`."""

    def __init__(self, adapter: FamilyAdapter) -> None:
        self._adapter = adapter
        self._layers = list(adapter.layers())
        self._written_heads: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def layer_count(self) -> int:
        """Number of decoder layers."""
        return len(self._layers)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of site this architecture has."""
        return tuple(kind for kind in SITE_KINDS if self._has(kind))

    @contextmanager
    def read(self, sites: Iterable[str], keep: Change | None = None) -> Iterator[dict[str, torch.Tensor]]:
        """A dict that each forward pass inside the `with` fills by site, under the names given.

        Shapes are those in `modelscope_app.api.sites`. `keep` slices inside the hook; what it returns is stored in memory of its
        own, so the rest of the activation is freed. Raises BadInput for a site the model does not have.
        """
        found: dict[str, torch.Tensor] = {}
        parsed = {name: self._site(name) for name in sites}
        with ExitStack() as hooks:
            for name, site in parsed.items():

                def store(value: torch.Tensor, name: str = name) -> None:
                    found[name] = value if keep is None else _kept(keep(value), value)

                self._hook(hooks, site, store)
            yield found

    @contextmanager
    def write(self, changes: Mapping[str, Change]) -> Iterator[None]:
        """Replace the activation at each site by what its function returns, cast to the activation's dtype.

        Raises BadInput for a site the model does not have, and JobFailed from the forward pass where a function returns
        another shape.
        """
        parsed = {name: (self._site(name), change) for name, change in changes.items()}
        with ExitStack() as hooks:
            for name, (site, change) in parsed.items():

                def replace(value: torch.Tensor, name: str = name, change: Change = change) -> torch.Tensor:
                    changed = change(value)
                    if not isinstance(changed, torch.Tensor) or changed.shape != value.shape:
                        got = tuple(changed.shape) if isinstance(changed, torch.Tensor) else type(changed).__name__
                        raise JobFailed(f"what is written at {name} must have shape {tuple(value.shape)}, not {got}")
                    return changed.to(value.dtype)

                self._hook(hooks, site, replace)
            yield

    def _site(self, name: str) -> Site:
        site = Site.parse(name)
        if site.layer >= self.layer_count:
            raise BadInput(f"{name}: the model has {self.layer_count} layers, 0 to {self.layer_count - 1}")
        return site

    def _has(self, kind: str) -> bool:
        try:
            self._module(Site(kind, 0))
        except BadInput:
            return False
        return True

    def _module(self, site: Site) -> nn.Module:
        """The module to hook. Raises BadInput where the architecture lacks the site."""
        match site.kind:
            case "attn_out":
                return self._adapter.attention_output(site.layer)
            case "mlp_out":
                return self._adapter.mlp_output(site.layer)
            case "head_out":
                projection, heads = self._adapter.head_projection(site.layer)
                head_weights(projection, heads)
                return projection
            case _:
                return self._layers[site.layer]

    def _hook(self, hooks: ExitStack, site: Site, visit: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        """Call `visit` with the activation on every forward pass; a tensor it returns takes the activation's place."""
        module = self._module(site)
        if site.kind == "resid_pre":
            handle = module.register_forward_pre_hook(_on_input(visit), with_kwargs=True)
        elif site.kind == "head_out":
            handle = module.register_forward_hook(self._on_heads(site.layer, visit))
            hooks.callback(self._written_heads.pop, site.layer, None)
        else:
            handle = module.register_forward_hook(_on_output(visit))
        hooks.callback(handle.remove)

    def _on_heads(self, layer: int, visit: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[..., Any]:
        def hook(projection: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            joined = arguments[0]  # (batch, token, head * size)
            source, heads = self._written_heads.get(layer, (None, None))
            if source is not joined or heads is None:
                heads = head_outputs(projection, self._adapter.head_projection(layer)[1], joined)
            changed = visit(heads)
            if changed is None:
                return None
            self._written_heads[layer] = (joined, changed)
            total = changed.sum(dim=-2)  # (batch, token, hidden)
            bias = projection.bias
            return total + bias if isinstance(bias, torch.Tensor) else total

        return hook


def head_weights(projection: nn.Module, heads: int) -> torch.Tensor:
    """(head, size, hidden): the part of an output projection each head goes through.

    Takes torch's Linear, weight (hidden, head * size), and GPT-2's Conv1D, weight (head * size, hidden). Raises BadInput for
    another module.
    """
    if isinstance(projection, nn.Linear):
        weight = projection.weight.T
    elif type(projection).__name__ == "Conv1D" and isinstance(projection.weight, torch.Tensor):
        weight = projection.weight
    else:
        raise BadInput(f"head_out needs a linear output projection, and this one is a {type(projection).__name__}")
    return weight.reshape(heads, -1, weight.shape[-1])


def head_outputs(projection: nn.Module, heads: int, joined: torch.Tensor) -> torch.Tensor:
    """(batch, token, head, hidden): each head of `joined` (batch, token, head * size) through its part of the projection."""
    split = joined.reshape(*joined.shape[:-1], heads, -1)
    return torch.einsum("bths,hsd->bthd", split, head_weights(projection, heads))


def _kept(kept: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    shares = kept.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    return kept.clone() if shares and kept.numel() < whole.numel() else kept


def _on_output(visit: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[..., Any]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        is_tuple = isinstance(output, tuple)  # layers of some architectures return (hidden, ...)
        changed = visit(output[0] if is_tuple else output)
        if changed is None:
            return None
        return (changed, *output[1:]) if is_tuple else changed

    return hook


def _on_input(visit: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[..., Any]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        changed = visit(arguments[0] if arguments else named["hidden_states"])
        if changed is None:
            return None
        return ((changed, *arguments[1:]), named) if arguments else (arguments, {**named, "hidden_states": changed})

    return hook
