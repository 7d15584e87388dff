"""Batches of examples: every example once, within the budget, padded on the right side."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_app.api import BadInput, Example
from modelscope_app.data import items_source, length_bucketed

PAD = 99


@st.composite
def example_lists(draw: st.DrawFn) -> list[Example]:
    ids = draw(st.lists(st.integers(0, 1000), unique=True, max_size=30))
    examples = []
    for id in ids:
        tokens = draw(st.lists(st.integers(0, 50), min_size=1, max_size=20))
        examples.append(Example(id, tuple(tokens), draw(st.integers(0, len(tokens))), {}))
    return examples


@settings(max_examples=200, deadline=None)
@given(examples=example_lists(), budget=st.integers(1, 60))
def test_every_example_is_in_one_batch_and_every_batch_is_in_the_budget(examples: list[Example], budget: int) -> None:
    plan = length_bucketed(examples, budget).plan
    length = {example.id: len(example.input_ids) for example in examples}
    assert sorted(id for batch in plan for id in batch) == sorted(length)
    for batch in plan:
        assert len(batch) == 1 or len(batch) * max(length[id] for id in batch) <= budget


@settings(max_examples=200, deadline=None)
@given(examples=example_lists(), budget=st.integers(1, 60), shuffling=st.randoms(use_true_random=False))
def test_the_plan_is_sorted_full_and_does_not_depend_on_the_order_given(
    examples: list[Example], budget: int, shuffling: random.Random
) -> None:
    plan = length_bucketed(examples, budget).plan
    length = {example.id: len(example.input_ids) for example in examples}
    order = [id for batch in plan for id in batch]
    assert order == sorted(order, key=lambda id: (-length[id], id))
    for batch, following in pairwise(plan):
        assert (len(batch) + 1) * length[batch[0]] > budget, f"{following[0]} would have fitted into {batch}"
    shuffled = list(examples)
    shuffling.shuffle(shuffled)
    assert length_bucketed(shuffled, budget).plan == plan
    assert json.loads(json.dumps(plan)) == plan


@settings(max_examples=100, deadline=None)
@given(examples=example_lists(), budget=st.integers(1, 60), padding=st.sampled_from(["left", "right"]))
def test_tensors_are_what_padding_by_hand_gives(examples: list[Example], budget: int, padding: Literal["left", "right"]) -> None:
    source = length_bucketed(examples, budget, padding, PAD)
    by_id = {example.id: example for example in examples}
    for ids in source.plan:
        batch = source.load(ids)
        assert batch.ids == tuple(ids)
        assert (batch.input_ids.dtype, batch.attention_mask.dtype, batch.completion_mask.dtype) == (torch.int64, torch.int64, torch.bool)
        width = max(len(by_id[id].input_ids) for id in ids)
        for row, id in enumerate(ids):
            tokens = list(by_id[id].input_ids)
            start = by_id[id].completion_start
            empty = width - len(tokens)
            columns: list[tuple[list[int], list[int], torch.Tensor]] = [
                (tokens, [PAD] * empty, batch.input_ids),
                ([1] * len(tokens), [0] * empty, batch.attention_mask),
                ([position >= start for position in range(len(tokens))], [False] * empty, batch.completion_mask),
            ]
            for values, pads, tensor in columns:
                assert tensor[row].tolist() == (pads + values if padding == "left" else values + pads)


def test_part_of_a_planned_batch_loads_by_itself() -> None:
    examples = [Example(id, tuple(range(1, id + 2)), 0, {}) for id in range(4)]
    source = length_bucketed(examples, 100)
    assert source.plan == [[3, 2, 1, 0]]
    assert source.load([1, 0]).input_ids.tolist() == [[1, 2], [1, 0]]


def test_an_example_beyond_the_budget_is_a_batch_of_its_own() -> None:
    lengths = {0: 2, 1: 50, 2: 2, 3: 4}
    examples = [Example(id, (1,) * length, 0, {}) for id, length in lengths.items()]
    assert length_bucketed(examples, 8).plan == [[1], [3, 0], [2]]


def test_no_examples_are_no_batches() -> None:
    assert length_bucketed([], 8).plan == []


def test_an_id_that_is_not_among_the_examples_is_bad_input() -> None:
    source = length_bucketed([Example(0, (1,), 0, {})], 8)
    with pytest.raises(BadInput, match="row 7 is planned and not among the examples"):
        source.load([0, 7])


@pytest.mark.parametrize(("budget", "padding"), [(0, "left"), (8, "middle")])
def test_a_senseless_request_is_refused(budget: int, padding: str) -> None:
    with pytest.raises(ValueError, match="it is"):
        length_bucketed([], budget, padding)  # type: ignore[arg-type]


def test_two_examples_with_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="one id"):
        length_bucketed([Example(0, (1,), 0, {}), Example(0, (2,), 0, {})], 8)


@given(count=st.integers(0, 20), per_batch=st.integers(1, 25))
def test_items_come_in_their_order(count: int, per_batch: int) -> None:
    items = [f"item {number}" for number in range(count)]
    source = items_source(items, per_batch)
    assert [item for ids in source.plan for item in source.load(ids)] == items
    assert all(len(ids) == per_batch for ids in source.plan[:-1])


def test_fewer_than_one_item_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        items_source([1], 0)
