"""What kronfluence answered (`tests/oracles/ask_kronfluence.py`; `make oracles` asks again) is what the definitions say.

Here they are worked out densely: one example at a time by autograd, each layer's gradients as flat vectors, curvature in the Kronecker
product of two eigenbases, damping added to its eigenvalues. Answers in which two such different ways agree are ones to hold
`modelscope_influence` against.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from oracles import toy_sequence_model
from safetensors import safe_open
from torch import nn

from modelscope_app.models.mlp import mlp_from_config

WITHIN = {"mlp": 1e-9, "sequence": 1e-9, "tiny_llama": 1e-5}
"""Relative norms by which answers may be missed: float64 sums in another order, which a damping of 1e-8 magnifies. A Llama of transformers
computes its norms in float32 whatever it is made of; half a unit in the last place there moves scores by 2e-6."""

TENTH_OF_MEAN = "heuristic"


class Answers(NamedTuple):
    """One file of answers."""

    about: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def of(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors by what their name has after `prefix`."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


class Layer(NamedTuple):
    """What passed through a linear layer, and came back."""

    inputs: torch.Tensor
    """(position, input), of all examples one after another; the last column is 1 where the layer has a bias."""
    output_gradients: torch.Tensor
    """(position, output)"""
    gradients: torch.Tensor
    """(example, output * input): of the weight, beside it of the bias."""


class Eigen(NamedTuple):
    """A curvature as basis @ diag(eigenvalues) @ basis.T."""

    basis: torch.Tensor
    eigenvalues: torch.Tensor

    def damped(self, damping: str) -> torch.Tensor:
        """Eigenvalues and damping together."""
        return self.eigenvalues + (0.1 * self.eigenvalues.mean() if damping == TENTH_OF_MEAN else float(damping))


@cache
def answers(name: str) -> Answers:
    with safe_open(Path(toy_sequence_model.__file__).with_name(f"kronfluence_{name}.safetensors"), "pt") as file:
        return Answers(json.loads(file.metadata()["about"]), {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118


def model_and_loss(name: str) -> tuple[nn.Module, Callable[[dict[str, torch.Tensor]], torch.Tensor]]:
    """The case's model in float64, and the summed loss of a batch."""
    config = answers(name).about["config"]
    if name == "mlp":
        model: nn.Module = mlp_from_config(config, name)
    elif name == "sequence":
        model = toy_sequence_model.ToySequenceModel()
    else:
        from transformers import LlamaConfig, LlamaForCausalLM

        model = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in config.items() if key != "model_type"}))
    model.double().load_state_dict(answers(name).of("model/"))

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if name == "mlp":
            return nn.functional.cross_entropy(model(batch["features"]), batch["labels"], reduction="sum")
        logits = model(batch["ids"]) if name == "sequence" else model(input_ids=batch["ids"], use_cache=False).logits
        return toy_sequence_model.next_token_loss(logits, batch["ids"])

    return model, loss


@cache
def recorded(name: str, part: str) -> dict[str, Layer]:
    """Each layer, seen over the examples of `train` or `query`, one at a time."""
    model, loss = model_and_loss(name)
    layers = {layer: model.get_submodule(layer) for layer in answers(name).about["layers"]}
    passed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for layer, module in layers.items():
        module.register_forward_hook(lambda _, inputs, output, layer=layer: passed.update({layer: (inputs[0], output)}))
    columns: dict[str, list[tuple[torch.Tensor, ...]]] = {layer: [] for layer in layers}
    batch = answers(name).of(f"{part}/")
    for row in range(len(next(iter(batch.values())))):
        value = loss({key: tensor[row : row + 1] for key, tensor in batch.items()})
        for layer, module in layers.items():
            inputs, output = passed[layer]
            of_output, *of_parameters = torch.autograd.grad(value, [output, *module.parameters()], retain_graph=True)
            ones = [torch.ones(*inputs.shape[:-1], 1)] if module.bias is not None else []
            beside = [gradient.reshape(module.out_features, -1) for gradient in of_parameters]
            columns[layer].append(
                (
                    torch.cat([inputs.detach(), *ones], -1).flatten(0, -2),
                    of_output.flatten(0, -2),
                    torch.cat(beside, 1).flatten()[None],
                )
            )
    return {layer: Layer(*(torch.cat(column) for column in zip(*seen, strict=True))) for layer, seen in columns.items()}


def covariance(vectors: torch.Tensor) -> torch.Tensor:
    """(d, d) mean of v v^T over the rows v; not centred."""
    return vectors.T @ vectors / len(vectors)


def curvature(name: str, layer: str, strategy: str) -> Eigen:
    """What a strategy takes the Fisher matrix of a layer to be."""
    seen = recorded(name, "train")[layer]
    size = seen.gradients.shape[1]
    if strategy == "identity":
        return Eigen(torch.eye(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64))
    if strategy == "diagonal":
        return Eigen(torch.eye(size, dtype=torch.float64), seen.gradients.square().mean(0))
    of_outputs, of_inputs = (torch.linalg.eigh(covariance(vectors)) for vectors in (seen.output_gradients, seen.inputs))
    basis = torch.kron(of_outputs.eigenvectors, of_inputs.eigenvectors)
    if strategy == "kfac":
        return Eigen(basis, torch.kron(of_outputs.eigenvalues, of_inputs.eigenvalues))
    return Eigen(basis, (seen.gradients @ basis).square().mean(0))


def scores(name: str, layer: str, strategy: str, damping: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairwise (query, example) and self (example,) scores of one layer."""
    eigen = curvature(name, layer, strategy)
    divisors = eigen.eigenvalues if strategy == "identity" else eigen.damped(damping)
    query, train = (recorded(name, part)[layer].gradients @ eigen.basis for part in ("query", "train"))
    return (query / divisors) @ train.T, (train.square() / divisors).sum(1)


def relative_error(found: torch.Tensor, answer: torch.Tensor) -> float:
    assert found.shape == answer.shape
    assert found.dtype == answer.dtype == torch.float64
    return float((found - answer).norm() / answer.norm())


each_case = pytest.mark.parametrize("name", WITHIN)


@pytest.mark.parametrize("name", ["mlp", "sequence"])
def test_factors_are_those_of_the_definitions(name: str) -> None:
    stored = answers(name)
    for layer, seen in recorded(name, "train").items():
        assert relative_error(covariance(seen.inputs), stored.tensors[f"activation_covariance/{layer}"]) < WITHIN[name]
        assert relative_error(covariance(seen.output_gradients), stored.tensors[f"gradient_covariance/{layer}"]) < WITHIN[name]
        basis, eigenvalues = curvature(name, layer, "ekfac")
        assert relative_error(basis @ eigenvalues.diag() @ basis.T, stored.tensors[f"curvature/{layer}"]) < WITHIN[name]
        assert relative_error(eigenvalues.sort().values, stored.tensors[f"lambda/{layer}"].flatten().sort().values) < WITHIN[name]


def test_curvature_of_larger_layers_has_the_diagonal_and_the_norm_of_the_definition() -> None:
    name = "tiny_llama"
    stored = answers(name)
    for layer in stored.about["layers"]:
        basis, eigenvalues = curvature(name, layer, "ekfac")
        diagonal = (basis.square() @ eigenvalues).reshape(stored.tensors[f"curvature_diagonal/{layer}"].shape)
        assert relative_error(diagonal, stored.tensors[f"curvature_diagonal/{layer}"]) < WITHIN[name]
        assert relative_error(eigenvalues.norm(), stored.tensors[f"curvature_norm/{layer}"]) < WITHIN[name]


@each_case
def test_scores_are_those_of_the_definitions(name: str) -> None:
    stored = answers(name)
    asked = [key.split("/") for key in stored.of("pairwise/")]
    assert {strategy for strategy, _ in asked} == {"identity", "diagonal", "kfac", "ekfac"}
    assert sorted(damping for strategy, damping in asked if strategy == "ekfac") == ["0.01", "1e-08", TENTH_OF_MEAN]
    for strategy, damping in asked:
        of_layers = [scores(name, layer, strategy, damping) for layer in stored.about["layers"]]
        of_pairs, of_themselves = (torch.stack(terms).sum(0) for terms in zip(*of_layers, strict=True))
        assert relative_error(of_pairs, stored.tensors[f"pairwise/{strategy}/{damping}"]) < WITHIN[name], (strategy, damping)
        assert relative_error(of_themselves, stored.tensors[f"self/{strategy}/{damping}"]) < WITHIN[name], (strategy, damping)


@each_case
def test_scores_of_layers_are_those_of_the_definitions_and_add_up(name: str) -> None:
    stored = answers(name)
    of_layers = stored.of("pairwise_by_layer/")
    assert set(of_layers) == set(stored.about["layers"])
    for layer, answer in of_layers.items():
        assert relative_error(scores(name, layer, "ekfac", TENTH_OF_MEAN)[0], answer) < WITHIN[name]
    together = torch.stack(list(of_layers.values())).sum(0)
    assert relative_error(together, stored.tensors[f"pairwise/ekfac/{TENTH_OF_MEAN}"]) < WITHIN[name]


@pytest.mark.parametrize("name", ["sequence", "tiny_llama"])
def test_scores_of_tokens_are_terms_of_the_gradient_and_add_up(name: str) -> None:
    """A layer's gradient is a sum over positions of output gradient times input; a token's score is that of its term."""
    stored = answers(name)
    answer = stored.tensors["pairwise_by_token"]
    found = torch.zeros_like(answer)
    for layer, seen in recorded(name, "train").items():
        eigen = curvature(name, layer, "ekfac")
        query = recorded(name, "query")[layer].gradients @ eigen.basis / eigen.damped(TENTH_OF_MEAN) @ eigen.basis.T
        terms = (seen.output_gradients[:, :, None] * seen.inputs[:, None, :]).flatten(1)  # (example * token, output * input)
        found += (query @ terms.T).reshape(answer.shape)
    assert relative_error(found, answer) < WITHIN[name]
    assert relative_error(answer.sum(2), stored.tensors[f"pairwise/ekfac/{TENTH_OF_MEAN}"]) < WITHIN[name]
