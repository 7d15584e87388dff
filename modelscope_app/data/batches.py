"""Sources for folds: examples of similar length together, or any sequence a few items at a time.

Longest first: a batch that does not fit into memory is the first one, and remaining time is over- rather than underestimated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, Literal, TypeVar

from modelscope_app.api import BadInput, Example, Source, TokenBatch
from modelscope_app.data.examples_on_disk import ExamplesOnDisk

Item = TypeVar("Item")


def length_bucketed(
    examples: Sequence[Example], tokens_per_batch: int, padding: Literal["left", "right"] = "right", pad_id: int = 0
) -> Source[TokenBatch]:
    """Examples by falling length, ties by id, cut into batches of at most `tokens_per_batch` padded tokens, or one example.

    Raises ValueError for a budget below 1, another padding side, or two examples with one id.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch is {tokens_per_batch}; it is at least 1")
    if padding not in ("left", "right"):
        raise ValueError(f"padding is {padding!r}; it is 'left' or 'right'")
    if isinstance(examples, ExamplesOnDisk):
        return TokenBatches(examples, _plan(((id, examples.length(id)) for id in range(len(examples))), tokens_per_batch), padding, pad_id)
    by_id = {example.id: example for example in examples}
    if len(by_id) < len(examples):
        raise ValueError("two examples have one id")
    return TokenBatches(by_id, _plan(((example.id, len(example.input_ids)) for example in examples), tokens_per_batch), padding, pad_id)


def _plan(lengths: Iterable[tuple[int, int]], tokens_per_batch: int) -> list[list[int]]:
    plan: list[list[int]] = []
    rows_that_fit = 0
    for id, length in sorted(lengths, key=lambda each: (-each[1], each[0])):
        if not plan or len(plan[-1]) >= rows_that_fit:
            plan.append([])
            rows_that_fit = tokens_per_batch // max(length, 1)
        plan[-1].append(int(id))
    return plan


class TokenBatches:
    """The source `length_bucketed` returns."""

    unit = "examples"

    def __init__(
        self, by_id: Mapping[int, Example] | ExamplesOnDisk, plan: list[list[int]], padding: Literal["left", "right"], pad_id: int
    ) -> None:
        self._by_id = by_id
        self._plan = plan
        self._padding = padding
        self._pad_id = pad_id

    @property
    def plan(self) -> list[list[int]]:
        """Example ids of each batch."""
        return self._plan

    def load(self, ids: Sequence[int]) -> TokenBatch:
        """These examples, padded to the longest of them. Raises BadInput for an id that is not among the examples."""
        import torch

        examples = [self._example(id) for id in ids]
        longest = max((len(example.input_ids) for example in examples), default=0)
        input_ids = torch.full((len(examples), longest), self._pad_id, dtype=torch.int64)
        attention_mask = torch.zeros((len(examples), longest), dtype=torch.int64)
        completion_mask = torch.zeros((len(examples), longest), dtype=torch.bool)
        for index, example in enumerate(examples):
            length = len(example.input_ids)
            begin = longest - length if self._padding == "left" else 0
            input_ids[index, begin : begin + length] = torch.tensor(example.input_ids, dtype=torch.int64)
            attention_mask[index, begin : begin + length] = 1
            completion_mask[index, begin + example.completion_start : begin + length] = True
        return TokenBatch(tuple(ids), input_ids, attention_mask, completion_mask)

    def _example(self, id: int) -> Example:
        example = self._by_id.get(id)
        if example is None:
            raise BadInput(f"row {id} is planned and not among the examples; the data file has changed since the run began")
        return example


def items_source(items: Sequence[Item], per_batch: int = 1, unit: str = "items") -> Source[Sequence[Item]]:
    """Any sequence in its order, `per_batch` items a step; an item's id is its position. Raises ValueError below 1 item."""
    if per_batch < 1:
        raise ValueError(f"per_batch is {per_batch}; it is at least 1")
    return ItemBatches(items, per_batch, unit)


class ItemBatches(Generic[Item]):
    """The source `items_source` returns."""

    def __init__(self, items: Sequence[Item], per_batch: int, unit: str) -> None:
        self.unit = unit
        self._items = items
        self._plan = [list(range(start, min(start + per_batch, len(items)))) for start in range(0, len(items), per_batch)]

    @property
    def plan(self) -> list[list[int]]:
        """Positions of the items of each batch."""
        return self._plan

    def load(self, ids: Sequence[int]) -> list[Item]:
        """The items at these positions."""
        return [self._items[id] for id in ids]
