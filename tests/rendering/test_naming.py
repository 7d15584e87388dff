"""Long names in little room still differ."""

from __future__ import annotations

from modelscope_app.rendering.marks import BLOCKS, PLAIN
from modelscope_app.rendering.naming import told_apart

TENSORS = [f"model.layers.{layer}.self_attn.{part}.weight" for layer in (5, 17) for part in ("q_proj", "k_proj")]


def test_names_that_fit_stay_whole() -> None:
    assert told_apart(TENSORS, 60, BLOCKS.cut) == (TENSORS, "")
    assert told_apart([], 10, BLOCKS.cut) == ([], "")


def test_names_that_do_not_fit_lose_what_all_have_in_common() -> None:
    expected = ["5.self_attn.q_proj", "5.self_attn.k_proj", "17.self_attn.q_proj", "17.self_attn.k_proj"]
    assert told_apart(TENSORS, 24, BLOCKS.cut) == (expected, "model.layers.*.weight")


def test_of_each_name_a_component_stays() -> None:
    names = ["model.layers.0.attention.weight", "model.layers.0.attention.weight.weight"]
    short, pattern = told_apart(names, 20, BLOCKS.cut)
    assert short == ["weight", "weight.weight"] and pattern == "model.layers.0.attention.*"
    assert told_apart(["one.and.the.same.name"] * 2, 10, BLOCKS.cut)[1] == ""


def test_names_that_would_look_the_same_get_more_room() -> None:
    names = [f"{'a' * 12}{at}{'b' * 12}" for at in range(3)]
    assert len(set(told_apart(names, 10, BLOCKS.cut)[0])) == 1
    short, pattern = told_apart(names, 10, BLOCKS.cut, 30)
    assert len(set(short)) == 3 and pattern == ""


def test_characters_the_terminal_lacks_are_told_apart_as_escapes() -> None:
    short, _ = told_apart(["é" * 6, "è" * 6], 12, PLAIN.cut, 40)
    assert short[0] != short[1] and all(name.isascii() and len(name) <= 40 for name in short)
