"""Going on from what was read gives what reading everything gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models.tiny_models import CAUSAL, UNDESCRIBED, batch_of, prompts

from modelscope_app.api import BadInput, JobFailed
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.models import build_model
from modelscope_app.models.continuing import end_ids

Tiny = Callable[[str], Path]
BEGINNINGS = prompts(9, 4)
ENDINGS = [[5, 6, 7], [8], [9, 10], [11]]  # two for each beginning


@pytest.mark.parametrize("name", [*CAUSAL, *UNDESCRIBED])
def test_texts_that_share_a_prefix_end_as_when_each_is_read_whole(tiny: Tiny, name: str) -> None:
    model = build_model(open_checkpoint(tiny(name)), device="cpu")
    endings = batch_of(ENDINGS, "right")
    with torch.no_grad():
        prefix = model.prefix(batch_of(BEGINNINGS, "left"), repeats=2)
        assert prefix.rows == 4
        shared = model.body(endings, after=prefix)
        assert shared.shape[:2] == endings.input_ids.shape
        for row, ending in enumerate(ENDINGS):
            whole = model.body(batch_of([BEGINNINGS[row // 2] + ending]))[0, -len(ending) :]
            # float32 sums over keys in another order
            torch.testing.assert_close(shared[row, : len(ending)], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*CAUSAL, *UNDESCRIBED])
def test_greedy_tokens_are_those_of_reading_everything_anew_at_each_step(tiny: Tiny, name: str) -> None:
    model = build_model(open_checkpoint(tiny(name)), device="cpu")
    ends = set(end_ids(model.module).tolist())
    with torch.no_grad():
        found = model.greedy(batch_of(BEGINNINGS, "left"), count=5)
        assert found.shape == (2, 5)
        for row, beginning in enumerate(BEGINNINGS):
            ids = list(beginning)
            for token in found[row].tolist():
                best = int(model.logits(batch_of([ids]))[0, -1].argmax())
                if best in ends:
                    assert token == -1
                    break
                assert token == best
                ids.append(token)


def test_nothing_comes_after_an_end_token(tiny: Tiny) -> None:
    model = build_model(open_checkpoint(tiny("llama")), device="cpu")
    model.module.config.eos_token_id = None
    with torch.no_grad():
        for seed in range(20):
            batch = batch_of([[3 + seed, 5, 9 + seed]], "left")
            free = model.greedy(batch, count=6)[0].tolist()
            if len(set(free)) > 1:
                break
        end = next(token for token in free if token != free[0])
        model.module.config.eos_token_id = [end, 95]
        stopped = model.greedy(batch, count=6)[0].tolist()
    at = free.index(end)
    assert at > 0 and stopped == free[:at] + [-1] * (6 - at)


def test_logits_that_are_not_finite_choose_no_token(tiny: Tiny) -> None:
    model = build_model(open_checkpoint(tiny("llama")), device="cpu")
    with torch.no_grad(), model.sites.write({"resid_post.0": lambda hidden: hidden * float("nan")}):
        assert (model.greedy(batch_of(BEGINNINGS, "left"), count=3) == -1).all()


def test_writing_at_a_site_holds_while_it_goes_on(tiny: Tiny) -> None:
    model = build_model(open_checkpoint(tiny("llama")), device="cpu")
    lengths = []

    def noted(hidden: torch.Tensor) -> torch.Tensor:
        lengths.append(hidden.shape[1])
        return hidden

    with torch.no_grad(), model.sites.write({"resid_post.0": noted}):
        model.greedy(batch_of(BEGINNINGS, "left"), count=3)
    assert lengths == [9, 1, 1]  # each token is read once


def test_padding_on_the_right_and_a_prefix_used_twice_are_refused(tiny: Tiny) -> None:
    model = build_model(open_checkpoint(tiny("llama")), device="cpu")
    with torch.no_grad():
        for read in (lambda batch: model.prefix(batch), lambda batch: model.greedy(batch, 1)):
            with pytest.raises(JobFailed, match="padded on the left"):
                read(batch_of(BEGINNINGS, "right"))
        prefix = model.prefix(batch_of(BEGINNINGS, "left"))
        model.body(batch_of([[3], [4]]), after=prefix)
        with pytest.raises(JobFailed, match="continued twice"):
            model.body(batch_of([[3], [4]]), after=prefix)


def test_a_model_that_predicts_nothing_says_so(tiny: Tiny) -> None:
    model = build_model(open_checkpoint(tiny("bert")), device="cpu")
    with pytest.raises(BadInput, match="no next-token logits"):
        model.greedy(batch_of(BEGINNINGS, "left"), count=1)
