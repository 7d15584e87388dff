"""Interventions against brute force, and where in a model they act."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from modelscope_probes import interventions as module
from modelscope_probes.interventions import (
    NONE,
    AtPromptEnd,
    Directions,
    Intervention,
    InterventionPass,
    ablated,
    directions,
    erased,
    interventions,
    patched,
    replaced,
    steered,
)
from modelscope_probes.leace import leace
from modelscope_probes.reading import answered, padded

from modelscope_app.api import Example
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.data import length_bucketed
from modelscope_app.models import build_model
from modelscope_app.testing import assert_fold_merges

X = torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
U = torch.nn.functional.normalize(torch.randn(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=0)
RAGGED = [[5, 6, 7, 8, 9], [10, 11], [12], [13, 14, 15]]


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small Llama with random weights."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, eos_token_id=None, bos_token_id=None, pad_token_id=0))
    folder = tmp_path_factory.mktemp("random")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return build_model(open_checkpoint(folder), device="cpu")


def test_ablation_is_multiplication_with_the_projector_and_idempotent() -> None:
    projector = torch.eye(10, dtype=torch.float64) - torch.outer(U, U)
    torch.testing.assert_close(ablated(X, U), X @ projector, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ablated(ablated(X, U), U), ablated(X, U), rtol=1e-12, atol=1e-12)
    assert (ablated(X, U) @ U).abs().max() < 1e-14


def test_steering_adds_exactly_that_much_along_the_direction() -> None:
    moved = steered(X, U, 2.5) - X
    torch.testing.assert_close(moved, (2.5 * U).expand_as(X), rtol=1e-12, atol=1e-12)
    assert moved.norm(dim=-1).flatten().tolist() == pytest.approx([2.5] * 12)


def test_patching_sets_the_component_and_nothing_else() -> None:
    changed = patched(X, U, 0.7)
    assert (changed @ U).flatten().tolist() == pytest.approx([0.7] * 12)
    torch.testing.assert_close(ablated(changed, U), ablated(X, U), rtol=1e-12, atol=1e-12)
    assert torch.equal(replaced(X, U)[1, 2], U)


def test_erasure_is_that_of_the_eraser_and_leaves_the_class_means_equal() -> None:
    x, y = X.reshape(12, 10), torch.arange(12) % 2 == 0
    eraser = leace(x, y)
    torch.testing.assert_close(erased(x, eraser), eraser.erase(x), rtol=1e-10, atol=1e-12)
    after = erased(x, eraser)
    torch.testing.assert_close(after[y].mean(0), after[~y].mean(0), rtol=0, atol=1e-10)


def test_half_precision_activations_are_changed_in_single_precision() -> None:
    assert ablated(X.half(), U).dtype == torch.float32
    torch.testing.assert_close(ablated(X.half(), U), ablated(X.half().float(), U), rtol=0, atol=0)


def test_at_the_prompts_end_only_the_last_token_changes_and_none_of_the_answer() -> None:
    change = AtPromptEnd(lambda x: torch.zeros_like(x), width=4)
    first = change(X)  # the prompts
    assert torch.equal(first[:, :3], X[:, :3]) and not first[:, 3].any()
    assert torch.equal(change(X[:, :1]), X[:, :1])  # a new token, with a cache
    longer = torch.cat([X, X[:, :1]], 1)  # everything again, without one
    again = change(longer)
    assert not again[:, 3].any() and torch.equal(again[:, [0, 1, 2, 4]], longer[:, [0, 1, 2, 4]])


def test_of_prompts_of_one_token_the_prompt_is_told_from_the_answer() -> None:
    change = AtPromptEnd(lambda x: torch.zeros_like(x), width=1)
    one = X[:, :1]
    assert not change(one).any()
    assert torch.equal(change(one), one)


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("cached", [True, False])
def test_intervened_answers_are_those_of_changing_each_prompt_alone(
    random_model: Any, positions: Any, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a left-padded batch with and without a cache, against one prompt at a time read anew for each token."""
    if not cached:
        monkeypatch.setattr("modelscope_app.models.continuing.keeps_a_cache", lambda module: False)
    push = 3 * torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(2)), dim=0)
    sites = ("resid_post.0", "resid_post.1")
    done = Intervention("steer", "probe", None, 1.0, positions, {site: lambda x: x + push for site in sites})
    with done.written(random_model, 5):
        found = answered(random_model, padded(RAGGED, "left"), 4)
    changed_any = False
    for row, prompt in enumerate(RAGGED):
        ids = list(prompt)
        for step in range(4):
            where = slice(len(prompt) - 1, len(prompt)) if positions == "last" else slice(None)

            def change(hidden: torch.Tensor, where: slice = where) -> torch.Tensor:
                hidden = hidden.clone()
                hidden[:, where] += push
                return hidden

            with torch.no_grad(), random_model.sites.write(dict.fromkeys(sites, change)):
                logits = random_model.logits(padded([ids], "left"))[0, -1]
            if step == 0:
                # float32 sums over padded keys in another order
                torch.testing.assert_close(found.logits[row], logits, rtol=1e-4, atol=1e-4)
            assert int(logits.argmax()) == int(found.tokens[row, step])
            ids.append(int(logits.argmax()))
        changed_any |= ids[len(prompt) :] != answered(random_model, padded([prompt], "left"), 4).tokens[0].tolist()
    assert changed_any and bool(found.is_known.all())


def test_hooks_are_gone_afterwards_also_when_the_model_fails(random_model: Any) -> None:
    batch = padded(RAGGED, "left")
    before = answered(random_model, batch, 2)

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    broken = Intervention("ablate", "probe", None, None, "all", {"resid_post.1": fails})
    with pytest.raises(RuntimeError, match="no"), broken.written(random_model, 5):
        answered(random_model, batch, 2)
    after = answered(random_model, batch, 2)
    assert torch.equal(before.logits, after.logits) and torch.equal(before.tokens, after.tokens)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in random_model.module.modules())


def test_an_answer_after_logits_that_are_not_finite_is_unknown(random_model: Any) -> None:
    calls = []

    def breaks_later(x: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        x = x.clone()
        if len(calls) == 3:
            x[1] = math.nan
        return x

    with random_model.sites.write({"resid_post.2": breaks_later}):
        found = answered(random_model, padded(RAGGED, "left"), 4)
    assert found.is_known.tolist() == [True, False, True, True]
    assert found.tokens[1].tolist()[2:] == [-1, -1]


def test_an_answer_that_ended_is_known_whatever_comes_after_it(random_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = int(answered(random_model, padded(RAGGED[:1], "left"), 1).tokens[0, 0])
    monkeypatch.setattr(random_model.module.config, "eos_token_id", ends)
    monkeypatch.setattr(random_model.module.generation_config, "eos_token_id", ends)
    calls = []

    def breaks_later(x: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        x = x.clone()
        if len(calls) > 1:
            x[0] = math.nan
        return x

    with random_model.sites.write({"resid_post.2": breaks_later}):
        found = answered(random_model, padded(RAGGED, "left"), 3)
    assert found.tokens[0].tolist() == [-1, -1, -1]
    assert bool(found.is_known[0])


def built_directions(controls: int = 3) -> Directions:
    generator = torch.Generator().manual_seed(5)
    activations = torch.randn(20, 2, 16, generator=generator)
    labels = torch.arange(20) % 2 == 0
    probe = torch.randn(2, 16, generator=generator)
    return directions(["resid_post.0", "resid_post.1"], activations, labels, probe, torch.randn(controls, 20, generator=generator))


def test_every_direction_has_norm_1_and_the_first_is_the_probes() -> None:
    found = built_directions()
    assert found.units.shape == (4, 2, 16)
    assert found.units.norm(dim=-1).flatten().tolist() == pytest.approx([1.0] * 8, rel=1e-12)
    assert found.norms.shape == (2,) and len(found.erasers) == 4


def test_random_directions_have_the_covariance_of_the_activations() -> None:
    generator = torch.Generator().manual_seed(6)
    activations = torch.randn(50, 1, 6, generator=generator) * torch.tensor([5.0, 1, 1, 1, 0.2, 0.0])
    noise = torch.randn(4000, 50, generator=generator)
    drawn = module.random_directions(activations[:, 0], noise).double()
    # 4000 draws: relative error of a variance about sqrt(2 / 4000)
    torch.testing.assert_close(drawn.T.cov(), activations[:, 0].double().T.cov(), rtol=0.15, atol=0.3)


def test_what_is_planned_is_each_intervention_with_its_controls() -> None:
    planned = interventions(built_directions(), "all", [-1.0, 2.0])
    assert list(planned) == ["ablate", "steer_0", "steer_1", "erase", "patch"]
    assert [one.control for one in planned["ablate"]] == [None, 1, 2, 3]
    assert {one.dose for one in planned["steer_1"]} == {2.0}
    assert planned["erase"][0].direction == "labels" and planned["patch"][-1].name == "patch-whole"
    assert {one.positions for one in (*planned["patch"], *planned["erase"])} == {"last"}
    assert set(planned["ablate"][0].changes) == {"resid_post.0", "resid_post.1"}


def test_steering_adds_doses_of_the_mean_norm_of_the_activations() -> None:
    found = built_directions()
    for place, site in enumerate(found.sites):
        for row, one in enumerate(interventions(found, "all", [2.0])["steer_0"]):
            added = one.changes[site](X.new_zeros(1, 16))
            torch.testing.assert_close(added[0], 2.0 * found.norms[place] * found.units[row, place], rtol=1e-10, atol=1e-12)


def test_the_pass_merges_whatever_the_parts(random_model: Any) -> None:
    examples = [Example(3 * number, tuple(ids), 0, {}) for number, ids in enumerate(RAGGED)]
    ids = [example.id for example in examples]
    planned = [NONE, *interventions(built_directions(2), "last", [1.0])["ablate"]]
    # the same texts in other batches: float32 sums over padded keys in another order
    reading = InterventionPass(random_model, planned, ids, 3, random_model, {0: (7, 8), 6: (9,)})
    source = length_bucketed(examples, 6, "left")
    assert_fold_merges(reading, source, relative_tolerance=1e-3, absolute_tolerance=1e-6)


def test_without_an_intervention_nothing_moves_and_only_rows_with_a_clean_side_have_a_divergence(random_model: Any) -> None:
    examples = [Example(number, tuple(ids), 0, {}) for number, ids in enumerate(RAGGED)]
    reading = InterventionPass(random_model, [NONE], range(4), 2, random_model, {0: RAGGED[0], 2: (7, 8)})
    state = reading.step(reading.start(), length_bucketed(examples, 100, "left").load(range(4)))
    found = reading.finish(state)["divergences"][:, 0]  # (prompt, 2)
    assert found[:, 1].tolist() == [0, 0, 0, 0]
    assert found[:, 0].isfinite().tolist() == [True, False, True, False]
    assert float(found[0, 0]) < 1e-9 < float(found[2, 0])  # read with padding and without
