"""Ask kronfluence, in an environment of its own, for curvature factors and influence scores of three small models.

`make oracles` runs this and rewrites `kronfluence_*.safetensors`, which hold the models and their data as well;
`tests/plugins/influence/test_oracle_answers.py` says what the tensors mean by working them out densely. Nothing of this project is
imported here but the toy model.

Everything is float64 (but for the norms of the Llama, which transformers computes in float32), the loss is a sum, the measurement of a
query is its loss, and the Fisher matrix is the empirical one. In a layer's gradient, the bias is the last column of the matrix. Weights
that float32 holds exactly are stored so. Names in a file, L being a layer:

    model/...                                    the weights
    train/..., query/...                         the data
    activation_covariance/L, gradient_covariance/L   means over all positions of all examples
    lambda/L                                     (output, input) mean over examples of the squared gradient in the eigenbases
    curvature/L                                  what EK-FAC takes the Fisher matrix of the layer's flattened gradient to be
    curvature_diagonal/L, curvature_norm/L       the same of layers too big for that: diagonal, as (output, input), and norm
    pairwise/STRATEGY/DAMPING                    (query, example), DAMPING `heuristic` being a tenth of a layer's mean eigenvalue
    pairwise_by_layer/L, pairwise_by_token       the terms of pairwise/ekfac/heuristic, the latter (query, example, token)
    self/STRATEGY/DAMPING                        (example,)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset
from toy_sequence_model import ToySequenceModel, next_token_loss
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
ASKED = [(strategy, None) for strategy in ("identity", "diagonal", "kfac", "ekfac")] + [("ekfac", 1e-8), ("ekfac", 1e-2)]
DOUBLE = torch.float64
MLP_SIZES = [6, 8, 5, 3]
LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}

Tensors = dict[str, torch.Tensor]


class Case(NamedTuple):
    """What is asked about."""

    model: nn.Module
    train: Tensors
    query: Tensors
    loss: Callable[..., torch.Tensor]
    """Of the model and a batch of those tensors, in their order."""
    layers: list[str]
    """Those asked about."""
    config: dict[str, Any]
    """What the weights are weights of."""


class SumOfLosses(Task):
    """What kronfluence wants to know of a case. It passes arguments by these names."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> torch.Tensor:
        assert not sample
        return self.case.loss(model, *batch)

    def compute_measurement(self, batch: Any, model: nn.Module) -> torch.Tensor:
        return self.case.loss(model, *batch)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.case.layers


class Mlp(nn.Module):
    """Linear layers with relu between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(MLP_SIZES))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            features = layer(torch.relu(features) if index else features)
        return features


def main() -> None:
    """Write the answers beside this file."""
    torch.set_num_threads(1)
    asked = {name: metadata.version(name) for name in ("kronfluence", "torch", "transformers")}
    for name, case in {"mlp": mlp(), "sequence": sequence(), "tiny_llama": tiny_llama()}.items():
        # contiguous copies: transposes and shared memory cannot be stored
        found = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in answers(case).items()}
        about = {"asked": asked, "config": case.config, "layers": case.layers}
        save_file(found, HERE / f"kronfluence_{name}.safetensors", metadata={"about": json.dumps(about)})


def mlp() -> Case:
    """A classifier."""

    def loss(model: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(features), labels, reduction="sum")

    def rows(count: int, seed: int) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(count, MLP_SIZES[0], dtype=DOUBLE, generator=generator)
        return {"features": features, "labels": torch.randint(MLP_SIZES[-1], (count,), generator=generator)}

    config = {"model_type": "mlp", "layer_sizes": MLP_SIZES, "activation": "relu"}
    layers = [f"layers.{index}" for index in range(len(MLP_SIZES) - 1)]
    return Case(randomised(Mlp(), 0), rows(40, 1), rows(7, 2), loss, layers, config)


def sequence() -> Case:
    """A toy language model."""

    def loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return next_token_loss(model(ids), ids)

    layers = ["first", "second", "head"]
    return Case(randomised(ToySequenceModel(), 3), token_ids(24, 9, 11, 4), token_ids(3, 9, 11, 5), loss, layers, {})


def tiny_llama() -> Case:
    """A Llama, of which the layers of the feed-forward blocks are asked about."""

    def loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return next_token_loss(model(input_ids=ids, use_cache=False).logits, ids)

    torch.manual_seed(6)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA)).double()
    layers = [
        f"model.layers.{index}.mlp.{name}" for index in range(LLAMA["num_hidden_layers"]) for name in ("gate_proj", "up_proj", "down_proj")
    ]
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **LLAMA}
    vocabulary = LLAMA["vocab_size"]
    return Case(model, token_ids(16, 12, vocabulary, 7), token_ids(3, 12, vocabulary, 8), loss, layers, config)


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """`model` in float64 with normal weights, of a size that keeps that of what passes through."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    for parameter in model.parameters():
        scale = parameter.shape[1] ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.data = torch.randn(parameter.shape, dtype=DOUBLE, generator=generator) * scale
    return model


def token_ids(count: int, length: int, vocabulary: int, seed: int) -> Tensors:
    return {"ids": torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))}


def answers(case: Case) -> Tensors:
    """The case, and what kronfluence says of it."""
    stored = {f"model/{name}": exact(tensor) for name, tensor in case.model.state_dict().items()}
    stored |= {f"train/{name}": tensor for name, tensor in case.train.items()}
    stored |= {f"query/{name}": tensor for name, tensor in case.query.items()}
    task = SumOfLosses(case)
    model = prepare_model(case.model.eval(), task)  # renames the model's tensors
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("asked", model, task, cpu=True, disable_tqdm=True, output_dir=folder)
        for strategy in dict.fromkeys(strategy for strategy, _ in ASKED):
            analyzer.fit_all_factors(strategy, TensorDataset(*case.train.values()), 16, factor_args=factor_arguments(strategy))
        stored |= factors(analyzer, case)
        for strategy, damping in ASKED:
            name = f"{strategy}/{'heuristic' if damping is None else damping}"
            stored[f"pairwise/{name}"] = pairwise_scores(analyzer, case, strategy, damping)["all_modules"]
            analyzer.compute_self_scores(
                "self", strategy, TensorDataset(*case.train.values()), 16, score_args=score_arguments(damping), overwrite_output_dir=True
            )
            stored[f"self/{name}"] = analyzer.load_self_scores("self")["all_modules"]
        by_layer = pairwise_scores(analyzer, case, "ekfac", None, compute_per_module_scores=True)
        stored |= {f"pairwise_by_layer/{layer}": scores for layer, scores in by_layer.items()}
        if "ids" in case.train:
            by_token = pairwise_scores(analyzer, case, "ekfac", None, compute_per_token_scores=True)
            stored["pairwise_by_token"] = by_token["all_modules"]
    return stored


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in float32 if that holds them."""
    return tensor.float() if torch.equal(tensor.float().double(), tensor) else tensor


def factor_arguments(strategy: str) -> FactorArguments:
    return FactorArguments(
        strategy=strategy,
        use_empirical_fisher=True,
        activation_covariance_dtype=DOUBLE,
        gradient_covariance_dtype=DOUBLE,
        eigendecomposition_dtype=DOUBLE,
        per_sample_gradient_dtype=DOUBLE,
        lambda_dtype=DOUBLE,
    )


def score_arguments(damping: float | None, **more: bool) -> ScoreArguments:
    return ScoreArguments(
        damping_factor=damping,
        query_gradient_svd_dtype=DOUBLE,
        per_sample_gradient_dtype=DOUBLE,
        precondition_dtype=DOUBLE,
        score_dtype=DOUBLE,
        **more,
    )


def pairwise_scores(analyzer: Analyzer, case: Case, strategy: str, damping: float | None, **more: bool) -> Tensors:
    """Of each layer, or of `all_modules` together."""
    train, query = (TensorDataset(*tensors.values()) for tensors in (case.train, case.query))
    analyzer.compute_pairwise_scores(
        "pairwise",
        strategy,
        query,
        train,
        per_device_query_batch_size=4,
        per_device_train_batch_size=16,
        score_args=score_arguments(damping, **more),
        overwrite_output_dir=True,
    )
    return analyzer.load_pairwise_scores("pairwise")


def factors(analyzer: Analyzer, case: Case) -> Tensors:
    """Covariances and curvature; kronfluence keeps sums beside counts, eigenvectors have free signs."""
    sums, eigen, lambdas = (
        analyzer.load_covariance_matrices("ekfac"),
        analyzer.load_eigendecomposition("ekfac"),
        analyzer.load_lambda_matrices("ekfac"),
    )
    found: Tensors = {}
    for layer in case.layers:
        of_outputs, of_inputs = eigen["gradient_eigenvectors"][layer], eigen["activation_eigenvectors"][layer]
        lambda_ = lambdas["lambda_matrix"][layer] / lambdas["num_lambda_processed"][layer]
        if lambda_.numel() > 100:
            found[f"curvature_diagonal/{layer}"] = of_outputs.square() @ lambda_ @ of_inputs.square().T
            found[f"curvature_norm/{layer}"] = lambda_.norm()
            continue
        for side in ("activation", "gradient"):
            count = sums[f"num_{side}_covariance_processed"][layer]
            found[f"{side}_covariance/{layer}"] = sums[f"{side}_covariance"][layer] / count
        basis = torch.kron(of_outputs, of_inputs)
        found[f"lambda/{layer}"] = lambda_
        found[f"curvature/{layer}"] = basis @ lambda_.flatten().diag() @ basis.T
    return found


if __name__ == "__main__":
    main()
