"""Passes that read activations and behaviour of a model, all sites in one pass.

Hooks slice while the model runs: of each prompt one vector a site is kept (n, site, hidden), never (site, batch, token, hidden), and
the LM head is not computed. The two answers of a contrast pair share the tokens before them, which are read once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from modelscope_app.api import Model, TokenBatch
from modelscope_probes.prompts import Pair

Pooling = Literal["last", "mean", "max"]
State = dict[str, torch.Tensor]


class ActivationPass:
    """Activations of prompts (n, site, hidden), float32, row i for the i-th id of `ids`; prompts are padded on the left."""

    def __init__(self, model: Model, sites: Sequence[str], ids: Sequence[int], width: int, pooling: Pooling) -> None:
        self._model = model
        self._sites = tuple(sites)
        self._row = {id: row for row, id in enumerate(ids)}
        self._width = width
        self._pooling = pooling

    def start(self) -> State:
        rows = len(self._row)
        return {
            "activations": torch.zeros(rows, len(self._sites), self._width),
            "is_read": torch.zeros(rows, dtype=torch.bool),
        }

    def step(self, state: State, batch: TokenBatch) -> State:
        rows = torch.tensor([self._row[id] for id in batch.ids])
        with torch.no_grad(), self._model.sites.read(self._sites, keep=pooled(batch, self._pooling)) as found:
            self._model.body(batch)
        state["activations"][rows] = torch.stack([found[site].float().cpu() for site in self._sites], dim=1)  # (batch, site, hidden)
        state["is_read"][rows] = True
        return state

    def merge(self, a: State, b: State) -> State:
        """Rows that either has read."""
        return merged_rows(a, b)

    def finish(self, state: State) -> torch.Tensor:
        return state["activations"]


class PairPass:
    """Activations at the answers of contrast pairs: (pair, 2, site, hidden), the defecting answer first; at an answer's last token."""

    def __init__(self, model: Model, sites: Sequence[str], count: int, width: int) -> None:
        self._model = model
        self._sites = tuple(sites)
        self._count = count
        self._width = width

    def start(self) -> State:
        return {
            "activations": torch.zeros(self._count, 2, len(self._sites), self._width),
            "is_read": torch.zeros(self._count, dtype=torch.bool),
        }

    def step(self, state: State, batch: Sequence[Pair]) -> State:
        beginnings = padded([pair.opening_ids for pair in batch], "left")
        answers = [ids for pair in batch for ids in (pair.defecting_ids, pair.benign_ids)]
        ends = padded(answers, "right")
        back = torch.tensor([ends.input_ids.shape[1] - len(ids) + 1 for ids in answers])  # the last real token, from the end

        def answer(hidden: torch.Tensor) -> torch.Tensor:
            rows = torch.arange(len(answers), device=hidden.device)
            return hidden[rows, hidden.shape[1] - back.to(hidden.device)]

        with torch.no_grad():
            prefix = self._model.prefix(beginnings, repeats=2)
            with self._model.sites.read(self._sites, keep=answer) as found:
                self._model.body(ends, after=prefix)
        read = torch.stack([found[site].float().cpu() for site in self._sites], dim=1)  # (answer, site, hidden)
        rows = torch.tensor([pair.id for pair in batch])
        state["activations"][rows] = read.reshape(len(batch), 2, *read.shape[1:])
        state["is_read"][rows] = True
        return state

    def merge(self, a: State, b: State) -> State:
        """Pairs that either has read."""
        return merged_rows(a, b)

    def finish(self, state: State) -> torch.Tensor:
        return state["activations"]


class AnswerPass:
    """Greedy answers of prompts: (n, new token) int64, -1 after the end; prompts are padded on the left."""

    def __init__(self, model: Model, ids: Sequence[int], count: int) -> None:
        self._model = model
        self._row = {id: row for row, id in enumerate(ids)}
        self._count = count

    def start(self) -> State:
        rows = len(self._row)
        return {"tokens": torch.full((rows, self._count), -1, dtype=torch.int64), "is_read": torch.zeros(rows, dtype=torch.bool)}

    def step(self, state: State, batch: TokenBatch) -> State:
        rows = torch.tensor([self._row[id] for id in batch.ids])
        with torch.no_grad():
            state["tokens"][rows] = self._model.greedy(batch, self._count)
        state["is_read"][rows] = True
        return state

    def merge(self, a: State, b: State) -> State:
        """Rows that either has read."""
        return merged_rows(a, b)

    def finish(self, state: State) -> torch.Tensor:
        return state["tokens"]


class NextTokenPass:
    """Next-token logits of a few tokens after prompts: (n, token) float64; prompts are padded on the left."""

    def __init__(self, model: Model, ids: Sequence[int], tokens: Sequence[int]) -> None:
        self._model = model
        self._row = {id: row for row, id in enumerate(ids)}
        self._tokens = torch.tensor(tuple(tokens))

    def start(self) -> State:
        rows = len(self._row)
        return {
            "logits": torch.zeros(rows, len(self._tokens), dtype=torch.float64),
            "is_read": torch.zeros(rows, dtype=torch.bool),
        }

    def step(self, state: State, batch: TokenBatch) -> State:
        rows = torch.tensor([self._row[id] for id in batch.ids])
        with torch.no_grad():
            logits = self._model.logits(batch)[:, -1]  # (batch, vocabulary)
        state["logits"][rows] = logits[:, self._tokens.to(logits.device)].double().cpu()
        state["is_read"][rows] = True
        return state

    def merge(self, a: State, b: State) -> State:
        """Rows that either has read."""
        return merged_rows(a, b)

    def finish(self, state: State) -> torch.Tensor:
        return state["logits"]


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
