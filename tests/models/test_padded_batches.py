"""Padding changes nothing, and what would index outside a table is refused first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models.tiny_models import CAUSAL, ENCODERS, UNDESCRIBED, batch_of, prompts

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.models import build_model

Tiny = Callable[[str], Path]
ROWS = prompts(3, 11, 7)  # longer than the sliding window of those that have one


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", [*CAUSAL, *UNDESCRIBED])
def test_a_padded_batch_of_prompts_equals_single_prompts(tiny: Tiny, name: str, padding: str) -> None:
    model = build_model(open_checkpoint(tiny(name)), device="cpu")
    batch = batch_of(ROWS, padding)
    with torch.no_grad():
        together = model.logits(batch)
        for index, row in enumerate(ROWS):
            alone = model.logits(batch_of([row]))[0]
            # float32 sums over more keys in another order
            torch.testing.assert_close(together[index][batch.completion_mask[index]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_padded_batch_of_texts_equals_single_texts(tiny: Tiny, name: str, padding: str) -> None:
    model = build_model(open_checkpoint(tiny(name)), device="cpu")
    batch = batch_of(ROWS, padding, pad_id=model.module.config.pad_token_id)
    with torch.no_grad():
        together = model.body(batch)
        for index, row in enumerate(ROWS):
            alone = model.body(batch_of([row]))[0]
            torch.testing.assert_close(together[index][batch.completion_mask[index]], alone, rtol=1e-4, atol=1e-5)


def test_the_test_above_would_notice_positions_that_count_padding(tiny: Tiny) -> None:
    model = build_model(open_checkpoint(tiny("gpt2")), device="cpu")
    batch = batch_of(ROWS, "left")
    with torch.no_grad():
        naive = model.module(batch.input_ids, attention_mask=batch.attention_mask).logits
        assert not torch.allclose(naive[0][batch.completion_mask[0]], model.logits(batch_of([ROWS[0]]))[0], atol=1e-3)


def test_an_unknown_token_id_is_refused_before_it_reaches_the_model(tiny: Tiny) -> None:
    model = build_model(open_checkpoint(tiny("llama")), device="cpu")
    for bad in (96, -1):
        with pytest.raises(BadInput, match=f"token id {bad} is outside the vocabulary of llama, 0 to 95"):
            model.logits(batch_of([[3, bad]]))


@pytest.mark.parametrize(("name", "longest"), [("gpt2", 64), ("bert", 64), ("roberta", 62)])
def test_a_text_longer_than_the_position_table_is_refused(tiny: Tiny, name: str, longest: int) -> None:
    model = build_model(open_checkpoint(tiny(name)), device="cpu")
    with torch.no_grad():
        model.body(batch_of([[5] * longest]))
    with pytest.raises(BadInput, match=f"{name} reads at most {longest} tokens, and one text has {longest + 1}"):
        model.body(batch_of([[5] * (longest + 1)]))
