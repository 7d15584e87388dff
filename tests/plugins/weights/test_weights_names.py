"""What tensor names tell: layers, modules, the embedding; and which names an option picks."""

from __future__ import annotations

import pytest
from modelscope_weights.tensor_names import Place, input_embedding, listing, matching, module_labels, placed

from modelscope_app.api import BadInput, TensorHeader


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.12.self_attn.q_proj.weight", Place("model.layers", 12, "self_attn.q_proj")),
        ("transformer.h.0.mlp.c_fc.bias", Place("transformer.h", 0, "mlp.c_fc")),
        ("gpt_neox.layers.3.attention.query_key_value.weight", Place("gpt_neox.layers", 3, "attention.query_key_value")),
        ("encoder.layer.5.attention.self.query.weight", Place("encoder.layer", 5, "attention.self.query")),
        ("model.layers.3.mlp.experts.17.w1.weight", Place("model.layers", 3, "mlp.experts.*.w1")),
        ("layers.0.weight", Place("layers", 0, "weight")),
        ("0.weight", Place("", 0, "weight")),
        ("model.embed_tokens.weight", Place("", None, "model.embed_tokens")),
        ("scale", Place("", None, "scale")),
        ("", Place("", None, "")),
        ("layers.99999999999999999999.weight", Place("", None, "layers.99999999999999999999")),
        ("layers.١.weight", Place("", None, "layers.١")),
    ],
)
def test_a_name_tells_stack_layer_and_module(name: str, place: Place) -> None:
    assert placed(name) == place


def test_modules_of_one_name_in_two_stacks_are_told_apart() -> None:
    labels = module_labels(["encoder.block.0.attn.weight", "decoder.block.0.attn.weight", "decoder.block.0.cross.weight"])
    assert list(labels.values()) == ["encoder.block.*.attn", "decoder.block.*.attn", "cross"]


@pytest.mark.parametrize(
    "names",
    [
        ["enc.0.mlp.weight", "dec.0.mlp.weight", "layers.0.enc.3.mlp.weight"],
        ["a.*.b.0.c.weight", "a.0.b.1.c.weight", "x.0.c.weight", "x.0.b.1.c.weight"],
    ],
)
def test_modules_of_two_stacks_never_share_a_label(names: list[str]) -> None:
    places = {name: placed(name) for name in names}
    assert len(set(module_labels(names).values())) == len({(place.stack, place.module) for place in places.values()})


def test_a_name_means_that_tensor_alone_and_brackets_mean_themselves() -> None:
    assert matching(["w[1]", "w1"], "w[1]") == ["w[1]"]
    assert matching(["w[1]", "w1", "w*"], "w*") == ["w*"]
    assert matching(["w[1].a", "w1.a", "w[2].a"], "w[1]*, w[2].a") == ["w[1].a", "w[2].a"]


def test_only_takes_names_and_patterns_and_refuses_what_matches_nothing() -> None:
    names = ["a.q_proj", "a.k_proj", "b[0]", "x,y"]
    assert matching(names, "*_proj") == ["a.q_proj", "a.k_proj"]
    assert matching(names, "b[0]") == ["b[0]"]
    assert matching(names, "x,y") == ["x,y"]
    assert matching(names, "a.q*, b*") == ["a.q_proj", "b[0]"]
    with pytest.raises(BadInput, match="no tensor matches --only '\\*v_proj'"):
        matching(names, "*v_proj")


def header(name: str, *shape: int) -> TensorHeader:
    return TensorHeader(name, "F32", shape, "model.safetensors", 0, 0)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight", "bert.embeddings.word_embeddings.weight"]
)
def test_the_embedding_is_found_by_name(name: str) -> None:
    headers = {each.name: each for each in (header("lm_head.weight", 100, 8), header(name, 100, 8))}
    assert input_embedding(headers, None) == name


def test_the_embedding_is_found_by_the_vocabulary_size_if_one_matrix_alone_has_it() -> None:
    one = {"tokens": header("tokens", 100, 8), "other": header("other", 8, 8), "bias": header("bias", 100)}
    assert input_embedding(one, {"vocab_size": 100}) == "tokens"
    assert input_embedding(one, {"text_config": {"vocab_size": 100}}) == "tokens"
    assert input_embedding({**one, "head": header("head", 100, 8)}, {"vocab_size": 100}) is None
    assert input_embedding(one, None) is None
    assert input_embedding(one, {"vocab_size": [100]}) is None


def test_long_listings_say_how_many_more() -> None:
    assert listing(f"t{i}" for i in range(10)) == "t0, t1, t2, t3, t4, t5, t6, t7 and 2 more"
