"""Activations at sites equal what transformers and slow, obvious recomputations say, and no hook stays behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny_models import CAUSAL, ENCODERS, UNDESCRIBED, batch_of, prompts
from torch import nn

from modelscope_app.api import BadInput, JobFailed
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.models import BuiltModel, build_model

Tiny = Callable[[str], Path]
BATCH = batch_of(prompts(9, 9))
POST_NORMS = ("gemma2", "gemma3_text")
DESCRIBED = [name for name in CAUSAL if name not in POST_NORMS]


@pytest.fixture
def build(tiny: Tiny) -> Callable[[str], BuiltModel]:
    # float64, so that what differs by the order of summation alone stays below 1e-5 where transformers computes in float32.
    # torch has no float64 kernel for mixtures of experts.
    return lambda name: build_model(open_checkpoint(tiny(name)), device="cpu", dtype="float32" if name == "mixtral" else "float64")


Build = Callable[[str], BuiltModel]


def final_norm(model: BuiltModel) -> nn.Module:
    body: Any = model.module.base_model
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if hasattr(body, name):
            return getattr(body, name)
    return getattr(body.decoder, "final_layer_norm")  # noqa: B009 - a module attribute mypy and ruff know nothing of


def read(model: BuiltModel, *sites: str, **options: Any) -> dict[str, torch.Tensor]:
    with torch.no_grad(), model.sites.read(sites, **options) as found:
        model.body(BATCH)
    return found


def hook_count(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@pytest.mark.parametrize("name", [*CAUSAL, *UNDESCRIBED])
def test_residual_sites_equal_transformers_hidden_states(build: Build, name: str) -> None:
    model = build(name)
    layers = range(model.sites.layer_count)
    found = read(model, *(f"resid_pre.{layer}" for layer in layers), *(f"resid_post.{layer}" for layer in layers))
    with torch.no_grad():
        states = model.module(BATCH.input_ids, attention_mask=BATCH.attention_mask, output_hidden_states=True).hidden_states
        last_normed = final_norm(model)(found[f"resid_post.{layers[-1]}"])
    assert len(states) == len(layers) + 1 == 4
    for layer in layers:
        assert torch.equal(found[f"resid_pre.{layer}"], states[layer])
        # transformers hands out the last state after the final norm; the site is before it.
        assert torch.equal(found[f"resid_post.{layer}"] if layer < layers[-1] else last_normed, states[layer + 1])


@pytest.mark.parametrize("name", list(ENCODERS))
def test_encoders_have_residual_sites(build: Build, name: str) -> None:
    model = build(name)
    found = read(model, "resid_post.0", "resid_post.2")
    with torch.no_grad():
        states = model.module(BATCH.input_ids, attention_mask=BATCH.attention_mask, output_hidden_states=True).hidden_states
    assert torch.equal(found["resid_post.0"], states[1])
    assert torch.equal(found["resid_post.2"], states[3])


@pytest.mark.parametrize("name", list(CAUSAL))
def test_attention_and_mlp_are_all_a_layer_adds_to_the_residual_stream(build: Build, name: str) -> None:
    found = read(build(name), "resid_pre.1", "attn_out.1", "mlp_out.1", "resid_post.1")
    total = found["resid_pre.1"] + found["attn_out.1"] + found["mlp_out.1"]
    torch.testing.assert_close(total, found["resid_post.1"], rtol=1e-12, atol=1e-12)


def projection_of(model: BuiltModel, layer: int) -> nn.Module:
    names = (
        f"layers.{layer}.self_attn.o_proj",
        f"layers.{layer}.self_attn.dense",
        f"layers.{layer}.attention.dense",
        f"h.{layer}.attn.c_proj",
    )
    return next(part for name, part in model.module.base_model.named_modules() if name in names)


@pytest.mark.parametrize("name", DESCRIBED)
def test_head_outputs_sum_to_attention_minus_the_bias(build: Build, name: str) -> None:
    model = build(name)
    found = read(model, "head_out.1", "attn_out.1")
    bias = getattr(projection_of(model, 1), "bias", None)
    assert found["head_out.1"].shape == (2, 9, 4, 32)
    expected = found["attn_out.1"] if bias is None else found["attn_out.1"] - bias
    torch.testing.assert_close(found["head_out.1"].sum(-2), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", DESCRIBED)
def test_one_heads_output_is_the_projection_of_that_head_alone(build: Build, name: str) -> None:
    """The slow way: silence all heads but one at the projection's input, and take off what the projection gives for silence."""
    model = build(name)
    projection = projection_of(model, 0)
    seen: list[torch.Tensor] = []
    handle = projection.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    heads = read(model, "head_out.0")["head_out.0"]
    handle.remove()
    size = seen[0].shape[-1] // 4
    with torch.no_grad():
        for head in range(4):
            alone = torch.zeros_like(seen[0])
            alone[..., head * size : (head + 1) * size] = seen[0][..., head * size : (head + 1) * size]
            expected = projection(alone) - projection(torch.zeros_like(seen[0]))
            torch.testing.assert_close(heads[:, :, head], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", DESCRIBED)
def test_silencing_a_head_equals_zeroing_its_columns_of_the_projection(build: Build, name: str) -> None:
    def silenced(heads: torch.Tensor) -> torch.Tensor:
        heads = heads.clone()
        heads[:, :, 2] = 0
        return heads

    model = build(name)
    with torch.no_grad(), model.sites.write({"head_out.1": silenced}):
        written = model.logits(BATCH)
    weight = projection_of(model, 1).weight
    is_conv = type(projection_of(model, 1)).__name__ == "Conv1D"
    size = weight.shape[0 if is_conv else 1] // 4
    with torch.no_grad():
        (weight if is_conv else weight.T)[2 * size : 3 * size] = 0
        expected = model.logits(BATCH)
    torch.testing.assert_close(written, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi"])
def test_a_write_runs_the_rest_of_the_model_on_what_was_written(build: Build, name: str) -> None:
    """The slow way: the same addition made by a layer that is wrapped by hand."""
    model = build(name)
    push = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = model.logits(BATCH)
        with model.sites.write({"resid_post.0": lambda value: value + push}):
            after_first = model.logits(BATCH)
        with model.sites.write({"resid_pre.1": lambda value: value + push}):
            before_second = model.logits(BATCH)

        layers: Any = getattr(model.module.base_model, "layers", None) or model.module.base_model.h
        forward = layers[0].forward
        layers[0].forward = lambda *arguments, **named: forward(*arguments, **named) + push
        by_hand = model.logits(BATCH)
    assert torch.equal(after_first, by_hand)
    assert torch.equal(before_second, by_hand)
    assert not torch.allclose(plain, by_hand)


@pytest.mark.parametrize("name", list(CAUSAL))
def test_zeroing_attention_and_mlp_leaves_the_residual_stream_as_it_was(build: Build, name: str) -> None:
    model = build(name)
    zero = {"attn_out.1": torch.zeros_like, "mlp_out.1": torch.zeros_like}
    with torch.no_grad(), model.sites.write(zero), model.sites.read(["resid_pre.1", "resid_post.1"]) as found:
        model.body(BATCH)
    assert torch.equal(found["resid_pre.1"], found["resid_post.1"])


@pytest.mark.parametrize("site", ["resid_pre.1", "resid_post.1", "attn_out.1", "mlp_out.1", "head_out.1"])
def test_hooks_act_in_the_order_their_contexts_were_entered(build: Build, site: str) -> None:
    model = build("llama")
    plain = read(model, site)[site]
    doubled, plus_one = {site: lambda value: value * 2}, {site: lambda value: value + 1}
    sites = model.sites
    with torch.no_grad(), sites.read([site]) as before, sites.write(doubled), sites.write(plus_one), sites.read([site]) as after:
        model.body(BATCH)
    assert torch.equal(before[site], plain)
    assert torch.equal(after[site], plain * 2 + 1)
    assert torch.equal(read(model, site)[site], plain)


def test_attention_read_inside_a_write_to_its_heads_is_their_sum(build: Build) -> None:
    model = build("gpt2")
    bias = projection_of(model, 1).bias
    with torch.no_grad(), model.sites.write({"head_out.1": torch.ones_like}), model.sites.read(["attn_out.1"]) as found:
        model.body(BATCH)
    torch.testing.assert_close(found["attn_out.1"], (bias + 4).expand(2, 9, 32))


def test_what_is_kept_does_not_hold_the_whole_activation(build: Build) -> None:
    kept = read(build("llama"), "resid_post.1", "head_out.1", keep=lambda value: value[:, -1])
    assert kept["resid_post.1"].shape == (2, 32)
    assert kept["head_out.1"].shape == (2, 4, 32)
    for value in kept.values():
        assert value.untyped_storage().nbytes() == value.numel() * 8


def test_a_read_activation_stays_in_the_graph(build: Build) -> None:
    model = build("llama")
    push = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    with model.sites.write({"resid_pre.0": lambda value: value + push}), model.sites.read(["resid_post.1"]) as found:
        model.body(BATCH)
    found["resid_post.1"].sum().backward()
    assert push.grad is not None
    assert bool(push.grad.abs().sum() > 0)


def test_hooks_are_gone_after_use_after_an_exception_and_after_a_refused_site(build: Build) -> None:
    model = build("llama")
    before = hook_count(model.module)
    everything = [f"{kind}.{layer}" for kind in model.sites.kinds for layer in range(3)]
    read(model, *everything)
    assert hook_count(model.module) == before

    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside the forward pass")

    with pytest.raises(RuntimeError), model.sites.read(everything), model.sites.write({"head_out.1": torch.ones_like, "mlp_out.1": broken}):
        assert hook_count(model.module) == before + len(everything) + 2
        model.body(BATCH)
    assert hook_count(model.module) == before
    with pytest.raises(BadInput), model.sites.read(["resid_post.0", "resid_post.3"]):
        pass
    with pytest.raises(BadInput), build("gemma2").sites.read(["resid_post.0", "head_out.0"]):
        pass
    assert hook_count(model.module) == before
    assert not model.sites._written_heads


def test_a_write_of_another_shape_is_refused(build: Build) -> None:
    model = build("llama")
    sentence = r"written at resid_post\.1 must have shape \(2, 9, 32\), not \(2, 32\)"
    with pytest.raises(JobFailed, match=sentence), model.sites.write({"resid_post.1": lambda value: value[:, 0]}):
        model.body(BATCH)


def test_a_write_is_cast_to_the_models_dtype(tiny: Tiny) -> None:
    model = build_model(open_checkpoint(tiny("llama")), device="cpu", dtype="bfloat16")
    with torch.no_grad(), model.sites.write({"resid_post.1": lambda value: value.float() * 2}):
        assert model.logits(BATCH).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "site", "sentence"),
    [
        ("llama", "resid_post.3", "has 3 layers, 0 to 2"),
        ("llama", "key.1", "KIND one of resid_pre, resid_post, attn_out, mlp_out, head_out"),
        ("gemma2", "head_out.0", "head_out is not defined for gemma2"),
        ("olmo2", "attn_out.0", "attn_out is not known for the architecture olmo2; resid_pre and resid_post are"),
        ("bert", "head_out.0", "head_out is not known for the architecture bert"),
    ],
)
def test_a_site_the_model_does_not_have_is_refused_by_name(build: Build, name: str, site: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence), build(name).sites.read([site]):
        pass


def test_an_architecture_says_which_kinds_of_site_it_has(build: Build) -> None:
    assert build("llama").sites.kinds == ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_out")
    assert build("gemma2").sites.kinds == ("resid_pre", "resid_post", "attn_out", "mlp_out")
    assert build("olmo2").sites.kinds == ("resid_pre", "resid_post")
