"""A probe's score of every token at every layer, taken while the model runs; also of tokens as the model generates them.

A token whose activation in layer l is h scores

    s_l = h . w_l + b_l

and a prompt what the probe's own pooling makes of it: the score of its last token, the mean of its tokens' scores, or, for `max`, the
score of the largest value of each feature, which is not the largest score. Activations are projected inside the hook, so that of
(layer, batch, token, hidden) only (layer, batch, token) is ever kept.

`Sites.read` does not tell a hook its site, so each layer has a `read` of its own with its own direction. Projecting every layer onto
all directions and picking afterwards would do as well, at as many times the work as the probe has layers.

A generated token is scored when the model reads it, to choose the next one: `Model.greedy` is asked for one token more than wanted, so
that the last one is read too, and a hook on the whole module sees which tokens each pass reads. With a cache every token is read once;
a model without one reads the text anew for each token, of which the last column is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from modelscope_app.api import Model, TokenBatch, Tokenizer
from modelscope_probes.probe_file import SavedProbe
from modelscope_probes.prompts import Prompt
from modelscope_probes.reading import Pooling, merged_rows, pooled

State = dict[str, torch.Tensor]
Found = Sequence[tuple[str, dict[str, torch.Tensor]]]


class Layout:
    """Where the scores of each prompt stand: one slot for the pooled score, one for each of its tokens and each token it may be given."""

    def __init__(self, prompts: Sequence[Prompt], new_tokens: int = 0) -> None:
        self.ids = tuple(prompt.id for prompt in prompts)
        self.lengths = tuple(len(prompt.input_ids) for prompt in prompts)
        self.new_tokens = new_tokens
        self._row = {id: row for row, id in enumerate(self.ids)}
        self._starts = [0]
        for length in self.lengths:
            self._starts.append(self._starts[-1] + 1 + length + new_tokens)

    @property
    def slots(self) -> int:
        """All of them."""
        return self._starts[-1]

    def pooled(self, row: int) -> int:
        """The slot of a prompt's pooled score; `row` counts prompts."""
        return self._starts[row]

    def prompt(self, row: int) -> slice:
        """The slots of a prompt's tokens."""
        return slice(self._starts[row] + 1, self._starts[row] + 1 + self.lengths[row])

    def answer(self, row: int) -> slice:
        """The slots of the tokens generated after it."""
        return slice(self.prompt(row).stop, self._starts[row + 1])

    def text(self, row: int) -> slice:
        """The slots of both."""
        return slice(self._starts[row] + 1, self._starts[row + 1])

    def whole(self, row: int) -> slice:
        """All slots of a prompt."""
        return slice(self._starts[row], self._starts[row + 1])

    def row(self, id: int) -> int:
        """The row of the prompt with this id."""
        return self._row[id]


class TokenScorePass:
    """Scores of prompts and of what the model answers; prompts are padded on the left.

    The result, and the state, are `scores` (slot, layer) float32, NaN where nothing was scored; `tokens` (slot,) int64, the ids, -1 for
    no token; and `is_read` (slot,) bool. `on_pass` is called with the state, which it must not keep, after every pass of the model, and
    with the number of tokens generated so far in the batch. `is_read` says which prompts are whole; one that is alone in its batch counts
    as read from its first pass on, so that its answer can be watched.
    """

    def __init__(self, model: Model, probe: SavedProbe, layout: Layout, on_pass: Callable[[State, int], None] | None = None) -> None:
        self._model = model
        self._probe = probe
        self._layout = layout
        self._on_pass = on_pass or (lambda state, generated: None)

    def start(self) -> State:
        slots = self._layout.slots
        return {
            "scores": torch.full((slots, len(self._probe.card.layers)), torch.nan),
            "tokens": torch.full((slots,), -1, dtype=torch.int64),
            "is_read": torch.zeros(slots, dtype=torch.bool),
        }

    def step(self, state: State, batch: TokenBatch) -> State:
        generated = 0
        with torch.no_grad(), _projected(self._model, self._probe, batch) as found:
            if self._layout.new_tokens:
                generated = self._answer(state, batch, found)
            else:
                self._model.body(batch)
                self._store_prompts(state, batch, found)
        self._mark_read(state, batch)
        self._on_pass(state, generated)
        return state

    def merge(self, a: State, b: State) -> State:
        """Prompts that either has read."""
        return merged_rows(a, b)

    def finish(self, state: State) -> State:
        return {name: state[name] for name in ("scores", "tokens", "is_read")}

    def _answer(self, state: State, batch: TokenBatch, found: Found) -> int:
        """Read and answer; the length of the longest answer. What was put into slots after an answer's end is taken out again."""
        rows, alone = [self._layout.row(id) for id in batch.ids], len(batch.ids) == 1
        passes = 0

        def after_pass(module: Any, arguments: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
            nonlocal passes
            if not passes:
                self._store_prompts(state, batch, found)
            else:
                read = named["input_ids"] if "input_ids" in named else arguments[0]  # (batch, 1), or (batch, token) without a cache
                scores = _stacked(found)[:, -1]  # (batch, layer)
                for at, row in enumerate(rows):
                    slot = self._layout.answer(row).start + passes - 1
                    state["tokens"][slot], state["scores"][slot] = int(read[at, -1]), scores[at]
            if alone:
                self._mark_read(state, batch)
            self._on_pass(state, passes)
            passes += 1

        watching = self._model.module.register_forward_hook(after_pass, with_kwargs=True)
        try:
            chosen = self._model.greedy(batch, self._layout.new_tokens + 1)[:, :-1]  # (batch, new token)
        finally:
            watching.remove()
        for row, tokens in zip(rows, chosen, strict=True):
            answer = self._layout.answer(row)
            state["tokens"][answer] = tokens
            state["scores"][answer][tokens < 0] = torch.nan
        return int((chosen >= 0).sum(1).max())

    def _store_prompts(self, state: State, batch: TokenBatch, found: Found) -> None:
        scores = _stacked(found)  # (batch, 1 + token, layer)
        for at, id in enumerate(batch.ids):
            row = self._layout.row(id)
            length = self._layout.lengths[row]
            state["scores"][self._layout.pooled(row)] = scores[at, 0]
            state["scores"][self._layout.prompt(row)] = scores[at, -length:]
            state["tokens"][self._layout.prompt(row)] = batch.input_ids[at, -length:]

    def _mark_read(self, state: State, batch: TokenBatch) -> None:
        for id in batch.ids:
            state["is_read"][self._layout.whole(self._layout.row(id))] = True


@contextmanager
def _projected(model: Model, probe: SavedProbe, batch: TokenBatch) -> Iterator[Found]:
    """By layer, what each pass fills: (batch, 1 + token) with the pooled score first, or (batch, token) where it goes on from there."""
    pooling: Pooling = probe.card.pooling  # type: ignore[assignment]  # checked when the probe was read
    with ExitStack() as reading:
        found = []
        for at, layer in enumerate(probe.card.layers):
            site = f"{probe.card.site}.{layer}"
            keep = _projection(probe.direction[at], probe.bias[at], batch, pooling)
            found.append((site, reading.enter_context(model.sites.read([site], keep=keep))))
        yield found


def _projection(direction: torch.Tensor, bias: torch.Tensor, batch: TokenBatch, pooling: Pooling) -> Callable[[torch.Tensor], torch.Tensor]:
    pool, longest = pooled(batch, pooling), batch.input_ids.shape[1]

    def keep(hidden: torch.Tensor) -> torch.Tensor:  # (batch, token, hidden)
        w, b = direction.to(hidden.device), bias.to(hidden.device)
        each = hidden.float() @ w + b  # (batch, token)
        if hidden.shape[1] != longest:
            return each
        return torch.cat([(pool(hidden).float() @ w + b)[:, None], each], dim=1)

    return keep


def _stacked(found: Found) -> torch.Tensor:
    """(batch, columns, layer) float32 on the CPU, of the newest forward pass."""
    return torch.stack([kept[site] for site, kept in found], dim=-1).float().cpu()


class Place(NamedTuple):
    """A token that was read."""

    row: int
    """Of its prompt."""
    position: int
    slot: int
    id: int


class Scored(NamedTuple):
    """Everything the tables are made of."""

    prompts: Sequence[Prompt]
    layout: Layout
    probe: SavedProbe
    state: State
    tokenizer: Tokenizer

    @property
    def best(self) -> int:
        """Row of the probe's best layer."""
        return self.probe.row(self.probe.card.best_layer)

    @property
    def pooled(self) -> torch.Tensor:
        """(prompt,) score at the best layer; NaN where it is unknown or not read yet."""
        slots = [self.layout.pooled(row) for row in range(len(self.prompts))]
        return self.state["scores"][slots, self.best]

    @property
    def ranked(self) -> list[int]:
        """Rows of prompts that were read, the highest known score first, then the unknown ones."""
        pooled = self.pooled.tolist()
        read = [row for row in range(len(self.prompts)) if bool(self.state["is_read"][self.layout.pooled(row)])]
        return sorted(read, key=lambda row: -pooled[row] if math.isfinite(pooled[row]) else math.inf)

    def places(self, rows: Iterable[int]) -> list[Place]:
        """Every token of these prompts, in reading order."""
        ids = self.state["tokens"].tolist()
        places = []
        for row in rows:
            text = self.layout.text(row)
            slots = [slot for slot in range(text.start, text.stop) if ids[slot] >= 0]
            places += [Place(row, position, slot, ids[slot]) for position, slot in enumerate(slots)]
        return places

    def scores(self, places: Sequence[Place]) -> torch.Tensor:
        """(place, layer)."""
        return self.state["scores"][[place.slot for place in places]]


def relative_scores(scores: torch.Tensor) -> torch.Tensor:
    """(token, layer) within -1 ... 1: how each token of a text stands out in its layer, which is comparable between layers.

    Scores less their median, over the largest size of such a difference, past the first token where there are more: it is where
    attention often rests, with activations many times those of the others. Unknown scores stay so and take no part.
    """
    known = torch.where(scores.isfinite(), scores, torch.nan)
    differences = known - known.nanmedian(0).values
    sizes = torch.nan_to_num(differences[min(1, len(scores) - 1) :].abs(), nan=0.0)
    reach = sizes.amax(0)
    return (differences / torch.where(reach > 0, reach, 1)).clamp(-1, 1)
