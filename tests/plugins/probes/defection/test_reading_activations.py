"""What the passes read is what the model itself says, whatever the batching."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from modelscope_probes.prompts import Pair, Prompt, read_pairs, read_prompts, resolved
from modelscope_probes.reading import ActivationPass, AnswerPass, NextTokenPass, PairPass

from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.data import items_source, length_bucketed, load_tokenizer, read_rows
from modelscope_app.models import build_model
from modelscope_app.testing import assert_fold_merges

SITES = ["resid_post.0", "resid_post.1", "resid_post.2"]
TEXTS = ["write a short story", "please write code about sorting a list in 2024", "rain ?", "is it soup now"]


@pytest.fixture(scope="module")
def model(tiny_lm: Path):  # type: ignore[no-untyped-def]
    return build_model(open_checkpoint(tiny_lm), "cpu")


@pytest.fixture(scope="module")
def prompts(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    file = tmp_path_factory.mktemp("data") / "eval.jsonl"
    file.write_text("".join(f'{{"prompt": "{text}", "label": {at % 2}}}\n' for at, text in enumerate(TEXTS)))
    tokenizer = load_tokenizer(open_checkpoint(tiny_lm))
    return read_prompts(read_rows(file), tokenizer, resolved("auto", tokenizer))


@pytest.fixture(scope="module")
def pairs(tiny_lm: Path) -> list[Pair]:
    from importlib import resources

    file = Path(str(resources.files("modelscope_probes").joinpath("contrast_pairs.jsonl")))
    tokenizer = load_tokenizer(open_checkpoint(tiny_lm))
    return read_pairs(read_rows(file), tokenizer, "chat")


def hidden_states(folder: Path, ids: tuple[int, ...]) -> torch.Tensor:
    """(layer, token, hidden): residual stream leaving each layer, by transformers alone; of the last one before the final norm."""
    module = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    before_norm: list[torch.Tensor] = []
    module.model.norm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0]))
    with torch.no_grad():
        states = module(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.stack([*states[1:-1], before_norm[0]])[:, 0]


@pytest.mark.parametrize("tokens", [1, 25, 1000])
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_activations_of_prompts_equal_the_models_own_hidden_states(tiny_lm: Path, model, prompts, pooling: str, tokens: int) -> None:  # type: ignore[no-untyped-def]
    source = length_bucketed([prompt.example for prompt in prompts], tokens, "left")
    fold = ActivationPass(model, SITES, [prompt.id for prompt in prompts], 16, pooling)
    state = fold.start()
    for ids in source.plan:
        state = fold.step(state, source.load(ids))
    assert bool(state["is_read"].all())
    found = fold.finish(state)
    for prompt in prompts:
        whole = hidden_states(tiny_lm, prompt.input_ids)
        expected = {"last": whole[:, -1], "mean": whole.mean(1), "max": whole.amax(1)}[pooling]
        # float32 sums over keys in another order, where a batch is padded
        torch.testing.assert_close(found[prompt.id], expected, rtol=1e-4, atol=1e-5)


def test_answers_of_a_pair_read_once_after_one_prefix_equal_each_read_whole(tiny_lm: Path, model, pairs) -> None:  # type: ignore[no-untyped-def]
    source = items_source(pairs, per_batch=5)
    fold = PairPass(model, SITES, len(pairs), 16)
    state = fold.start()
    for ids in source.plan:
        state = fold.step(state, source.load(ids))
    found = fold.finish(state)
    for pair in pairs:
        for side, answer in enumerate((pair.defecting_ids, pair.benign_ids)):
            expected = hidden_states(tiny_lm, pair.opening_ids + answer)[:, -1]
            torch.testing.assert_close(found[pair.id, side], expected, rtol=1e-4, atol=1e-5)


def test_answers_of_several_tokens_are_read_at_their_last_one(tiny_lm: Path, model, pairs) -> None:  # type: ignore[no-untyped-def]
    longer = [pairs[0]._replace(id=0, defecting_ids=(10, 11, 12), benign_ids=(13,)), pairs[1]._replace(id=1, benign_ids=(14, 15))]
    fold = PairPass(model, SITES, 2, 16)
    found = fold.finish(fold.step(fold.start(), longer))
    for pair in longer:
        for side, answer in enumerate((pair.defecting_ids, pair.benign_ids)):
            expected = hidden_states(tiny_lm, pair.opening_ids + answer)[:, -1]
            torch.testing.assert_close(found[pair.id, side], expected, rtol=1e-4, atol=1e-5)


def test_next_token_logits_are_those_of_the_last_token_of_a_prompt(tiny_lm: Path, model, prompts) -> None:  # type: ignore[no-untyped-def]
    source = length_bucketed([prompt.example for prompt in prompts], 1000, "left")
    fold = NextTokenPass(model, [prompt.id for prompt in prompts], [7, 9])
    found = fold.finish(fold.step(fold.start(), source.load(source.plan[0])))
    module = transformers.AutoModelForCausalLM.from_pretrained(tiny_lm).eval()
    for prompt in prompts:
        with torch.no_grad():
            logits = module(torch.tensor([prompt.input_ids])).logits[0, -1]
        torch.testing.assert_close(found[prompt.id], logits[[7, 9]].double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 1000])
def test_asking_computes_logits_of_the_last_position_alone(model, prompts, tokens: int) -> None:  # type: ignore[no-untyped-def]
    source = length_bucketed([prompt.example for prompt in prompts], tokens, "left")
    fold = NextTokenPass(model, [prompt.id for prompt in prompts], [7, 9])
    state, shapes = fold.start(), []
    watching = model.module.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[:2])))
    for ids in source.plan:
        state = fold.step(state, source.load(ids))
    watching.remove()
    assert shapes == [(len(ids), 1) for ids in source.plan]
    for ids in source.plan:
        batch = source.load(ids)
        with torch.no_grad():
            slow = model.logits(batch)[:, -1][:, [7, 9]].double()
        # float32 sums in another order, where only the last position is multiplied
        torch.testing.assert_close(fold.finish(state)[torch.tensor(batch.ids)], slow, rtol=1e-5, atol=1e-6)


def test_answers_are_greedy_and_unknown_after_logits_that_are_not_finite(model, prompts) -> None:  # type: ignore[no-untyped-def]
    source = length_bucketed([prompt.example for prompt in prompts], 1000, "left")
    batch = source.load(source.plan[0])
    fold = AnswerPass(model, [prompt.id for prompt in prompts], 3)
    found = fold.finish(fold.step(fold.start(), batch))
    rows = torch.tensor(batch.ids)
    assert torch.equal(found["tokens"][rows], model.greedy(batch, 3)) and bool(found["is_known"].all())

    def breaks(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[1] = torch.nan
        return hidden

    with model.sites.write({"resid_post.2": breaks}):
        broken = fold.finish(fold.step(fold.start(), batch))
    assert broken["is_known"][rows].tolist() == [True, False, True, True]


def test_every_pass_can_be_parted_and_merged(model, prompts, pairs) -> None:  # type: ignore[no-untyped-def]
    ids = [prompt.id for prompt in prompts]
    one_at_a_time = length_bucketed([prompt.example for prompt in prompts], 1, "left")
    assert_fold_merges(ActivationPass(model, SITES, ids, 16, "last"), one_at_a_time)
    assert_fold_merges(AnswerPass(model, ids, 3), one_at_a_time)
    assert_fold_merges(NextTokenPass(model, ids, [4, 5]), one_at_a_time)
    assert_fold_merges(PairPass(model, SITES, len(pairs), 16), items_source(pairs, per_batch=1))
