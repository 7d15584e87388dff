"""Passes that read activations and behaviour of a model, all sites in one pass.

Hooks slice while the model runs: of each prompt one vector a site is kept (n, site, hidden), never (site, batch, token, hidden), and
the LM head is not computed. The two answers of a contrast pair share the tokens before them, which are read once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch

from modelscope_app.api import Model, TokenBatch
from modelscope_probes.prompts import Pair

Pooling = Literal["last", "mean", "max"]
State = dict[str, torch.Tensor]
Batch = TypeVar("Batch")


class RowPass(ABC, Generic[Batch]):
    """A pass that reads each of its rows once, in whatever batches: row i of the state is for the i-th id of `ids`.

    Which rows are there already stands beside them as `is_read`; by that, parts of a pass are put together.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        self._row = {id: row for row, id in enumerate(ids)}

    @abstractmethod
    def unread(self, rows: int) -> State:
        """That many rows before they are read, (row, ...) each."""

    @abstractmethod
    def read(self, batch: Batch) -> tuple[Sequence[int], State]:
        """The ids of a batch and what was read of them, in that order; called without gradients."""

    def start(self) -> State:
        rows = len(self._row)
        return {**self.unread(rows), "is_read": torch.zeros(rows, dtype=torch.bool)}

    def step(self, state: State, batch: Batch) -> State:
        with torch.no_grad():
            ids, found = self.read(batch)
        rows = torch.tensor([self._row[id] for id in ids])
        for name, values in found.items():
            state[name][rows] = values
        state["is_read"][rows] = True
        return state

    def merge(self, a: State, b: State) -> State:
        """Rows that either has read."""
        return merged_rows(a, b)


class ActivationPass(RowPass[TokenBatch]):
    """Activations of prompts (n, site, hidden), float32; prompts are padded on the left."""

    def __init__(self, model: Model, sites: Sequence[str], ids: Sequence[int], width: int, pooling: Pooling) -> None:
        super().__init__(ids)
        self._model = model
        self._sites = tuple(sites)
        self._width = width
        self._pooling = pooling

    def unread(self, rows: int) -> State:
        return {"activations": torch.zeros(rows, len(self._sites), self._width)}

    def read(self, batch: TokenBatch) -> tuple[Sequence[int], State]:
        with self._model.sites.read(self._sites, keep=pooled(batch, self._pooling)) as found:
            self._model.body(batch)
        return batch.ids, {"activations": _by_site(found, self._sites)}  # (batch, site, hidden)

    def finish(self, state: State) -> torch.Tensor:
        return state["activations"]


class PairPass(RowPass[Sequence[Pair]]):
    """Activations at the answers of contrast pairs: (pair, 2, site, hidden), the defecting answer first; at an answer's last token."""

    def __init__(self, model: Model, sites: Sequence[str], count: int, width: int) -> None:
        super().__init__(range(count))
        self._model = model
        self._sites = tuple(sites)
        self._width = width

    def unread(self, rows: int) -> State:
        return {"activations": torch.zeros(rows, 2, len(self._sites), self._width)}

    def read(self, batch: Sequence[Pair]) -> tuple[Sequence[int], State]:
        beginnings = padded([pair.opening_ids for pair in batch], "left")
        answers = [ids for pair in batch for ids in (pair.defecting_ids, pair.benign_ids)]
        ends = padded(answers, "right")
        back = torch.tensor([ends.input_ids.shape[1] - len(ids) + 1 for ids in answers])  # the last real token, from the end

        def answer(hidden: torch.Tensor) -> torch.Tensor:
            rows = torch.arange(len(answers), device=hidden.device)
            return hidden[rows, hidden.shape[1] - back.to(hidden.device)]

        prefix = self._model.prefix(beginnings, repeats=2)
        with self._model.sites.read(self._sites, keep=answer) as found:
            self._model.body(ends, after=prefix)
        read = _by_site(found, self._sites)  # (answer, site, hidden)
        return [pair.id for pair in batch], {"activations": read.reshape(len(batch), 2, *read.shape[1:])}

    def finish(self, state: State) -> torch.Tensor:
        return state["activations"]


class Answer(NamedTuple):
    """What a model says to a batch of prompts."""

    tokens: torch.Tensor
    """(batch, new token) int64, greedy; -1 after the end."""
    logits: torch.Tensor
    """(batch, vocabulary) of the first new token."""
    is_known: torch.Tensor
    """(batch,) bool: every logit was finite until the answer ended."""


def answered(model: Model, batch: TokenBatch, count: int) -> Answer:
    """The greedy answer to prompts padded on the left, in one reading of them; of each reading the last position's logits."""
    first: list[torch.Tensor] = []
    finite: list[torch.Tensor] = []

    def look(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        logits = (output if isinstance(output, torch.Tensor) else output.logits)[:, -1]  # (batch, vocabulary)
        if not first:
            first.append(logits)
        finite.append(logits.isfinite().all(-1).cpu())

    handle = model.module.register_forward_hook(look)
    try:
        with torch.no_grad():
            tokens = model.greedy(batch, count)
    finally:
        handle.remove()
    said = (tokens >= 0).sum(1)  # also the step at which the answer ended, if it did
    looked = torch.arange(len(finite))[:, None] <= said  # (step, batch)
    return Answer(tokens, first[0], (torch.stack(finite) | ~looked).all(0))


class AnswerPass(RowPass[TokenBatch]):
    """Greedy answers of prompts padded on the left: `tokens` (n, new token) int64, -1 after the end, and `is_known` (n,) as in `Answer`."""

    def __init__(self, model: Model, ids: Sequence[int], count: int) -> None:
        super().__init__(ids)
        self._model = model
        self._count = count

    def unread(self, rows: int) -> State:
        return {"tokens": torch.full((rows, self._count), -1, dtype=torch.int64), "is_known": torch.zeros(rows, dtype=torch.bool)}

    def read(self, batch: TokenBatch) -> tuple[Sequence[int], State]:
        answer = answered(self._model, batch, self._count)
        return batch.ids, {"tokens": answer.tokens, "is_known": answer.is_known}

    def finish(self, state: State) -> State:
        return {name: state[name] for name in ("tokens", "is_known")}


class NextTokenPass(RowPass[TokenBatch]):
    """Next-token logits of a few tokens after prompts: (n, token) float64; prompts are padded on the left.

    Read as the first step of an answer, for which a model computes the logits of the last position alone.
    """

    def __init__(self, model: Model, ids: Sequence[int], tokens: Sequence[int]) -> None:
        super().__init__(ids)
        self._model = model
        self._tokens = torch.tensor(tuple(tokens))

    def unread(self, rows: int) -> State:
        return {"logits": torch.zeros(rows, len(self._tokens), dtype=torch.float64)}

    def read(self, batch: TokenBatch) -> tuple[Sequence[int], State]:
        logits = answered(self._model, batch, 1).logits  # (batch, vocabulary)
        return batch.ids, {"logits": logits[:, self._tokens.to(logits.device)].double().cpu()}

    def finish(self, state: State) -> torch.Tensor:
        return state["logits"]


def _by_site(found: Mapping[str, torch.Tensor], sites: Sequence[str]) -> torch.Tensor:
    """(row, site, hidden) float32 on the CPU, of (row, hidden) of each site."""
    return torch.stack([found[site].float().cpu() for site in sites], dim=1)


def merged_rows(a: State, b: State) -> State:
    """Each row from the state that has read it; states are dicts of (row, ...) tensors with `is_read` (row,)."""
    taken = b["is_read"]
    merged = {}
    for name, values in a.items():
        if name == "is_read":
            merged[name] = values | taken
        else:
            merged[name] = torch.where(taken.reshape(-1, *[1] * (values.ndim - 1)), b[name], values)
    return merged


def pooled(batch: TokenBatch, pooling: Pooling) -> Callable[[torch.Tensor], torch.Tensor]:
    """From (batch, token, hidden) to (batch, hidden): the last real token, or the mean or maximum over real tokens."""
    mask = batch.attention_mask
    last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(dim=1)  # (batch,)

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        if pooling == "last":
            return hidden[torch.arange(len(last), device=hidden.device), last.to(hidden.device)]
        real = mask.to(hidden.device, torch.bool)[..., None]
        if pooling == "mean":
            return (hidden.float() * real).sum(dim=1) / real.sum(dim=1)
        return hidden.float().masked_fill(~real, float("-inf")).amax(dim=1)

    return keep


def batch_tokens(asked: int | None, device: torch.device) -> int:
    """Tokens the model reads at once: on a CPU, which gains nothing from more, few enough for a tenth of a large batch's memory."""
    return asked or (256 if device.type == "cpu" else 4096)


def padded(rows: Sequence[Sequence[int]], side: Literal["left", "right"]) -> TokenBatch:
    """Rows of token ids as one batch; padding is masked, so its id does not matter."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[at, place] = torch.tensor(row)
        mask[at, place] = 1
    return TokenBatch(tuple(range(len(rows))), ids, mask, mask.bool())


def hidden_width(config: Mapping[str, object] | None) -> int | None:
    """Width of the residual stream, as config.json says; None where it does not."""
    config = config or {}
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("hidden_size", "n_embd", "d_model"):
            value = part.get(key)
            if isinstance(value, int):
                return value
    return None
