"""Going on from what a model has read: beginnings that several texts share, and greedy continuation.

Both keep the keys and values of attention (transformers' cache), so that a token is read once. A module that brings no such cache reads
everything anew; the result is the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from modelscope_app.api import JobFailed, TokenBatch


class ReadPrefix:
    """What `BuiltModel.prefix` returns: token ids and masks of what was read, one row for each text that goes on, and the cache."""

    def __init__(self, batch: TokenBatch, repeats: int, cache: Any) -> None:
        self.input_ids = batch.input_ids.repeat_interleave(repeats, 0)  # (rows, token)
        self.attention_mask = batch.attention_mask.repeat_interleave(repeats, 0)
        self.cache = cache
        self._used = False

    @property
    def rows(self) -> int:
        """Rows that continue it."""
        return len(self.input_ids)

    def take_cache(self) -> Any:
        """The cache, once: reading on from it changes it. Raises JobFailed the second time."""
        if self._used and self.cache is not None:
            raise JobFailed("a prefix was continued twice; read it anew, or give all its continuations in one batch")
        self._used = True
        return self.cache


def check_left_padded(batch: TokenBatch) -> None:
    """Raise JobFailed where padding stands on the right, where tokens would be put after it."""
    if batch.attention_mask.numel() and not bool(batch.attention_mask[:, -1].all()):
        raise JobFailed("what is to be continued must be padded on the left: context.batches(..., padding='left')")


def keeps_a_cache(module: nn.Module) -> bool:
    """Whether the module can hand out keys and values and go on from them."""
    return hasattr(module, "config") and "past_key_values" in inspect.signature(module.forward).parameters


def read_on(module: nn.Module, ids: torch.Tensor, mask: torch.Tensor, cache: Any, last_only: bool = False) -> Any:
    """The module's output on `ids` (rows, new) after what `cache` holds; `mask` (rows, read + new) is 0 on padding of either."""
    accepted = inspect.signature(module.forward).parameters
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]  # count real tokens, so that padding changes nothing
    given: dict[str, Any] = {"attention_mask": mask, "past_key_values": cache, "use_cache": True}
    if "position_ids" in accepted:
        given["position_ids"] = positions
    if last_only and "logits_to_keep" in accepted:
        given["logits_to_keep"] = 1
    return module(input_ids=ids, **given)


def greedy(
    module: nn.Module,
    batch: TokenBatch,
    count: int,
    device: torch.device,
    logits: Callable[[TokenBatch], torch.Tensor],
    check: Callable[[TokenBatch], None],
) -> torch.Tensor:
    """(batch, count) int64 on the CPU: see `BuiltModel.greedy`. `logits` computes them anew where there is no cache."""
    check_left_padded(batch)
    cached = keeps_a_cache(module)
    ends = end_ids(module)
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    rows = len(ids)
    chosen = torch.full((rows, count), -1, dtype=torch.int64)
    going = torch.ones(rows, dtype=torch.bool, device=device)
    cache: Any = None
    new = ids
    for position in range(count):
        if not bool(going.any()):
            break
        check(TokenBatch(batch.ids, ids, mask, mask.bool()))
        if cached:
            output = read_on(module, new, mask, cache, last_only=True)
            cache, scores = output.past_key_values, output.logits[:, -1]  # (rows, vocabulary)
        else:
            scores = logits(TokenBatch(batch.ids, ids, mask, mask.bool()))[:, -1]
        going &= torch.isfinite(scores).all(-1)
        token = torch.where(going, scores.argmax(-1), 0)
        going &= ~torch.isin(token, ends.to(device))
        chosen[:, position] = torch.where(going, token, -1).cpu()
        new = token[:, None]
        ids = torch.cat([ids, new], 1)
        mask = torch.cat([mask, torch.ones_like(new)], 1)
    return chosen


def end_ids(module: nn.Module) -> torch.Tensor:
    """Ids after which nothing of an answer comes, as the module's configs say."""
    found: set[int] = set()
    for config in (getattr(module, "generation_config", None), getattr(module, "config", None)):
        said = getattr(config, "eos_token_id", None)
        found.update(said if isinstance(said, list | tuple) else [] if said is None else [said])
    return torch.tensor(sorted(found), dtype=torch.int64)
