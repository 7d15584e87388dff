"""Weights with more than one use, or another layout than Linear's, against gradients by autograd, one row at a time.

Curvature and scores are worked out densely beside them: vectors of a whole weight, curvature as a matrix in the Kronecker product of
two eigenbases, damping added to its eigenvalues.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from modelscope_influence import weights as weights_module
from modelscope_influence.analyses import factors, scores, self_influence
from modelscope_influence.factor_passes import CovariancePass, Labels
from modelscope_influence.objectives import LanguageTask, Scored
from modelscope_influence.params import FactorsParams, ScoresParams, SelfParams
from modelscope_influence.weights import Weight, chosen_weights
from plugins.influence.dense_reference import (
    DAMPING,
    EXACT,
    THROUGH_FLOAT32,
    VOCABULARY,
    Found,
    Losses,
    all_gradients,
    assert_agrees,
    dense,
    found_by_plugin,
    gpt2,
    llama,
    loaded,
    next_token_loss,
    opt,
    relative_error,
    token_rows,
    within,
)
from plugins.probes.score.in_process import run_in_process, written_rows
from torch import nn

from modelscope_app.api import BadInput, JobContext
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.data import items_source
from modelscope_app.jobs.randomness import keyed_generator
from modelscope_app.models.built import BuiltModel
from modelscope_app.testing import write_checkpoint

# Small modules


class Sequences:
    """Sequences of vectors, or of token ids, each position with a class: what passes take for a task."""

    def __init__(self, module: nn.Module, inputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], per_batch: int = 4) -> None:
        self.module, self.inputs, self.targets, self.per_batch = module, inputs, targets, per_batch

    @property
    def ids(self) -> Sequence[int]:
        return range(len(self.inputs))

    def source(self, ids: Sequence[int] | None = None) -> Any:
        return items_source(list(self.ids if ids is None else ids), self.per_batch, "rows")

    def forward(self, batch: Sequence[int]) -> Scored:
        lengths = torch.tensor([len(self.inputs[id]) for id in batch])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        padded = nn.utils.rnn.pad_sequence([self.inputs[id] for id in batch], batch_first=True)
        row = torch.arange(len(batch))[:, None].expand_as(mask)[mask]
        return Scored(self.module(padded)[mask], torch.cat([self.targets[id] for id in batch]), row, tuple(batch), mask)

    def positions(self, id: int) -> int:
        return len(self.inputs[id])

    def loss(self, module: nn.Module, row: int) -> torch.Tensor:
        """Of one row alone."""
        logits = module(self.inputs[row][None])[0]
        return sum(
            (-logits[at].log_softmax(0)[target] for at, target in enumerate(self.targets[row])), torch.zeros((), dtype=torch.float64)
        )


class Twice(nn.Module):
    """One linear layer, applied twice; the output of a third time is thrown away where that is asked for."""

    def __init__(self, bias: bool, is_wasteful: bool = False) -> None:
        super().__init__()
        self.shared, self.head, self.is_wasteful = nn.Linear(4, 4, bias=bias), nn.Linear(4, 3), is_wasteful

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.is_wasteful:
            self.shared(inputs)
        hidden: torch.Tensor = self.head(self.shared(self.shared(inputs).tanh()).tanh())
        return hidden


class Siblings(nn.Module):
    """Two linear layers that share a weight, and a bias of each or of both."""

    def __init__(self, bias: bool = True, same_bias: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4, bias=bias), nn.Linear(4, 4, bias=bias), nn.Linear(4, 3)
        self.second.weight = self.first.weight
        if bias and same_bias:
            self.second.bias = self.first.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.head(self.second(self.first(inputs).tanh()).tanh())
        return hidden


class Words(nn.Module):
    """Embedded tokens, each classified by itself; the table has a row that is never learnt where that is asked for."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4, padding_idx=padding_idx), nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.table(tokens).tanh())
        return logits


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Whatever a run is about; the modules here have no file."""
    tensors = {"layers.0.weight": torch.ones(3, 4).double(), "layers.0.bias": torch.zeros(3).double()}
    return write_checkpoint(tmp_path / "mlp", tensors, {"model_type": "mlp", "layer_sizes": [4, 3], "activation": "tanh"})


def built(module: nn.Module, classifier: Path) -> BuiltModel:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return BuiltModel(module, open_checkpoint(classifier), "other")


def sequences(module: nn.Module, rows: int = 12, tokens: int | None = None) -> Sequences:
    """Rows of unequal lengths."""
    generator = torch.Generator().manual_seed(4)
    inputs, targets = [], []
    for row in range(rows):
        length = 1 + row % 5
        drawn = torch.randn(length, 4, generator=generator, dtype=torch.float64)
        inputs.append(drawn if tokens is None else torch.randint(tokens, (length,), generator=generator))
        targets.append(torch.randint(3, (length,), generator=generator))
    return Sequences(module, inputs, targets)


def assert_module_agrees(
    folder: Path, classifier: Path, module: nn.Module, modules: str, users: Sequence[Sequence[str]], **of: Any
) -> None:
    model = built(module, classifier)
    weights, task, queries = chosen_weights(model, modules), sequences(module, **of), [0, 3, 7]
    found = within(folder, classifier, lambda context: found_by_plugin(context, task, weights, queries))
    expected = [dense(module, weight, names, task.loss, task.ids) for weight, names in zip(weights, users, strict=True)]
    assert_agrees(found, expected, queries, EXACT)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_layer_that_is_called_twice_has_the_gradient_of_both_calls(tmp_path: Path, classifier: Path, bias: bool) -> None:
    assert_module_agrees(tmp_path / "run", classifier, Twice(bias), "all", [["shared"], ["head"]])


def test_a_call_whose_output_nothing_reads_adds_nothing_to_a_gradient(tmp_path: Path, classifier: Path) -> None:
    """Its inputs and its output gradients, which are zero, are not in the covariances either."""
    module = Twice(bias=True, is_wasteful=True)
    weights = chosen_weights(built(module, classifier), "shared")
    task = sequences(module)
    expected = dense(module, weights[0], ["shared"], task.loss, task.ids)
    assert float(expected.gradients.norm()) > 0
    assert relative_error(all_gradients(task, weights)[0], expected.gradients) < EXACT


@pytest.mark.parametrize("is_called", [True, False])
def test_a_layer_that_no_loss_hangs_on_is_refused_by_name(tmp_path: Path, classifier: Path, is_called: bool) -> None:
    class Spare(Twice):
        def __init__(self) -> None:
            super().__init__(bias=True)
            self.spare = nn.Linear(4, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if is_called:
                self.spare(inputs)
            return super().forward(inputs)

    module = Spare()
    weights, task = chosen_weights(built(module, classifier), "all"), sequences(module)
    with pytest.raises(BadInput, match=r"^spare has no part in the loss of any row; leave it out of --modules$"):
        within(tmp_path / "run", classifier, lambda context: found_by_plugin(context, task, weights, [0]))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("named", ["all", "first", "second, head", "first,second,head"])
def test_layers_that_share_a_weight_are_one(tmp_path: Path, classifier: Path, bias: bool, named: str) -> None:
    """Also where only one of them is named."""
    users = [["first", "second"], ["head"]][: 1 if named == "first" else 2]
    assert_module_agrees(tmp_path / "run", classifier, Siblings(bias), named, users)


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_a_table_of_embeddings_is_a_layer_on_one_hot_tokens(tmp_path: Path, classifier: Path, padding_idx: int | None) -> None:
    assert_module_agrees(tmp_path / "run", classifier, Words(padding_idx), "table", [["table"]], tokens=5)


def test_a_weight_shared_with_another_bias_is_refused(classifier: Path) -> None:
    with pytest.raises(BadInput, match=r"^first and second share a weight and not its bias, which is not supported$"):
        chosen_weights(built(Siblings(same_bias=False), classifier), "all")
    half = Siblings()
    half.second.bias = None
    with pytest.raises(BadInput, match="first and second share a weight and not its bias"):
        chosen_weights(built(half, classifier), "second")


def test_layers_that_read_one_weight_from_both_sides_are_refused(classifier: Path) -> None:
    from transformers.pytorch_utils import Conv1D

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.straight, self.transposed = nn.Linear(4, 4), Conv1D(4, 4)
            self.transposed.weight, self.transposed.bias = self.straight.weight, self.straight.bias

    with pytest.raises(BadInput, match="straight and transposed share a weight in a way that is not supported"):
        chosen_weights(built(Both(), classifier), "all")


def test_a_factor_that_is_too_wide_is_refused_with_its_size(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(Twice(bias=True), classifier)
    monkeypatch.setattr(weights_module, "LARGEST_FACTOR", 4)
    with pytest.raises(BadInput, match=r"^shared: a factor would be 5 wide, and at most 4 are decomposed; leave it out$"):
        chosen_weights(model, "all")
    monkeypatch.setattr(weights_module, "LARGEST_FACTOR", 5)
    assert len(chosen_weights(model, "all")) == 2


def test_the_limit_is_16384(classifier: Path) -> None:
    for width, is_refused in ((16_384, False), (16_385, True)):
        module = nn.Sequential(nn.Linear(width, 1, bias=False))
        model = BuiltModel(module, open_checkpoint(classifier), "other")
        if is_refused:
            with pytest.raises(BadInput, match=r"0: a factor would be 16,385 wide, and at most 16,384"):
                chosen_weights(model, "all")
        else:
            assert chosen_weights(model, "all")[0].inputs == width


# Language models


def assert_language_model_agrees(
    folder: Path, checkpoint: Path, modules: str, users: Sequence[Sequence[str]], limit: float, rows: list[list[int]] | None = None
) -> None:
    rows = rows or token_rows()
    path = written_rows(folder / "rows.jsonl", [{"input_ids": row} for row in rows])
    queries = [1, 4]

    def work(context: JobContext) -> tuple[list[Weight], Found]:
        weights = chosen_weights(context.model(), modules)
        return weights, found_by_plugin(context, LanguageTask(context, context.model(), path, 20), weights, queries)

    weights, found = within(folder / "run", checkpoint, work)
    module = loaded(checkpoint)
    expected = [dense(module, weight, names, next_token_loss(rows), range(len(rows))) for weight, names in zip(weights, users, strict=True)]
    assert_agrees(found, expected, queries, limit)


TIED = ["model.embed_tokens", "lm_head"]


@pytest.mark.parametrize("named", ["lm_head", "model.embed_tokens"])
def test_a_head_tied_to_the_embedding_is_one_weight_with_two_uses(tmp_path: Path, named: str) -> None:
    """Each position of a row counts twice in the covariances: as the head's, and as the embedding's."""
    assert_language_model_agrees(tmp_path, llama(tmp_path / "llama", tied=True), named, [TIED], THROUGH_FLOAT32)


def test_a_head_that_is_not_tied_is_a_weight_like_any_other(tmp_path: Path) -> None:
    checkpoint = llama(tmp_path / "llama", tied=False)
    assert_language_model_agrees(tmp_path, checkpoint, "lm_head,model.embed_tokens", [[TIED[0]], [TIED[1]]], THROUGH_FLOAT32)


def test_the_tied_head_of_gpt2(tmp_path: Path) -> None:
    assert_language_model_agrees(tmp_path, gpt2(tmp_path / "gpt2"), "lm_head", [["transformer.wte", "lm_head"]], EXACT)


def test_drawn_labels_count_once_for_each_draw_in_a_tied_weight(tmp_path: Path) -> None:
    """What the embedding is given does not depend on them, what comes back to it does; as inputs and outputs they change places."""
    checkpoint, rows, draws = gpt2(tmp_path / "gpt2"), token_rows(), 3
    path = written_rows(tmp_path / "rows.jsonl", [{"input_ids": row} for row in rows])

    def work(context: JobContext) -> tuple[list[Weight], dict[str, torch.Tensor]]:
        weights, task = chosen_weights(context.model(), "lm_head"), LanguageTask(context, context.model(), path, 20)
        reading = CovariancePass(task, weights, Labels("true", draws, context.generator), torch.float64)
        return weights, context.fold("mine", reading, task.source())

    [weight], found = within(tmp_path / "run", checkpoint, work)
    module = loaded(checkpoint)

    def loss_of(draw: int) -> Losses:
        def loss(module: nn.Module, row: int) -> torch.Tensor:
            logits = module(input_ids=torch.tensor([rows[row]]), use_cache=False).logits[0, :-1].log_softmax(-1)
            numbers = torch.rand(len(logits), generator=keyed_generator(0, f"covariances labels {draw}", row), dtype=torch.float64)
            drawn = (logits.detach().exp().cumsum(-1) < numbers[:, None]).sum(-1)
            return -logits.gather(1, drawn[:, None]).sum()

        return loss

    seen = [dense(module, weight, ["transformer.wte", "lm_head"], loss_of(draw), range(len(rows))) for draw in range(draws)]
    count = int(found["positions lm_head"])
    assert count == 2 * sum(map(len, rows))
    for at, name in enumerate(("inputs", "outputs")):
        expected = torch.stack([one.covariances[at] for one in seen]).mean(0)
        assert relative_error(found[f"{name} lm_head"] / count, expected) < EXACT


def test_the_layers_of_gpt2_are_stored_transposed(tmp_path: Path) -> None:
    users = [[f"transformer.h.{layer}.mlp.{name}"] for layer in range(2) for name in ("c_fc", "c_proj")]
    assert_language_model_agrees(tmp_path, gpt2(tmp_path / "gpt2"), "mlp", users, EXACT)


def test_attention_of_gpt2(tmp_path: Path) -> None:
    users = [[f"transformer.h.{layer}.attn.{name}"] for layer in range(2) for name in ("c_attn", "c_proj")]
    assert_language_model_agrees(tmp_path, gpt2(tmp_path / "gpt2"), "attention", users, EXACT)


def test_rows_flattened_inside_a_model_are_told_apart(tmp_path: Path) -> None:
    """OPT hands its MLPs all positions of all rows as one long list."""
    users = [[f"model.decoder.layers.{layer}.{name}"] for layer in range(2) for name in ("fc1", "fc2")]
    assert_language_model_agrees(tmp_path, opt(tmp_path / "opt"), "mlp", users, THROUGH_FLOAT32, token_rows(first=4))


def test_a_table_of_positions_that_all_rows_share_is_refused(tmp_path: Path) -> None:
    """GPT-2 looks positions up once for the whole batch, so that no row has a gradient of its own there."""
    path = written_rows(tmp_path / "rows.jsonl", [{"input_ids": row} for row in token_rows((5, 5, 5))])
    given = FactorsParams(train=path, modules="transformer.wpe", fisher="empirical")
    with pytest.raises(BadInput, match=r"^transformer\.wpe is not applied to each row by itself .*; leave it out of --modules$"):
        run_in_process(factors.run, given, tmp_path / "run", [gpt2(tmp_path / "gpt2")])


def test_the_analyses_say_the_same_of_a_tied_head(tmp_path: Path) -> None:
    checkpoint, rows, queries = gpt2(tmp_path / "gpt2"), token_rows(), token_rows((4, 6))
    train = written_rows(tmp_path / "rows.jsonl", [{"input_ids": row} for row in rows])
    asked = written_rows(tmp_path / "queries.jsonl", [{"input_ids": row} for row in queries])
    given = {"train": train, "modules": "lm_head", "fisher": "empirical", "damping": DAMPING, "batch_size": 20}

    module = loaded(checkpoint)
    weight = chosen_weights(BuiltModel(module, open_checkpoint(checkpoint), "causal-lm"), "lm_head")[0]
    users = ["transformer.wte", "lm_head"]
    seen = dense(module, weight, users, next_token_loss(rows), range(len(rows)))
    of_queries = dense(module, weight, users, next_token_loss(queries), range(len(queries))).gradients

    pairs = run_in_process(scores.run, ScoresParams(queries=asked, **given), tmp_path / "scores", [checkpoint]).table("pairwise")
    found = torch.zeros(len(queries), len(rows), dtype=torch.float64)
    found[pairs["query"].to_torch(), pairs["example"].to_torch()] = pairs["score"].to_torch()
    assert relative_error(found, seen.scores(of_queries)) < EXACT
    assert (pairs["delta_measure"] * len(rows)).to_list() == pytest.approx(pairs["score"].to_list(), rel=1e-12)

    own = run_in_process(self_influence.run, SelfParams(**given), tmp_path / "self", [checkpoint]).table("self")
    assert relative_error(own["score"].to_torch(), seen.scores(seen.gradients).diag()) < EXACT
    assert relative_error(own["gradient_norm"].to_torch(), seen.gradients.flatten(1).norm(dim=1)) < EXACT

    table = run_in_process(factors.run, FactorsParams(**given), tmp_path / "factors", [checkpoint]).table("factors")
    mean = float(seen.curvature.trace()) / weight.size
    assert table["module"].to_list() == ["lm_head"]
    assert (table["outputs"][0], table["inputs"][0]) == (VOCABULARY, 6)
    assert table["lambda_mean"][0] == pytest.approx(mean, rel=EXACT)
    assert table["damping"][0] == pytest.approx(DAMPING * mean, rel=EXACT)
    assert table["positions"][0] == len(seen.inputs) == 2 * sum(map(len, rows))


def test_heads_and_embeddings_are_taken_only_where_they_are_named(tmp_path: Path) -> None:
    model = BuiltModel(loaded(llama(tmp_path / "llama", tied=False)), open_checkpoint(tmp_path / "llama"), "causal-lm")
    inside = [name for name, module in model.module.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    for everything in ("*", "all", "mlp,attention"):
        assert sorted(weight.name for weight in chosen_weights(model, everything)) == sorted(inside)
    assert [weight.name for weight in chosen_weights(model, "mlp")] == [name for name in inside if ".mlp." in name]
    assert [weight.name for weight in chosen_weights(model, "attention")] == [name for name in inside if ".self_attn." in name]
    assert [weight.name for weight in chosen_weights(model, "lm_head , model.layers.1.mlp.up_proj")] == [
        "model.layers.1.mlp.up_proj",
        "lm_head",
    ]
    for nothing in ("lm_*", "*embed*", "model.norm", "model.layers.7.*"):
        with pytest.raises(BadInput, match=r"matches no linear layer inside the model's layers; there are model\.layers\.0\.self_attn"):
            chosen_weights(model, nothing)
    with pytest.raises(BadInput, match=r"'lm_head\.weight' matches no linear layer"):
        chosen_weights(model, "mlp,lm_head.weight")
