"""What must not change factors and scores: batches, padding, shards, a cancelled run. And what must: rows that are there twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from modelscope_influence.analyses import factors, scores
from modelscope_influence.contractions import Basis
from modelscope_influence.factor_passes import CovariancePass, EigenvaluePass, Labels
from modelscope_influence.fitting import Settings, fit
from modelscope_influence.objectives import ClassifierTask, LanguageTask, Scored, Task, drawn_labels, labels
from modelscope_influence.params import FactorsParams, ScoresParams
from modelscope_influence.recording import UseOfWeight, recorded
from modelscope_influence.score_passes import PositionPass, ScorePass, SelfPass, blocks, query_gradients
from modelscope_influence.weights import Weight, chosen_weights
from plugins.influence.dense_reference import (
    DAMPING,
    EXACT,
    THROUGH_FLOAT32,
    Dense,
    dense,
    gpt2,
    llama,
    loaded,
    next_token_loss,
    relative_error,
    token_rows,
    within,
)
from plugins.probes.score.in_process import Ran, run_in_process, saved_llama, word_tokenizer, written_rows
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM

from modelscope_app.api import JobCancelled, JobContext
from modelscope_app.testing import assert_fold_merges, write_checkpoint

LAYERS = (5, 6, 4, 3)
IN_FLOAT64 = 1e-10
"""Relative norm: sums in another order."""
Side = Literal["left", "right"]


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Called before a run, so that it finds nothing of an earlier one's."""
    count = 0

    def forget() -> None:
        nonlocal count
        count += 1
        monkeypatch.setenv("MSCOPE_CACHE_DIR", str(tmp_path / f"cache-{count}"))

    return forget


def mlp(folder: Path) -> Path:
    """In float64."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for at, (into, out) in enumerate(pairwise(LAYERS)):
        tensors[f"layers.{at}.weight"] = torch.randn(out, into, generator=generator, dtype=torch.float64)
        tensors[f"layers.{at}.bias"] = torch.randn(out, generator=generator, dtype=torch.float64)
    return write_checkpoint(folder, tensors, {"model_type": "mlp", "layer_sizes": list(LAYERS), "activation": "tanh"})


def labelled(count: int = 30, seed: int = 1) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, LAYERS[0], generator=generator).tolist()
    return [{"features": row, "label": at % LAYERS[-1]} for at, row in enumerate(features)]


class Files(NamedTuple):
    """What an analysis is given."""

    checkpoint: Path
    train: str
    queries: str


@pytest.fixture
def classified(tmp_path: Path) -> Files:
    train = written_rows(tmp_path / "train.jsonl", labelled())
    return Files(mlp(tmp_path / "mlp"), train, written_rows(tmp_path / "queries.jsonl", labelled(3, seed=2)))


@pytest.fixture(params=["llama", "gpt2"])
def written(tmp_path: Path, request: pytest.FixtureRequest) -> Files:
    make = {"llama": llama, "gpt2": gpt2}[request.param]
    train = written_rows(tmp_path / "train.jsonl", [{"input_ids": row} for row in token_rows()])
    queries = written_rows(tmp_path / "queries.jsonl", [{"input_ids": row} for row in token_rows((4, 6))])
    return Files(make(tmp_path / request.param, tied=True), train, queries)


def limit_of(files: Files) -> float:
    return {"mlp": IN_FLOAT64, "gpt2": EXACT}.get(files.checkpoint.name, THROUGH_FLOAT32)


class Result(NamedTuple):
    """What came of it."""

    curvature: dict[str, torch.Tensor]
    """(out * in, out * in) by weight."""
    scores: torch.Tensor
    """(query, example)."""
    positions: dict[str, int]


def outcome(files: Files, folder: Path, **params: Any) -> Result:
    """By the analyses themselves."""
    given = {"train": files.train, "damping": DAMPING, "modules": "all", **params}
    fitted = run_in_process(factors.run, FactorsParams(**given), folder / "factors", [files.checkpoint])
    table = fitted.table("factors")
    found = fitted.run.tensors("curvature")
    curvature = {name: matrix(found, name) for name in table["module"]}
    positions = dict(zip(table["module"], table["positions"], strict=True))
    ran = run_in_process(scores.run, ScoresParams(queries=files.queries, **given), folder / "scores", [files.checkpoint])
    return Result(curvature, score_matrix(ran), positions)


def matrix(found: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    eigenvalues = found[f"eigenvalues {name}"].flatten().diag()
    if f"inputs {name}" not in found:
        return eigenvalues
    both = torch.kron(found[f"outputs {name}"].contiguous(), found[f"inputs {name}"].contiguous())
    return both @ eigenvalues @ both.T


def score_matrix(ran: Ran) -> torch.Tensor:
    pairs = ran.table("pairwise")
    query, example = pairs["query"].to_torch(), pairs["example"].to_torch()
    found = torch.full((int(query.max()) + 1, int(example.max()) + 1), torch.nan, dtype=torch.float64)
    found[query, example] = pairs["score"].fill_null(math.nan).to_torch()
    return found


def assert_same(one: Result, other: Result, limit: float) -> None:
    assert one.positions == other.positions
    for name, curvature in one.curvature.items():
        assert relative_error(other.curvature[name], curvature) < limit, name
    assert relative_error(other.scores, one.scores) < limit


# Batches


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "diagonal"])
@pytest.mark.parametrize("fisher", ["true", "exact", "empirical"])
def test_batches_of_features_change_nothing(
    tmp_path: Path, classified: Files, curvature: str, fisher: str, no_cache: Callable[[], None]
) -> None:
    params = {"curvature": curvature, "fisher": fisher, "label_draws": 3}
    results = []
    for size in (1000, 7, 1):
        no_cache()
        results.append(outcome(classified, tmp_path / f"run-{size}", batch_size=size, **params))
    assert_same(results[0], results[1], IN_FLOAT64)
    assert_same(results[0], results[2], IN_FLOAT64)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_batches_of_texts_change_nothing(tmp_path: Path, written: Files, fisher: str, no_cache: Callable[[], None]) -> None:
    results = []
    for size in (1000, 18, 1):
        no_cache()
        results.append(outcome(written, tmp_path / f"run-{size}", batch_size=size, fisher=fisher, label_draws=2))
    assert_same(results[0], results[1], limit_of(written))
    assert_same(results[0], results[2], limit_of(written))


def test_queries_in_parts_are_scored_the_same(tmp_path: Path, classified: Files) -> None:
    given = {"train": classified.train, "queries": classified.queries}
    tables = []
    for size in (100, 2, 1):
        params = ScoresParams(queries_at_once=size, **given)
        tables.append(run_in_process(scores.run, params, tmp_path / f"run-{size}", [classified.checkpoint]).table("pairwise"))
    for apart in tables[1:]:
        for name in ("score", "relatif", "gradient_cosine", "loss"):
            assert relative_error(apart[name].to_torch(), tables[0][name].to_torch()) < IN_FLOAT64


def test_the_label_drawn_for_a_position_hangs_on_its_row_alone() -> None:
    """It is the first whose probability, added to those before it, exceeds a number of the row's own."""
    generator = torch.Generator().manual_seed(1)
    lengths = {4: 3, 9: 1, 2: 70, 0: 5}
    logits = {id: 3 * torch.randn(length, 6, generator=generator, dtype=torch.float64) for id, length in lengths.items()}

    def own(id: int) -> torch.Generator:
        return torch.Generator().manual_seed(100 + id)

    def scored(ids: Sequence[int]) -> Scored:
        row = torch.cat([torch.full((lengths[id],), at) for at, id in enumerate(ids)])
        return Scored(torch.cat([logits[id] for id in ids]), torch.zeros(len(row), dtype=torch.int64), row, tuple(ids), None)

    expected = {}
    for id in lengths:
        numbers = torch.rand(lengths[id], generator=own(id), dtype=torch.float64).tolist()
        expected[id] = []
        for number, probabilities in zip(numbers, logits[id].softmax(-1).tolist(), strict=True):
            label, total = 0, probabilities[0]
            while total < number:
                label += 1
                total += probabilities[label]
            expected[id].append(label)
    for ids in ([4, 9, 2, 0], [0, 2], [2], [9, 0, 4]):
        found = drawn_labels(scored(ids), [own(id) for id in ids]).tolist()
        assert found == [label for id in ids for label in expected[id]]
    mixed = scored([4, 0])
    order = torch.tensor([3, 0, 4, 1, 5, 2, 6, 7])  # positions of two rows, in turn
    turned = mixed._replace(logits=mixed.logits[order], row=mixed.row[order], targets=mixed.targets[order])
    assert torch.equal(drawn_labels(turned, [own(4), own(0)]), drawn_labels(mixed, [own(4), own(0)])[order])


def test_every_stage_and_draw_has_labels_of_its_own() -> None:
    asked: list[tuple[str, int | str]] = []

    def generate(stage: str, key: int | str) -> torch.Generator:
        asked.append((stage, key))
        return torch.Generator().manual_seed(len(asked))

    logits = torch.zeros(2, 3)
    scored = Scored(logits, torch.tensor([0, 1]), torch.tensor([0, 1]), (7, 4), None)
    drawn = list(labels(scored, "true", 2, generate, "covariances")) + list(labels(scored, "true", 1, generate, "eigenvalues"))
    assert len(set(asked)) == len(asked) == 6
    assert {key for _, key in asked} == {4, 7}
    assert [float(weight.square().sum()) for _, weight in drawn] == pytest.approx([1, 1, 2])  # two draws, half each, of two positions


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_are_scored_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    """What is left of the difference is the model's own rounding, which is some thousandths or less in each of its many steps."""
    limit = {torch.bfloat16: 0.4, torch.float16: 0.05}[dtype]
    train = written_rows(tmp_path / "train.jsonl", [{"input_ids": row} for row in token_rows()])
    checkpoint = llama(tmp_path / "llama", tied=False)
    wide = LlamaForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    wide.save_pretrained(tmp_path / "half")
    wide.float().save_pretrained(tmp_path / "float")
    given = {"modules": "all", "damping": 1, "fisher": "empirical"}
    half, full = (outcome(Files(tmp_path / name, train, train), tmp_path / f"run-{name}", **given) for name in ("half", "float"))
    assert float((half.scores - full.scores).norm() / full.scores.norm()) < limit
    for name, curvature in full.curvature.items():
        assert half.curvature[name].dtype == torch.float32
        assert float((half.curvature[name] - curvature).norm() / curvature.norm()) < limit


# Padding


def padded(task: LanguageTask, context: JobContext, side: Side, budget: int) -> LanguageTask:
    def source(ids: Sequence[int] | None = None) -> Any:
        return context.batches([task.examples[id] for id in (task.ids if ids is None else ids)], budget, side)

    task.source = source  # type: ignore[method-assign]
    return task


def padded_outcome(files: Files, folder: Path, side: Side, modules: str = "all") -> Result:
    """All rows in one batch, so that all but the longest are padded."""

    def work(context: JobContext) -> Result:
        model = context.model()
        task, queries = (padded(LanguageTask(context, model, path, 1000), context, side, 1000) for path in (files.train, files.queries))
        weights = chosen_weights(model, modules)
        fitted = fit(context, task, weights, Settings("ekfac", "true", 2), files.train).curvatures
        divided_by = blocks(fitted, DAMPING, context.model())
        asked = query_gradients(queries, weights, "loss", queries.ids, divided_by)
        found = context.fold("scores", ScorePass(task, weights, asked, divided_by, False, False), task.source())
        tensors = {}
        for name, curvature in fitted.items():
            assert curvature.basis is not None
            assert curvature.eigenvalues is not None
            tensors |= {f"inputs {name}": curvature.basis.inputs, f"outputs {name}": curvature.basis.outputs}
            tensors[f"eigenvalues {name}"] = curvature.eigenvalues
        matrices = {name: matrix(tensors, name) for name in fitted}
        return Result(matrices, found["scores"], {name: curvature.positions for name, curvature in fitted.items()})

    result: Result = within(folder, files.checkpoint, work)
    return result


@pytest.mark.parametrize("modules", ["all", "lm_head"])
def test_the_side_that_is_padded_changes_nothing(tmp_path: Path, written: Files, modules: str, no_cache: Callable[[], None]) -> None:
    results = []
    for side in ("left", "right"):
        no_cache()
        results.append(padded_outcome(written, tmp_path / side, side, modules))  # type: ignore[arg-type]
    assert_same(*results, limit_of(written))
    no_cache()
    alone = outcome(written, tmp_path / "alone", batch_size=1, label_draws=2, modules=modules)
    assert_same(results[0], alone, limit_of(written))


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_padding_is_embedded_as_changes_nothing(
    tmp_path: Path, written: Files, side: Side, no_cache: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row has the token that is padded with."""
    rows = [{"input_ids": row} for row in token_rows(first=1)]
    files = written._replace(
        checkpoint={"llama": llama, "gpt2": gpt2}[written.checkpoint.name](tmp_path / "other" / written.checkpoint.name, tied=False),
        train=written_rows(tmp_path / "rows.jsonl", rows),
        queries=written_rows(tmp_path / "asked.jsonl", rows[2:5]),
    )
    no_cache()
    before = padded_outcome(files, tmp_path / "before", side)
    tensors = load_file(files.checkpoint / "model.safetensors")
    table = next(name for name in tensors if "embed_tokens" in name or "wte" in name)
    tensors[table][0] = 1e6 * torch.randn(tensors[table].shape[1], generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    save_file(tensors, files.checkpoint / "model.safetensors", metadata={"format": "pt"})
    no_cache()
    assert_same(before, padded_outcome(files, tmp_path / "after", side), limit_of(files))


def test_padding_is_zero_in_inputs_in_the_column_of_the_bias_and_in_gradients() -> None:
    """Also where the objective would reach it."""
    layer = nn.Linear(3, 2).double().requires_grad_(False)
    weight = Weight("layer", (weights_use(layer),), 4, 2, True)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    given = torch.where(mask[..., None], torch.ones(2, 3, 3, dtype=torch.float64), torch.tensor(1e300, dtype=torch.float64))
    kept: list[UseOfWeight] = []
    with recorded([weight], lambda _, uses: kept.extend(uses)) as tape:
        output = layer(given)
        tape.mask = mask
        tape.backward((3 * output).sum())
    [use] = kept
    assert torch.equal(use.inputs, mask[..., None].expand(2, 3, 4).double())
    assert torch.equal(use.gradients, 3 * mask[..., None].expand(2, 3, 2).double())
    kept.clear()
    with recorded([weight], lambda _, uses: kept.extend(uses)) as tape:
        tape.backward(layer(given[:, 0]).sum())
    assert torch.equal(kept[0].inputs[..., -1], torch.ones(2, 1, dtype=torch.float64))
    assert not layer._forward_hooks


def weights_use(layer: nn.Module) -> Any:
    from modelscope_influence.weights import Use

    return Use(layer, "linear")


def test_prompts_carry_no_loss_and_count_in_the_covariances(tmp_path: Path) -> None:
    checkpoint = saved_llama(tmp_path / "llama", width=8, layers=2)
    LlamaForCausalLM.from_pretrained(checkpoint).double().save_pretrained(checkpoint)
    texts = [
        *(("are you doing", "harm ?"), ("sort the list", "please in year 2024 ."), ("a", "tea"), ("well done", "yes no alarm")),
        *(("code in the year 2023", "good"), ("tea", "please ? are you doing good")),
    ]
    path = written_rows(tmp_path / "rows.jsonl", [{"prompt": prompt, "completion": completion} for prompt, completion in texts])
    encode = word_tokenizer()
    rows = [(encode(prompt)["input_ids"], encode(completion)["input_ids"]) for prompt, completion in texts]

    def loss(module: nn.Module, row: int) -> torch.Tensor:
        prompt, completion = rows[row]
        logits = module(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].log_softmax(-1)
        return -sum((logits[len(prompt) - 1 + at][token] for at, token in enumerate(completion)), torch.zeros((), dtype=torch.float64))

    def work(context: JobContext) -> dict[str, torch.Tensor]:
        task, weights = LanguageTask(context, context.model(), path, 24), chosen_weights(context.model(), "mlp")
        labelling = Labels("empirical", 1, context.generator)
        found: dict[str, torch.Tensor] = context.fold("mine", CovariancePass(task, weights, labelling, torch.float64), task.source())
        return found

    found = within(tmp_path / "run", checkpoint, work)
    module = loaded(checkpoint)
    count = sum(len(prompt) + len(completion) for prompt, completion in rows)
    for name in ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"):
        layer = module.get_submodule(name)
        seen = dense(module, Weight(name, (), layer.in_features, layer.out_features, False), [name], loss, range(len(rows)))
        assert int(found[f"positions {name}"]) == len(seen.inputs) == count
        assert relative_error(found[f"inputs {name}"] / count, seen.covariances[0]) < THROUGH_FLOAT32
        assert relative_error(found[f"outputs {name}"] / count, seen.covariances[1]) < THROUGH_FLOAT32
    ran = run_in_process(scores.run, ScoresParams(train=path, queries=path), tmp_path / "scores", [checkpoint])
    with torch.no_grad():
        expected = [float(loss(module, row)) for row in range(len(rows))]
    losses = dict(zip(ran.table("pairwise")["example"], ran.table("pairwise")["loss"], strict=True))
    assert [losses[row] for row in range(len(rows))] == pytest.approx(expected, rel=1e-5)


# Shards, and runs that were cancelled


class InOrder:
    """A pass whose results are in the order of their names, not in that in which a saved state comes back."""

    def __init__(self, fold: Any) -> None:
        self.start, self.step, self.merge = fold.start, fold.step, fold.merge
        self._finish = fold.finish

    def finish(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(sorted(self._finish(state).items()))


def passes(context: JobContext, task: Task, weights: Sequence[Weight]) -> Iterator[tuple[Any, Any]]:
    """Every pass of the plugin, with its source."""
    for labelling in (Labels("true", 2, context.generator), Labels("empirical", 1, context.generator)):
        covariances = CovariancePass(task, weights, labelling, torch.float64)
        yield covariances, task.source()
        bases = {
            weight.name: Basis(
                torch.linalg.qr(torch.randn(weight.inputs, weight.inputs, dtype=torch.float64)).Q,
                torch.linalg.qr(torch.randn(weight.outputs, weight.outputs, dtype=torch.float64)).Q,
            )
            for weight in weights
        }
        yield EigenvaluePass(task, weights, labelling, bases, torch.float64), task.source()
        yield EigenvaluePass(task, weights, labelling, None, torch.float64), task.source()
    fitted = fit(context, task, weights, Settings("ekfac", "empirical", 1), __file__).curvatures
    divided_by = blocks(fitted, DAMPING, context.model())
    asked = query_gradients(task, weights, "loss", [0, 5], divided_by)
    for by_weight in (False, True):
        for cosines in (False, True):
            yield ScorePass(task, weights, asked, divided_by, by_weight, cosines), task.source()
    yield SelfPass(task, weights, divided_by), task.source()
    some = [1, 4, 6, 7]
    yield PositionPass(task, weights, asked, divided_by, 16, some), task.source(some)


def test_every_pass_over_features_merges(tmp_path: Path, classified: Files) -> None:
    """Also with a row that is set aside."""

    def spoil(task: ClassifierTask) -> ClassifierTask:
        task.data.features[11] = math.nan
        return task

    def work(context: JobContext) -> int:
        model, tried = context.model(), 0
        for fold, source in passes(context, spoil(ClassifierTask(context, model, classified.train, 2)), chosen_weights(model, "all")):
            assert_fold_merges(InOrder(fold), source, relative_tolerance=IN_FLOAT64, absolute_tolerance=1e-12)
            tried += 1
        return tried

    assert within(tmp_path / "run", classified.checkpoint, work) == 12


def test_every_pass_over_texts_merges(tmp_path: Path, written: Files) -> None:
    def work(context: JobContext) -> int:
        model, tried = context.model(), 0
        for fold, source in passes(context, LanguageTask(context, model, written.train, 14), chosen_weights(model, "mlp,lm_head")):
            assert_fold_merges(InOrder(fold), source, relative_tolerance=1e-5, absolute_tolerance=1e-7)
            tried += 1
        return tried

    assert within(tmp_path / "run", written.checkpoint, work) == 12


@pytest.mark.parametrize("cancelled_at", [(3,), (6, 3), (9, 14), (20, 4, 6)])
def test_a_run_that_was_cancelled_ends_as_one_that_was_not(
    tmp_path: Path, classified: Files, cancelled_at: Sequence[int], no_cache: Callable[[], None]
) -> None:
    params = ScoresParams(train=classified.train, queries=classified.queries, batch_size=7, per_module=True, queries_at_once=2)
    no_cache()
    whole = run_in_process(scores.run, params, tmp_path / "whole", [classified.checkpoint])
    no_cache()
    for count in cancelled_at:
        asked = 0

        def cancel_later(count: int = count) -> None:
            nonlocal asked
            asked += 1
            if asked == count:
                raise JobCancelled("enough")

        with pytest.raises(JobCancelled):
            run_in_process(scores.run, params, tmp_path / "run", [classified.checkpoint], check_cancelled=cancel_later)
    resumed = run_in_process(scores.run, params, tmp_path / "run", [classified.checkpoint])
    assert resumed.facts == whole.facts
    for name in ("pairwise", "modules"):
        assert resumed.table(name).equals(whole.table(name))


def test_fitted_curvature_is_found_again_and_says_the_same(tmp_path: Path, classified: Files) -> None:
    first, second = (outcome(classified, tmp_path / name) for name in ("one", "other"))
    assert_same(first, second, 1e-15)


# Rows that are there twice


def mlp_loss(rows: Sequence[dict[str, Any]]) -> Callable[[nn.Module, int], torch.Tensor]:
    def loss(module: nn.Module, row: int) -> torch.Tensor:
        logits = module(torch.tensor(rows[row]["features"], dtype=torch.float64)[None])[0]
        return -logits.log_softmax(0)[rows[row]["label"]]

    return loss


def dense_mlp(checkpoint: Path, rows: Sequence[dict[str, Any]], over: Sequence[int]) -> list[Dense]:
    layers = [nn.Linear(into, out, dtype=torch.float64) for into, out in pairwise(LAYERS)]
    names = [f"{2 * at}" for at in range(len(layers))]
    module = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))[:-1]
    stored = load_file(checkpoint / "model.safetensors")
    module.load_state_dict({f"{2 * int(name.split('.')[1])}.{name.split('.')[2]}": value for name, value in stored.items()})
    weights = [Weight(name, (), layer.in_features + 1, layer.out_features, True) for name, layer in zip(names, layers, strict=True)]
    return [dense(module, weight, [weight.name], mlp_loss(rows), over) for weight in weights]


@pytest.mark.parametrize("twice", [[0], [3, 3, 8], list(range(30))], ids=["one", "thrice", "all"])
def test_rows_that_are_there_twice_count_twice(tmp_path: Path, classified: Files, twice: Sequence[int]) -> None:
    rows, asked = labelled(), labelled(3, seed=2)
    order = [*range(len(rows)), *twice]
    train = written_rows(tmp_path / "more.jsonl", [rows[at] for at in order])
    found = outcome(classified._replace(train=train), tmp_path / "run", fisher="empirical", batch_size=8)
    expected = torch.zeros(len(asked), len(order), dtype=torch.float64)
    queries = dense_mlp(classified.checkpoint, asked, range(len(asked)))
    for at, layer in enumerate(dense_mlp(classified.checkpoint, rows, order)):
        assert found.positions[f"layers.{at}"] == len(order)
        assert relative_error(found.curvature[f"layers.{at}"], layer.curvature) < IN_FLOAT64
        expected += layer.scores(queries[at].gradients)
    assert relative_error(found.scores, expected) < IN_FLOAT64
    for place, row in enumerate(twice):
        assert torch.allclose(found.scores[:, len(rows) + place], found.scores[:, row], rtol=1e-10)


def test_rows_in_another_order_are_the_same_rows(tmp_path: Path, classified: Files) -> None:
    """With real labels; drawn ones hang on the row's number."""
    before = outcome(classified, tmp_path / "before", fisher="empirical")
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3)).tolist()
    rows = labelled()
    train = written_rows(tmp_path / "turned.jsonl", [rows[at] for at in order])
    after = outcome(classified._replace(train=train), tmp_path / "after", fisher="empirical", batch_size=4)
    assert_same(before._replace(scores=before.scores[:, order]), after, IN_FLOAT64)
    assert json.loads(Path(train).read_text().splitlines()[0])["label"] == order[0] % LAYERS[-1]


def test_the_losses_of_texts_are_those_of_the_model(tmp_path: Path, written: Files) -> None:
    ran = run_in_process(scores.run, ScoresParams(train=written.train, queries=written.queries), tmp_path / "run", [written.checkpoint])
    module, loss = loaded(written.checkpoint), next_token_loss(token_rows())
    losses = dict(zip(ran.table("pairwise")["example"], ran.table("pairwise")["loss"], strict=True))
    with torch.no_grad():
        assert [losses[row] for row in range(10)] == pytest.approx([float(loss(module, row)) for row in range(10)], rel=1e-6)
