"""A checkpoint becomes the model transformers would make of it, or a sentence says why not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models.tiny_models import CAUSAL, ENCODERS, GATED, SMALL, UNDESCRIBED, batch_of, edit_config, prompts, saved_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from modelscope_app.api import Architecture, BadInput
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.models import build_model
from modelscope_app.models.huggingface import STORED_AS_BUILT

Tiny = Callable[[str], Path]
BATCH = batch_of(prompts(9, 9))


def logits(folder: Path, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return build_model(open_checkpoint(folder), device="cpu", **options).logits(BATCH)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def without(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return change


@pytest.fixture
def llama(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))


@pytest.mark.parametrize("name", [*CAUSAL, *UNDESCRIBED])
def test_a_language_model_gives_exactly_the_logits_of_from_pretrained(tiny: Tiny, name: str) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny(name), dtype="auto").eval()
    with torch.no_grad():
        expected = reference(BATCH.input_ids, attention_mask=BATCH.attention_mask, use_cache=False).logits
    assert torch.equal(logits(tiny(name)), expected)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_an_encoder_gives_exactly_the_hidden_states_of_from_pretrained(tiny: Tiny, name: str) -> None:
    reference = AutoModel.from_pretrained(tiny(name), dtype="auto").eval()
    model = build_model(open_checkpoint(tiny(name)), device="cpu")
    with torch.no_grad():
        expected = reference(BATCH.input_ids, attention_mask=BATCH.attention_mask).last_hidden_state
        assert torch.equal(model.body(BATCH), expected)
    with pytest.raises(BadInput, match="is an encoder: it has no next-token logits"):
        model.logits(BATCH)


def test_a_masked_language_model_has_a_body_and_no_next_token_logits(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "mlm", "bert", {**SMALL, "intermediate_size": 48}, "masked-lm")
    reference = AutoModelForMaskedLM.from_pretrained(folder, dtype="auto").eval()
    model = build_model(open_checkpoint(folder), device="cpu")
    with torch.no_grad():
        assert torch.equal(model.module(BATCH.input_ids).logits, reference(BATCH.input_ids).logits)
        assert torch.equal(model.body(BATCH), reference.bert(BATCH.input_ids).last_hidden_state)
    with pytest.raises(BadInput, match="is a masked language model"):
        model.logits(BATCH)


def test_the_body_is_the_last_hidden_state_and_leaves_the_head_out(tiny: Tiny) -> None:
    model = build_model(open_checkpoint(tiny("qwen2")), device="cpu")
    head_calls = []
    model.module.lm_head.register_forward_hook(lambda *_: head_calls.append(1))
    with torch.no_grad():
        body = model.body(BATCH)
        assert not head_calls
        torch.testing.assert_close(model.module.lm_head(body), model.logits(BATCH), rtol=0, atol=0)


def test_a_sharded_checkpoint_equals_the_one_in_a_single_file(tiny: Tiny, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny("llama")).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    assert torch.equal(logits(tmp_path / "shards"), logits(tiny("llama")))


def test_a_single_file_is_built_with_the_config_beside_it(tiny: Tiny) -> None:
    assert torch.equal(logits(tiny("llama") / "model.safetensors"), logits(tiny("llama")))


def test_a_body_stored_without_its_prefix_is_recognised(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("gpt2"), tmp_path / "gpt2"))

    def without_prefix(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    rewrite(folder, without_prefix)
    assert torch.equal(logits(folder), logits(tiny("gpt2")))


def test_tied_embeddings_are_one_tensor_and_count_once(tiny: Tiny) -> None:
    model = build_model(open_checkpoint(tiny("llama_biased")), device="cpu")
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
    assert "lm_head.weight" not in model.checkpoint.tensors
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.module.buffers())
    assert model.memory_bytes == model.checkpoint.parameters * 4 + buffers


def test_embeddings_stored_twice_stay_tied_when_equal_and_apart_when_not(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("llama_biased"), tmp_path / "twice"))
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    model = build_model(open_checkpoint(folder), device="cpu")
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
    assert not model.notes

    rewrite(folder, lambda tensors: tensors["lm_head.weight"].mul_(2))
    model = build_model(open_checkpoint(folder), device="cpu")
    assert "are not tied" in model.notes[0]
    torch.testing.assert_close(logits(folder), 2 * logits(tiny("llama_biased")))


@pytest.mark.parametrize(
    ("asked", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32), ("fp16", torch.float16), ("float64", torch.float64)]
)
def test_the_dtype_is_the_stored_one_unless_asked(tmp_path: Path, asked: str, expected: torch.dtype) -> None:
    folder = saved_model(tmp_path / "bf16", "llama", GATED, dtype=torch.bfloat16)
    model = build_model(open_checkpoint(folder), device="cpu", dtype=asked)
    assert {parameter.dtype for parameter in model.module.parameters()} == {expected} == {model.dtype}
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=expected).eval()
    with torch.no_grad():
        assert torch.equal(model.logits(BATCH), reference(BATCH.input_ids).logits)


def test_rotary_frequencies_stay_in_float32(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "bf16", "llama", GATED, dtype=torch.bfloat16)
    model = build_model(open_checkpoint(folder), device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    expected = dict(reference.named_buffers())
    assert expected
    for name, buffer in model.module.named_buffers():
        assert torch.equal(buffer, expected[name])
        assert buffer.dtype == expected[name].dtype


def test_mixed_dtypes_run_in_one_and_the_user_is_told(llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items() if "norm" not in k}))
    edit_config(llama, dtype="bfloat16")
    model = build_model(open_checkpoint(llama), device="cpu")
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.bfloat16}
    assert "stores bfloat16 and float32; the model is built in bfloat16" in model.notes[0]


def test_a_model_is_in_eval_mode_and_asks_for_no_gradients(tiny: Tiny) -> None:
    model = build_model(open_checkpoint(tiny("llama")), device="cpu")
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_a_missing_tensor_is_named(llama: Path) -> None:
    rewrite(llama, without("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(BadInput, match=r"lacks tensors .*model\.layers\.1\.mlp\.up_proj\.weight"):
        build_model(open_checkpoint(llama), device="cpu")


def test_a_tensor_the_config_has_no_place_for_is_named(llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(32)}))
    with pytest.raises(BadInput, match=r"no place for: model\.layers\.1\.self_attn\.q_proj\.bias"):
        build_model(open_checkpoint(llama), device="cpu")


def test_the_head_of_another_task_is_left_out(tiny: Tiny, tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "mlm", "bert", {**SMALL, "intermediate_size": 48}, "masked-lm")
    extra = {"cls.seq_relationship.weight": torch.zeros(2, 32), "bert.pooler.dense.weight": torch.zeros(32, 32)}
    before = build_model(open_checkpoint(folder), device="cpu").body(BATCH)
    rewrite(folder, lambda tensors: tensors.update(extra))
    assert torch.equal(build_model(open_checkpoint(folder), device="cpu").body(BATCH), before)


def test_a_wrong_shape_is_named_with_both_shapes(llama: Path) -> None:
    edit_config(llama, intermediate_size=50)
    with pytest.raises(BadInput, match=r"mlp\.\w+_proj\.weight has shape \(.*48.*\) where config\.json asks for \(.*50.*\)"):
        build_model(open_checkpoint(llama), device="cpu")


def test_a_missing_expert_is_named_where_transformers_fills_the_model(tiny: Tiny, tmp_path: Path) -> None:
    assert "filled by transformers' own loader" in build_model(open_checkpoint(tiny("mixtral")), device="cpu").notes[0]
    folder = Path(shutil.copytree(tiny("mixtral"), tmp_path / "mixtral"))
    rewrite(folder, without("model.norm.weight"))
    with pytest.raises(BadInput, match=r"lacks tensors .*model\.norm\.weight"):
        build_model(open_checkpoint(folder), device="cpu")
    shutil.copy(tiny("mixtral") / "model.safetensors", folder)
    expert = next(name for name in open_checkpoint(folder).tensors if "experts.2" in name)
    rewrite(folder, without(expert))
    with pytest.raises(BadInput, match="experts"):
        build_model(open_checkpoint(folder), device="cpu")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "nobody_knows"}, r"config\.json: model_type 'nobody_knows' is unknown"),
        ({"model_type": None}, "names no model_type"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification in config.json is no language model"),
        ({"num_hidden_layers": 10**9}, "asks for 1000000000 layers"),
        ({"hidden_size": "wide"}, "no valid llama configuration"),
        ({"hidden_size": float("nan")}, "llama|config"),
        ({"num_attention_heads": 0}, "llama|Llama"),
        ({"hidden_act": "no_such_function"}, "cannot build LlamaForCausalLM"),
    ],
)
def test_a_wrong_config_is_refused_in_a_sentence(llama: Path, changes: dict[str, Any], sentence: str) -> None:
    edit_config(llama, **changes)
    with pytest.raises(BadInput, match=sentence):
        build_model(open_checkpoint(llama), device="cpu")


def test_a_checkpoint_without_config_has_no_model(llama: Path) -> None:
    (llama / "config.json").unlink()
    with pytest.raises(BadInput, match=r"has no config\.json"):
        build_model(open_checkpoint(llama), device="cpu")


def test_float8_weights_are_refused_by_name(llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(torch.float8_e4m3fn)}))
    with pytest.raises(BadInput, match=r"model\.norm\.weight is stored as F8_E4M3"):
        build_model(open_checkpoint(llama), device="cpu")


def _plant_code(folder: Path, model_type: str, marker: Path) -> None:
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil:\n    pass\n"
    for module in ("modeling_evil", "configuration_evil"):
        (folder / f"{module}.py").write_text(code)
    auto_map = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil", "AutoModel": "modeling_evil.Evil"}
    edit_config(folder, auto_map=auto_map, model_type=model_type)


def test_code_beside_an_unknown_model_type_is_never_run(llama: Path, tmp_path: Path) -> None:
    _plant_code(llama, "evil", tmp_path / "marker")
    with pytest.raises(BadInput, match=r"model_type 'evil' is unknown, and the code the checkpoint brings"):
        build_model(open_checkpoint(llama), device="cpu")
    assert not (tmp_path / "marker").exists()


def test_code_beside_a_known_model_type_is_ignored(llama: Path, tmp_path: Path, tiny: Tiny) -> None:
    _plant_code(llama, "llama", tmp_path / "marker")
    edit_config(llama, attn_implementation="evil/kernel", _attn_implementation="evil/kernel", use_kernels=True)
    assert torch.equal(logits(llama), logits(tiny("llama")))
    assert not (tmp_path / "marker").exists()


def test_a_pickle_beside_the_weights_is_not_opened(llama: Path) -> None:
    (llama / "pytorch_model.bin").write_bytes(b"not even a pickle")
    (llama / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/base"}))
    assert build_model(open_checkpoint(llama), device="cpu").kind == "causal-lm"


@pytest.mark.parametrize("model_type", sorted(STORED_AS_BUILT))
def test_transformers_renames_nothing_of_the_types_said_to_be_stored_as_built(model_type: str) -> None:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.models.auto import modeling_auto

    config = transformers.CONFIG_MAPPING[model_type]
    classes = [modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[config], modeling_auto.MODEL_MAPPING[config]]
    assert [get_checkpoint_conversion_mapping(key) for key in (model_type, *(c.__name__ for c in classes))] == [None] * 3


class Doubler(torch.nn.Module):
    """A plugin's model: an embedding, a list of layers, a buffer no checkpoint stores."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(96, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(config["n_layer"]))
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden * self.scale


def test_a_plugin_builds_what_transformers_does_not_know(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = {"model_type": "doubler", "n_layer": 2}
    original = Doubler(config)
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    architecture = Architecture("doubler", f"{__name__}:Doubler")
    sys.modules.setdefault(__name__, sys.modules[Doubler.__module__])

    model = build_model(checkpoint, device="cpu", architectures=[architecture])
    assert torch.equal(model.logits(BATCH), original(BATCH.input_ids))
    with model.sites.read(["resid_post.1"]) as found:
        model.logits(BATCH)
    assert found["resid_post.1"].shape == (2, 9, 8)
    with pytest.raises(BadInput, match=r"two plugins build doubler: .* and elsewhere:build"):
        build_model(checkpoint, architectures=[architecture, Architecture("doubler", "elsewhere:build")])
    with pytest.raises(BadInput, match="nowhere_at_all:build, which builds doubler, cannot be imported"):
        build_model(checkpoint, architectures=[Architecture("doubler", "nowhere_at_all:build")])


def test_a_program_may_end_while_weights_are_still_being_copied(tiny: Tiny) -> None:
    program = (
        "import sys; from modelscope_app.models import build_model; from modelscope_app.checkpoints import open_checkpoint\n"
        "import modelscope_app.models.mapping as mapping; mapping._STEP_BYTES = 4096\n"
        "build_model(open_checkpoint(sys.argv[1]), device='cpu'); print('built')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tiny("llama"))], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "built"), done.stderr
