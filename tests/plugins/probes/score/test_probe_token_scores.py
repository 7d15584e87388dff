"""A probe's token scores are projections of the model's own hidden states, of prompts and of what it generates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.tiny_models import CAUSAL, saved_model
from modelscope_probes.probe_file import ProbeCard, SavedProbe, read_probe
from modelscope_probes.prompts import Prompt
from modelscope_probes.token_scores import Layout, State, TokenScorePass
from plugins.probes.score.in_process import LAYERS, greedily, residuals, saved_llama, saved_probe

from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.data.batches import length_bucketed
from modelscope_app.models import build_model, continuing
from modelscope_app.models.built import BuiltModel
from modelscope_app.testing import assert_fold_merges

ROUNDING = 1e-5
"""float32 sums over 16 features of order 1, and attention in another order of summation."""

TEXTS = [[2, 4, 6, 7, 8, 3, 5], [2, 4, 9, 3, 5], [2, 4, 10, 11, 12, 13, 14, 15, 16, 3, 5], [5]]


CARD = {
    "site": "resid_post",
    "best_layer": 0,
    "pooling": "last",
    "template": "none",
    "method": "by hand",
    "model": "",
    "model_name": "",
    "tokenizer": "",
    "fitted_on": "",
}


def prompts() -> list[Prompt]:
    return [Prompt(10 + at, tuple(ids), "", None, "cell", str(at), "", ()) for at, ids in enumerate(TEXTS)]


def scored(folder: Path, probe_file: Path, new_tokens: int = 0, tokens_per_batch: int = 4096) -> tuple[Layout, State]:
    model = build_model(open_checkpoint(folder), device="cpu")
    layout = Layout(prompts(), new_tokens)
    fold = TokenScorePass(model, read_probe(str(probe_file)), layout)
    source = length_bucketed([prompt.example for prompt in prompts()], tokens_per_batch, "left")
    state = fold.start()
    for ids in source.plan:
        state = fold.step(state, source.load(ids))
    return layout, fold.finish(state)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return saved_llama(tmp_path / "llama")


@pytest.fixture
def probe_file(tmp_path: Path, llama: Path) -> Path:
    return saved_probe(tmp_path / "probe", llama)


@pytest.mark.parametrize("tokens_per_batch", [1, 4096], ids=["alone", "left-padded together"])
def test_token_scores_are_projections_of_hidden_states(llama: Path, probe_file: Path, tokens_per_batch: int) -> None:
    layout, found = scored(llama, probe_file, tokens_per_batch=tokens_per_batch)
    probe = read_probe(str(probe_file))
    for row, ids in enumerate(TEXTS):
        expected = torch.einsum("lth,lh->tl", residuals(llama, ids), probe.direction) + probe.bias
        torch.testing.assert_close(found["scores"][layout.prompt(row)], expected, atol=ROUNDING, rtol=ROUNDING)
        assert found["tokens"][layout.prompt(row)].tolist() == ids
        assert found["tokens"][layout.pooled(row)] == -1
    assert bool(found["is_read"].all())


def test_scores_at_the_input_of_a_layer_are_those_of_the_layer_before(tmp_path: Path, llama: Path, probe_file: Path) -> None:
    probe = read_probe(str(probe_file))
    shifted = saved_probe(tmp_path / "pre", llama, site="resid_pre", direction=probe.direction.roll(1, 0), bias=probe.bias.roll(1, 0))
    after, before = scored(llama, probe_file)[1]["scores"], scored(llama, shifted)[1]["scores"]
    torch.testing.assert_close(before[:, 1:], after[:, :-1], atol=ROUNDING, rtol=ROUNDING, equal_nan=True)


def test_a_probe_of_some_layers_reads_those_in_its_own_order(tmp_path: Path, llama: Path, probe_file: Path) -> None:
    probe = read_probe(str(probe_file))
    two = saved_probe(tmp_path / "two", llama, layers=[2, 0], best_layer=2, direction=probe.direction[[2, 0]], bias=probe.bias[[2, 0]])
    whole, some = scored(llama, probe_file)[1]["scores"], scored(llama, two)[1]["scores"]
    torch.testing.assert_close(some, whole[:, [2, 0]], atol=ROUNDING, rtol=ROUNDING, equal_nan=True)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_a_prompt_is_pooled_as_the_probe_was_fitted(tmp_path: Path, llama: Path, pooling: str) -> None:
    file = saved_probe(tmp_path / "pooled", llama, pooling=pooling)
    layout, found = scored(llama, file)
    probe = read_probe(str(file))
    for row, ids in enumerate(TEXTS):
        hidden = residuals(llama, ids)  # (layer, token, hidden)
        one = {"last": hidden[:, -1], "mean": hidden.mean(1), "max": hidden.amax(1)}[pooling]
        expected = (one * probe.direction).sum(-1) + probe.bias
        torch.testing.assert_close(found["scores"][layout.pooled(row)], expected, atol=ROUNDING, rtol=ROUNDING)


def test_the_largest_features_score_is_not_the_largest_score(tmp_path: Path, llama: Path) -> None:
    layout, found = scored(llama, saved_probe(tmp_path / "max", llama, pooling="max"))
    largest = found["scores"][layout.prompt(0)].amax(0)
    assert not torch.allclose(found["scores"][layout.pooled(0)], largest, atol=0.1)


@pytest.mark.parametrize("tokens_per_batch", [1, 4096], ids=["alone", "left-padded together"])
def test_generated_tokens_score_as_when_the_whole_text_is_read_anew(llama: Path, probe_file: Path, tokens_per_batch: int) -> None:
    layout, found = scored(llama, probe_file, new_tokens=6, tokens_per_batch=tokens_per_batch)
    probe = read_probe(str(probe_file))
    for row, ids in enumerate(TEXTS):
        answer = greedily(llama, ids, 6)
        assert found["tokens"][layout.text(row)].tolist() == [*ids, *answer]
        expected = torch.einsum("lth,lh->tl", residuals(llama, [*ids, *answer]), probe.direction) + probe.bias
        torch.testing.assert_close(found["scores"][layout.text(row)], expected, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("tokens_per_batch", [1, 4096], ids=["alone", "together"])
def test_nothing_is_scored_after_an_answers_end(tmp_path: Path, tokens_per_batch: int) -> None:
    plain = saved_llama(tmp_path / "plain")
    answers = [greedily(plain, ids, 6) for ids in TEXTS]
    end = answers[0][2]
    ending = saved_llama(tmp_path / "ending", eos_token_id=end)
    layout, found = scored(ending, saved_probe(tmp_path / "probe", ending), new_tokens=6, tokens_per_batch=tokens_per_batch)
    lengths = [answer.index(end) if end in answer else 6 for answer in answers]
    assert lengths[0] <= 2
    for row, (answer, length) in enumerate(zip(answers, lengths, strict=True)):
        assert found["tokens"][layout.answer(row)].tolist() == answer[:length] + [-1] * (6 - length)
        known = torch.isfinite(found["scores"][layout.answer(row)]).all(-1)
        assert known.tolist() == [True] * length + [False] * (6 - length)


def read_anew_after_generating(model: BuiltModel, probe: SavedProbe, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of prompts with what was generated, as they came and from reading the whole texts."""
    layout = Layout(prompts(), new_tokens)
    fold, source = TokenScorePass(model, probe, layout), length_bucketed([prompt.example for prompt in prompts()], 4096, "left")
    came = fold.step(fold.start(), source.load(source.plan[0]))
    whole = [
        prompt._replace(input_ids=tuple(id for id in came["tokens"][layout.text(row)].tolist() if id >= 0))
        for row, prompt in enumerate(prompts())
    ]
    anew = TokenScorePass(model, probe, Layout(whole))
    source = length_bucketed([prompt.example for prompt in whole], 4096, "left")
    read = anew.step(anew.start(), source.load(source.plan[0]))
    return came["scores"][came["tokens"] >= 0], read["scores"][read["tokens"] >= 0]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "mistral", "gemma2", "phi"])
def test_other_architectures_score_what_they_generate_as_when_it_is_read_anew(tmp_path: Path, name: str) -> None:
    model_type, config = CAUSAL[name]
    model = build_model(open_checkpoint(saved_model(tmp_path / name, model_type, config)), device="cpu")
    generator = torch.Generator().manual_seed(0)
    probe = SavedProbe(
        ProbeCard(**{**CARD, "layers": (0, 1, 2)}), torch.randn(3, 32, generator=generator), torch.randn(3, generator=generator)
    )
    came, anew = read_anew_after_generating(model, probe, new_tokens=5)
    assert len(came) > sum(map(len, TEXTS))
    torch.testing.assert_close(came, anew, atol=1e-4, rtol=1e-4)  # 32 features, biases and norms of order 1


def test_a_model_without_a_cache_scores_the_same(llama: Path, probe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, probe = build_model(open_checkpoint(llama), device="cpu"), read_probe(str(probe_file))
    cached, _ = read_anew_after_generating(model, probe, new_tokens=5)
    monkeypatch.setattr(continuing, "keeps_a_cache", lambda module: False)
    uncached, anew = read_anew_after_generating(model, probe, new_tokens=5)
    torch.testing.assert_close(uncached, anew, atol=ROUNDING, rtol=ROUNDING)
    torch.testing.assert_close(uncached, cached, atol=ROUNDING, rtol=ROUNDING)


def test_each_token_is_read_once_while_it_is_generated(llama: Path, probe_file: Path) -> None:
    model = build_model(open_checkpoint(llama), device="cpu")
    read = []
    model.module.model.embed_tokens.register_forward_hook(lambda module, arguments, output: read.append(arguments[0].numel()))
    one = prompts()[:1]
    fold = TokenScorePass(model, read_probe(str(probe_file)), Layout(one, 5))
    fold.step(fold.start(), length_bucketed([one[0].example], 4096, "left").load([one[0].id]))
    assert read == [len(TEXTS[0]), 1, 1, 1, 1, 1]


def test_hooks_are_gone_after_a_batch_and_after_a_failure(llama: Path, probe_file: Path) -> None:
    model = build_model(open_checkpoint(llama), device="cpu")
    one = prompts()[:1]
    batch = length_bucketed([one[0].example], 4096, "left").load([one[0].id])

    def fail(state: object, generated: int) -> None:
        raise RuntimeError("stop")

    for told in (lambda state, generated: None, fail):
        fold = TokenScorePass(model, read_probe(str(probe_file)), Layout(one, 2), told)
        if told is fail:
            with pytest.raises(RuntimeError, match="stop"):
                fold.step(fold.start(), batch)
        else:
            fold.step(fold.start(), batch)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


def test_the_pass_merges(llama: Path, probe_file: Path) -> None:
    model = build_model(open_checkpoint(llama), device="cpu")
    source = length_bucketed([prompt.example for prompt in prompts()], 1, "left")
    for new_tokens in (0, 2):
        assert_fold_merges(TokenScorePass(model, read_probe(str(probe_file)), Layout(prompts(), new_tokens)), source)


def test_half_precision_is_scored_in_float32(tmp_path: Path, llama: Path, probe_file: Path) -> None:
    model = build_model(open_checkpoint(llama), device="cpu", dtype="bfloat16")
    layout = Layout(prompts())
    fold = TokenScorePass(model, read_probe(str(probe_file)), layout)
    source = length_bucketed([prompt.example for prompt in prompts()], 4096, "left")
    found = fold.step(fold.start(), source.load(source.plan[0]))
    assert found["scores"].dtype == torch.float32
    rounded = found["scores"].to(torch.bfloat16).float()
    assert not torch.equal(torch.nan_to_num(found["scores"]), torch.nan_to_num(rounded))


def test_an_infinite_activation_stays_unknown_and_touches_no_other_layer(llama: Path, probe_file: Path) -> None:
    model = build_model(open_checkpoint(llama), device="cpu")
    with torch.no_grad():
        model.module.model.layers[LAYERS - 1].mlp.down_proj.weight[0, 0] = float("inf")
    fold = TokenScorePass(model, read_probe(str(probe_file)), Layout(prompts()))
    source = length_bucketed([prompt.example for prompt in prompts()], 4096, "left")
    scores = fold.step(fold.start(), source.load(source.plan[0]))["scores"]
    assert bool(torch.isfinite(scores[:, :-1]).all())
    assert not bool(torch.isfinite(scores[:, -1]).any())
