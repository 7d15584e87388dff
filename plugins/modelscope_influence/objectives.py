"""What is differentiated: the loss of a training row, the labels a Fisher is taken over, and the measure of a query.

A task hides whether rows are token sequences or labelled features. Scored positions of a batch come flat, so that one cross-entropy
serves both: row b's loss is the sum over its positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import nn

from modelscope_app.api import BadInput, Example, JobContext, Model, Source, TokenBatch

Fisher = Literal["true", "exact", "empirical"]
Measure = Literal["loss", "logprob", "margin"]
MOST_CLASSES = 128
"""Up to which `exact` takes the expectation over labels: one backward pass for each class."""
_CHUNK = 64
"""Positions whose labels are drawn at once: of a vocabulary of 50,000 that is 25 MB."""
Generate = Callable[[str, int | str], torch.Generator]


class Scored(NamedTuple):
    """What a batch is scored on."""

    logits: torch.Tensor
    """(scored position, class), with a graph."""
    targets: torch.Tensor
    """(scored position,) int64."""
    row: torch.Tensor
    """(scored position,) int64: the row of the batch each belongs to."""
    ids: tuple[int, ...]
    """Row ids of the batch."""
    mask: torch.Tensor | None
    """(batch, position) bool: real positions; None where all are."""

    def by_row(self, values: torch.Tensor) -> torch.Tensor:
        """(batch,): sums of (scored position,) values."""
        return values.new_zeros(len(self.ids)).index_add(0, self.row, values)

    def losses(self, targets: torch.Tensor | None = None) -> torch.Tensor:
        """(scored position,): cross-entropy with the targets, or with others."""
        return nn.functional.cross_entropy(self.logits, self.targets if targets is None else targets, reduction="none")


class Task(Protocol):
    """A model and rows of data for it."""

    @property
    def ids(self) -> Sequence[int]:
        """Rows, in the order of the file."""

    def source(self, ids: Sequence[int] | None = None) -> Source[Any]:
        """These rows, or all of them, in batches."""

    def forward(self, batch: Any) -> Scored:
        """Run the model on a batch."""

    def positions(self, id: int) -> int:
        """Real positions of a row."""


class LanguageTask:
    """Token sequences: every position t >= 1 of the completion is predicted from those before it."""

    def __init__(self, context: JobContext, model: Model, path: str, tokens_per_batch: int, checkpoint: int = 0) -> None:
        self.path = path
        self._context, self._model, self._tokens_per_batch = context, model, tokens_per_batch
        self.examples = context.examples(path, checkpoint)
        rows = None
        for example in self.examples:
            if len(example.input_ids) <= max(example.completion_start, 1):
                rows = rows or context.rows(path)
                raise rows.bad_row(example.id, "has one token, and with nothing before it there is nothing to predict; leave the row out")
        if not self.examples:
            raise BadInput(f"{path} holds no row; give at least one")

    @property
    def ids(self) -> Sequence[int]:
        """Rows, in the order of the file."""
        return range(len(self.examples))

    def source(self, ids: Sequence[int] | None = None) -> Source[TokenBatch]:
        """These rows, or all of them, padded on the right."""
        examples: Sequence[Example] = self.examples if ids is None else [self.examples[id] for id in ids]
        return self._context.batches(examples, self._tokens_per_batch)

    def forward(self, batch: TokenBatch) -> Scored:
        """Run the model on a batch."""
        logits = self._model.logits(batch)
        device = logits.device
        scored = (batch.completion_mask[:, 1:] & batch.attention_mask[:, :-1].bool()).to(device)
        row = torch.arange(len(batch.ids), device=device)[:, None].expand_as(scored)[scored]
        mask = batch.attention_mask.bool().to(device)
        return Scored(_whole(logits[:, :-1][scored]), batch.input_ids[:, 1:].to(device)[scored], row, batch.ids, mask)

    def positions(self, id: int) -> int:
        """Real positions of a row."""
        return len(self.examples[id].input_ids)


class ClassifierTask:
    """Labelled features for an `mlp`: one position a row."""

    def __init__(self, context: JobContext, model: Model, path: str, rows_per_batch: int, checkpoint: int = 0) -> None:
        self.path = path
        self._context, self._model, self._rows_per_batch = context, model, rows_per_batch
        self.data = context.labelled_features(path, checkpoint)
        if not len(self.data.labels):
            raise BadInput(f"{path} holds no row; give at least one")

    @property
    def ids(self) -> Sequence[int]:
        """Rows, in the order of the file."""
        return range(len(self.data.labels))

    def source(self, ids: Sequence[int] | None = None) -> Source[Sequence[int]]:
        """These rows, or all of them."""
        return self._context.items(list(self.ids if ids is None else ids), self._rows_per_batch, "rows")

    def forward(self, batch: Sequence[int]) -> Scored:
        """Run the model on a batch."""
        device = self._context.device
        rows = torch.tensor(list(batch))
        logits = _whole(self._model.module(self.data.features[rows].to(device)))
        return Scored(logits, self.data.labels[rows].to(device), torch.arange(len(rows), device=device), tuple(batch), None)

    def positions(self, id: int) -> int:
        """Real positions of a row."""
        return 1


def _whole(logits: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def labels(scored: Scored, fisher: Fisher, draws: int, generate: Generate, stage: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Targets (scored position,) and the square root of their weight (scored position,), whose squares sum to one at each position.

    Gradients of losses that are multiplied by it have outer products that sum to the Fisher's: `draws` labels from the model's own
    predictions for `true`, by generators of their own for each row, every class with its probability for `exact`, the real labels for
    `empirical`. Raises BadInput where `exact` would need too many backward passes.
    """
    targets = scored.targets
    if fisher == "empirical":
        yield targets, torch.ones_like(scored.logits[:, 0]).detach()
    elif fisher == "exact":
        classes = scored.logits.shape[-1]
        if scored.mask is not None or classes > MOST_CLASSES:
            raise BadInput(
                f"--fisher exact takes one backward pass for each class and position, {classes} classes here; it is for classifiers of at "
                f"most {MOST_CLASSES} classes. --fisher true draws labels instead"
            )
        probabilities = scored.logits.detach().softmax(-1)
        for label in range(classes):
            yield torch.full_like(targets, label), probabilities[:, label].sqrt()
    else:
        weight = torch.full_like(scored.logits[:, 0], draws**-0.5).detach()
        for draw in range(draws):
            yield drawn_labels(scored, [generate(f"{stage} labels {draw}", id) for id in scored.ids]), weight


def drawn_labels(scored: Scored, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """(scored position,) int64: labels from the model's predictions, row by row with its own generator."""
    counts = torch.bincount(scored.row, minlength=len(scored.ids)).tolist()
    uniform = torch.cat([torch.rand(count, generator=one, dtype=torch.float64) for count, one in zip(counts, generators, strict=True)])
    uniform = uniform.to(scored.logits.device)
    order = torch.argsort(scored.row, stable=True)
    uniform = torch.empty_like(uniform).index_copy(0, order, uniform)
    drawn = []
    for start in range(0, len(uniform), _CHUNK):
        cumulative = scored.logits[start : start + _CHUNK].detach().double().softmax(-1).cumsum(-1)
        drawn.append(torch.searchsorted(cumulative, uniform[start : start + _CHUNK, None] * cumulative[:, -1:])[:, 0])
    return torch.cat(drawn).clamp(max=scored.logits.shape[-1] - 1) if drawn else torch.zeros_like(scored.targets)


def measured(scored: Scored, measure: Measure) -> torch.Tensor:
    """(batch,): the measure of each row, with a graph: summed loss, summed log-probability, or summed log-odds of the targets."""
    losses = scored.losses()
    if measure == "loss":
        return scored.by_row(losses)
    if measure == "logprob":
        return scored.by_row(-losses)
    right = scored.logits.gather(-1, scored.targets[:, None])[:, 0]
    others = scored.logits.scatter(-1, scored.targets[:, None], float("-inf")).logsumexp(-1)
    return scored.by_row(right - others)


MEANING: Mapping[Measure, tuple[str, str]] = {
    "loss": ("removing the example raises the query's loss: it taught the query", "removing it lowers the query's loss: it opposed it"),
    "logprob": (
        "removing the example raises the query's log-probability: it opposed the query",
        "removing it lowers the query's log-probability: it taught it",
    ),
    "margin": (
        "removing the example raises the query's log-odds: it opposed the query",
        "removing it lowers the query's log-odds: it taught it",
    ),
}
"""What a positive score means, and a negative one."""
