"""The overview: exact counts, whatever the names; and it says what is known and not more."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from math import prod
from pathlib import Path
from typing import Any

import numpy
import pytest
from checkpoints.checkpoint_files import entry, ramp, write_file, write_shard, write_sharded
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_app.api import BadInput, TensorHeader
from modelscope_app.checkpoints import natural_key, open_checkpoint
from modelscope_app.checkpoints.module_tree import Module, layer_count, module_tree
from modelscope_app.checkpoints.overview import Overview, overview


def facts_of(path: Path) -> Overview:
    return overview(open_checkpoint(path))


def model_folder(folder: Path, tensors: dict[str, numpy.ndarray], config: dict[str, Any] | None = None) -> Path:
    write_shard(folder / "model.safetensors", tensors, {"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


LAYERS = {f"model.layers.{layer}.{part}.weight": ramp(2, 3) for layer in range(12) for part in ("self_attn.q_proj", "mlp.up_proj")}
LLAMA = {"model.embed_tokens.weight": ramp(7, 3), **LAYERS, "model.norm.weight": ramp(3)}


def test_repeated_layers_are_folded_and_counted(tmp_path: Path) -> None:
    facts = facts_of(model_folder(tmp_path, LLAMA))
    assert facts.layers == 12
    assert facts.tensors == 26
    assert facts.parameters == 12 * 2 * 6 + 21 + 3
    assert facts.bytes == 4 * facts.parameters
    assert [(module.path, module.times, module.tensors, module.parameters) for module in facts.by_module] == [
        ("model", 1, 26, 168),
        ("model.embed_tokens", 1, 1, 21),
        ("model.layers", 1, 24, 144),
        ("model.layers.*", 12, 24, 144),
        ("model.layers.*.mlp", 12, 12, 72),
        ("model.layers.*.mlp.up_proj", 12, 12, 72),
        ("model.layers.*.self_attn", 12, 12, 72),
        ("model.layers.*.self_attn.q_proj", 12, 12, 72),
        ("model.norm", 1, 1, 3),
    ]


def test_layers_that_differ_are_counted_where_they_are() -> None:
    headers = [TensorHeader(f"layers.{layer}.{'attn' if layer % 4 == 0 else 'mamba'}.w", "F32", (2,), "a", 0, 8) for layer in range(12)]
    times = {module.path: module.times for module in module_tree(headers).modules}
    assert times == {"layers": 1, "layers.*": 12, "layers.*.attn": 3, "layers.*.mamba": 9}


def test_layers_count_the_largest_numbered_module() -> None:
    assert layer_count([Module("wte", 1, 1, 9, 9)]) is None
    tower = [
        Module("vision.blocks.*", 4, 4, 10, 10),
        Module("text.layers.*", 24, 24, 90, 90),
        Module("text.layers.*.experts.*", 96, 96, 80, 80),
    ]
    assert layer_count(tower) == 24
    assert layer_count([Module("*", 3, 3, 9, 9)]) == 3


def slow_tree(headers: list[TensorHeader]) -> dict[str, tuple[int, int, int, int]]:
    """The obvious way: walk up from every tensor, one at a time."""
    members: dict[str, set[str]] = defaultdict(set)
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for header in headers:
        parts = header.name.split(".")
        folded = [("*" if position and re.fullmatch("[0-9]+", part) else part) for position, part in enumerate(parts)]
        if re.fullmatch("[0-9]+", folded[0]):
            folded[0] = "*"
        for length in range(1, max(2, len(parts))):
            path = ".".join(folded[:length])
            if not path:
                continue
            members[path].add(".".join(parts[:length]))
            for position, amount in enumerate((1, prod(header.shape), header.bytes)):
                sums[path][position] += amount
    return {path: (len(members[path]), *sums[path]) for path in sums}  # type: ignore[misc]


COMPONENT = st.sampled_from(["a", "b", "layers", "0", "1", "10", "007", "w1", "²", "*", "x y", "a\nb"])


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.lists(COMPONENT, min_size=1, max_size=5).map(".".join),
        st.tuples(st.lists(st.integers(0, 3), max_size=2), st.sampled_from(["F32", "BF16"])),
        max_size=12,
    )
)
def test_the_folded_tree_equals_the_one_counted_tensor_by_tensor(tensors: dict[str, tuple[list[int], str]]) -> None:
    headers = [
        TensorHeader(name, dtype, tuple(shape), "a", 0, prod(shape) * (4 if dtype == "F32" else 2))
        for name, (shape, dtype) in tensors.items()
    ]
    found = {module.path: tuple(module[1:]) for module in module_tree(headers).modules}
    assert found == slow_tree(headers)


def test_a_name_of_a_hundred_thousand_dots_costs_nothing(tmp_path: Path) -> None:
    names = [".".join(["a"] * 100_000) + str(number) for number in range(3)]
    file = write_file(tmp_path / "a.safetensors", {name: entry("U8", [1], at, at + 1) for at, name in enumerate(names)}, bytes(3))
    facts = facts_of(file)
    assert facts.tensors == facts.parameters == 3
    assert max(len(module.path) for module in facts.by_module) <= 200


def test_dtypes_are_summed_one_by_one(tmp_path: Path) -> None:
    header = {"a": entry("BF16", [8], 0, 16), "b": entry("F32", [2], 16, 24), "c": entry("F4", [4], 24, 26), "d": entry("X9", [3], 26, 31)}
    facts = facts_of(write_file(tmp_path / "a.safetensors", header, bytes(31)))
    assert {dtype: tuple(row) for dtype, row in facts.by_dtype.items()} == {
        "BF16": (1, 8, 16),
        "F32": (1, 2, 8),
        "X9": (1, 3, 5),
        "F4": (1, 4, 2),
    }
    assert next(iter(facts.by_dtype)) == "BF16"
    assert facts.kind == "file"


def test_it_agrees_with_the_checkpoint_it_describes(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"x.safetensors": {"a.0.w": ramp(3), "a.1.w": ramp(3)}, "y.safetensors": {"b": ramp(2, 2)}})
    checkpoint = open_checkpoint(tmp_path)
    facts = overview(checkpoint)
    assert (facts.parameters, facts.bytes, facts.tensors) == (checkpoint.parameters, checkpoint.bytes, len(checkpoint.tensors))
    assert facts.kind == "sharded"
    assert [(shard.file, shard.tensors, shard.bytes) for shard in facts.shards] == [
        (file.name, count, file.stat().st_size) for file, count in [(tmp_path / "x.safetensors", 2), (tmp_path / "y.safetensors", 1)]
    ]


TIED = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}


def test_a_head_that_config_ties_is_named(tmp_path: Path) -> None:
    facts = facts_of(model_folder(tmp_path, LLAMA, TIED))
    assert [tuple(tied) for tied in facts.tied] == [("lm_head.weight", "model.embed_tokens.weight", "config.json")]


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        ({**LLAMA, "lm_head.weight": ramp(7, 3)}, TIED),
        (LLAMA, {**TIED, "tie_word_embeddings": False}),
        (LLAMA, {key: value for key, value in TIED.items() if key != "tie_word_embeddings"}),
        (LLAMA, {**TIED, "architectures": ["LlamaModel"]}),
        (LAYERS, TIED),
        (LLAMA, None),
    ],
)
def test_nothing_is_called_tied_that_is_stored_or_not_said_to_be(tensors: dict, config: dict | None, tmp_path: Path) -> None:
    assert facts_of(model_folder(tmp_path, tensors, config)).tied == ()


def test_a_tensor_the_writer_left_out_is_named_from_the_metadata(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_model

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(5, 3)
            self.head = torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    save_model(Tied(), str(tmp_path / "model.safetensors"))
    facts = facts_of(tmp_path)
    assert facts.tensors == 1
    (tied,) = facts.tied
    assert {tied.name, tied.same_as} == {"embedding.weight", "head.weight"}
    assert tied.said_by == "__metadata__"


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX", "GPT2"])
def test_counts_and_ties_agree_with_transformers(family: str, tmp_path: Path) -> None:
    import transformers

    config = {
        "Llama": lambda: transformers.LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, tie_word_embeddings=True
        ),
        "GPTNeoX": lambda: transformers.GPTNeoXConfig(
            vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, tie_word_embeddings=True
        ),
        "GPT2": lambda: transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=3, n_head=2, n_positions=16, tie_word_embeddings=True),
    }[family]()
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    facts = facts_of(tmp_path)
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert facts.layers == 3
    assert facts.model_type == config.model_type
    (tied,) = facts.tied
    named = dict(model.named_parameters(remove_duplicate=False))
    assert named[tied.name] is named[tied.same_as]


def test_config_highlights_are_plain_values(tmp_path: Path) -> None:
    config = {
        "hidden_size": 8,
        "layer_sizes": [64, 10],
        "activation": "tanh",
        "vocab_size": {"odd": 1},
        "n_embd": float("nan"),
        "secret": 1,
        "text_config": {"num_attention_heads": 4, "hidden_size": 99},
        "quantization_config": {"quant_method": "gptq", "bits": 4},
    }
    facts = facts_of(model_folder(tmp_path, LLAMA, config))
    assert facts.config == {
        "hidden_size": 8,
        "num_attention_heads": 4,
        "layer_sizes": [64, 10],
        "activation": "tanh",
        "quant_method": "gptq",
    }
    assert facts.architectures == ()
    assert facts.model_type is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({"tokenizer_config.json": "{}"}, False),
        ({"tokenizer_config.json": '{"chat_template": null}'}, False),
        ({"tokenizer_config.json": '{"chat_template": "{{ x }}"}'}, True),
        ({"chat_template.jinja": "{{ x }}"}, True),
    ],
)
def test_a_chat_template_is_found_where_it_may_be(files: dict[str, str], expected: bool, tmp_path: Path) -> None:
    model_folder(tmp_path, LLAMA)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    facts = facts_of(tmp_path)
    assert facts.has_chat_template is expected
    assert facts.tokenizer_files == tuple(files)


def test_a_broken_tokenizer_config_is_an_error(tmp_path: Path) -> None:
    model_folder(tmp_path, LLAMA)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(BadInput, match=r"tokenizer_config\.json"):
        facts_of(tmp_path)


def test_a_member_of_a_series_knows_its_place(tmp_path: Path) -> None:
    for step in (5, 10, 200):
        model_folder(tmp_path / f"checkpoint-{step}", LLAMA)
    model_folder(tmp_path / "final", LLAMA)
    place = facts_of(tmp_path / "checkpoint-10").series
    assert place is not None
    assert tuple(place) == (str(tmp_path), 10, (5, 10, 200))
    assert facts_of(tmp_path / "final").series is None


def test_a_trainers_folder_knows_the_series_inside_it(tmp_path: Path) -> None:
    model_folder(tmp_path / "checkpoint-5", LLAMA)
    place = facts_of(model_folder(tmp_path, LLAMA)).series
    assert place is not None
    assert tuple(place) == (str(tmp_path), None, (5,))


def test_everything_of_it_is_json(tmp_path: Path) -> None:
    facts = facts_of(model_folder(tmp_path, LLAMA, {**TIED, "time_step": [float("inf")]}))
    value = json.loads(json.dumps(facts.to_json(), allow_nan=False))
    assert value["by_dtype"] == {"F32": {"tensors": 26, "parameters": 168, "bytes": 672}}
    assert value["metadata"] == {"format": "pt"}


@given(st.lists(st.text(alphabet="ab.019", max_size=8)))
def test_natural_order_is_an_order(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


def test_natural_order_takes_numbers_of_any_length() -> None:
    long = "h." + "9" * 5000
    assert sorted([long, "h.10", "h.9", "h.09"], key=natural_key) == ["h.09", "h.9", "h.10", long]
