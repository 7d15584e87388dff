"""Influence on a real model in half precision: the sentence a query repeats comes first, and a gradient is what autograd says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from modelscope_app.api import FinishedRun

pytestmark = pytest.mark.real
pytest_plugins = ["modelscope_app.testing"]

SUBJECTS = ("The cat", "The old king", "The moon", "The capital of France")
ENDS = ("sat on the mat and slept.", "refused to sign the treaty.", "orbits the Earth every month.", "is Paris, a large city.")
MODULES = "model.layers.29.mlp.gate_proj,model.layers.29.mlp.up_proj"


def test_what_a_query_repeats_taught_it_most(run_analysis: Callable[..., FinishedRun], smollm2_folder: Path, tmp_path: Path) -> None:
    train, queries = tmp_path / "train.jsonl", tmp_path / "queries.jsonl"
    texts = [f"{subject} {end}" for subject in SUBJECTS for end in ENDS]
    train.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    asked = [("The moon", " orbits the Earth every"), ("The capital of France", " is Paris,")]
    queries.write_text("".join(json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in asked))
    run = run_analysis("influence.scores", smollm2_folder, train=str(train), queries=str(queries), modules=MODULES)
    for query, (prompt, completion) in enumerate(asked):
        table = run.table("pairwise")
        first = table.filter(table["query"] == query)["example"][0]
        assert texts[first].startswith(prompt + completion)

    own = run_analysis("influence.self", smollm2_folder, train=str(train), modules=MODULES).table("self")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval().requires_grad_(False)
    weights = [model.get_parameter(f"{name}.weight").requires_grad_() for name in MODULES.split(",")]
    for row in (0, 10):
        ids = tokenizer(texts[row], return_tensors="pt").input_ids
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        norm = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, weights)]).norm()
        # the run is in bfloat16
        assert own["loss"][row] == pytest.approx(float(loss.detach()), rel=0.03)
        assert own["gradient_norm"][row] == pytest.approx(float(norm), rel=0.1)
