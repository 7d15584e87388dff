"""Curvature and scores worked out densely, one row at a time by autograd, and tiny language models to do it on.

Vectors of a whole weight, curvature as a matrix in the Kronecker product of two eigenbases, damping added to its eigenvalues.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from modelscope_influence.contractions import RowGradients
from modelscope_influence.factor_passes import CovariancePass, Labels, finite_rows, real_positions
from modelscope_influence.fitting import Settings, fit
from modelscope_influence.objectives import Task
from modelscope_influence.recording import recorded
from modelscope_influence.score_passes import ScorePass, blocks, query_gradients
from modelscope_influence.weights import Weight
from plugins.probes.score.in_process import run_in_process
from pydantic import BaseModel
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from modelscope_app.api import JobContext

VOCABULARY, DAMPING = 23, 0.1
EXACT = 1e-9
"""Relative norm: float64 sums in another order."""
THROUGH_FLOAT32 = 1e-6
"""A Llama of transformers computes its norms in float32 whatever it is made of, OPT its attention weights."""


# What the definitions say


class Dense(NamedTuple):
    """One weight, seen over rows, one at a time."""

    inputs: torch.Tensor
    """(position of any use, in)."""
    output_gradients: torch.Tensor
    """(position of any use, out)."""
    gradients: torch.Tensor
    """(row, out, in), by autograd of the parameters."""

    @property
    def covariances(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Uncentred, of inputs and of output gradients."""
        return self.inputs.T @ self.inputs / len(self.inputs), self.output_gradients.T @ self.output_gradients / len(self.inputs)

    @property
    def basis(self) -> torch.Tensor:
        """(out * in, out * in)."""
        of_inputs, of_outputs = (torch.linalg.eigh(covariance).eigenvectors for covariance in self.covariances)
        return torch.kron(of_outputs.contiguous(), of_inputs.contiguous())

    @property
    def curvature(self) -> torch.Tensor:
        """(out * in, out * in)."""
        return self.basis @ (self.gradients.flatten(1) @ self.basis).square().mean(0).diag() @ self.basis.T

    def scores(self, queries: torch.Tensor) -> torch.Tensor:
        """(query, row) for gradients (query, out, in)."""
        curvature = self.curvature
        damped = curvature + DAMPING * curvature.trace() / len(curvature) * torch.eye(len(curvature), dtype=torch.float64)
        return queries.flatten(1) @ torch.linalg.solve(damped, self.gradients.flatten(1).T)


Losses = Callable[[nn.Module, int], torch.Tensor]


def dense(module: nn.Module, weight: Weight, names: Sequence[str], loss: Losses, rows: Sequence[int]) -> Dense:
    """`names` are the modules that use the weight; `loss` is that of one row."""
    module = copy.deepcopy(module).requires_grad_(True)
    users = [module.get_submodule(name) for name in names]
    main = module.get_submodule(weight.name)
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
    handles = [
        user.register_forward_hook(lambda user, given, output: calls.append((user, given[0], output))) for user in dict.fromkeys(users)
    ]
    inputs, output_gradients, gradients = [], [], []
    for row in rows:
        calls.clear()
        value = loss(module, row)
        parameters = [main.weight, *([main.bias] if weight.has_bias else [])]
        found = torch.autograd.grad(value, [*parameters, *(output for *_, output in calls)], materialize_grads=True)
        matrix = found[0] if isinstance(main, nn.Linear) else found[0].T
        gradients.append(torch.cat([matrix, found[1][:, None]], 1) if weight.has_bias else matrix)
        for (user, given, _), gradient in zip(calls, found[len(parameters) :], strict=True):
            into, out = given.detach(), gradient
            if isinstance(user, nn.Embedding):
                into = nn.functional.one_hot(given, user.num_embeddings).double()
                if user.padding_idx is not None:
                    into[given == user.padding_idx] = 0  # torch learns nothing there
                if isinstance(main, nn.Linear):
                    into, out = out, into  # the head's matrix, read from the other side
            elif weight.has_bias:
                into = torch.cat([into, torch.ones(*into.shape[:-1], 1, dtype=into.dtype)], -1)
            inputs.append(into.reshape(-1, into.shape[-1]))
            output_gradients.append(out.reshape(-1, out.shape[-1]))
    for handle in handles:
        handle.remove()
    return Dense(torch.cat(inputs), torch.cat(output_gradients), torch.stack(gradients))


# What the plugin says


class NoParams(BaseModel):
    """Nothing is asked."""


class Found(NamedTuple):
    """By weight, in the order of the weights."""

    gradients: list[torch.Tensor]
    covariances: list[tuple[torch.Tensor, torch.Tensor]]
    curvatures: list[torch.Tensor]
    """(out * in, out * in)."""
    scores: torch.Tensor
    """(weight, query, row)."""
    self_influence: torch.Tensor
    """(row,), of all weights together."""


def within(folder: Path, checkpoint: Path, work: Callable[[JobContext], Any]) -> Any:
    """What `work` makes of the context of a run."""
    kept: list[Any] = []
    run_in_process(lambda context, params: kept.append(work(context)), NoParams(), folder, [checkpoint])
    return kept[0]


def found_by_plugin(context: JobContext, task: Task, weights: Sequence[Weight], queries: Sequence[int]) -> Found:
    """Everything, on the real labels; queries are some of the rows."""
    settings, labels = Settings("ekfac", "empirical", 1), Labels("empirical", 1, context.generator)
    fitted = fit(context, task, weights, settings, __file__).curvatures
    sums = context.fold("mine", CovariancePass(task, weights, labels, torch.float64), task.source())
    divided_by = blocks(fitted, DAMPING, context.model())
    asked = query_gradients(task, weights, "loss", queries, divided_by)
    scored = context.fold("scores", ScorePass(task, weights, asked, divided_by, by_weight=True, cosines=False), task.source())
    covariances, curvatures = [], []
    for weight in weights:
        count = sums[f"positions {weight.name}"]
        covariances.append((sums[f"inputs {weight.name}"] / count, sums[f"outputs {weight.name}"] / count))
        basis, eigenvalues = fitted[weight.name].basis, fitted[weight.name].eigenvalues
        assert basis is not None
        assert eigenvalues is not None
        both = torch.kron(basis.outputs.contiguous(), basis.inputs.contiguous())
        curvatures.append(both @ eigenvalues.flatten().diag() @ both.T)
    return Found(all_gradients(task, weights), covariances, curvatures, scored["scores"], scored["self"])


def all_gradients(task: Task, weights: Sequence[Weight]) -> list[torch.Tensor]:
    """(row, out, in) by weight, batch by batch."""
    kept: dict[str, dict[int, torch.Tensor]] = {weight.name: {} for weight in weights}
    here: dict[str, torch.Tensor] = {}
    source = task.source()
    for batch in source.plan:
        here.clear()
        with recorded(weights, lambda weight, uses: here.update({weight.name: RowGradients(uses).dense})) as tape:
            scored = task.forward(source.load(batch))
            tape.mask = real_positions(scored, finite_rows(scored))
            tape.backward(scored.losses().sum())
        for weight in weights:
            kept[weight.name].update(zip(scored.ids, here[weight.name], strict=True))
    return [torch.stack([kept[weight.name][row] for row in task.ids]) for weight in weights]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float64
    return float((found - expected).norm() / expected.norm())


def assert_agrees(found: Found, expected: Sequence[Dense], queries: Sequence[int], within: float) -> None:
    assert len(found.gradients) == len(expected)
    own = torch.zeros(len(expected[0].gradients), dtype=torch.float64)
    for at, one in enumerate(expected):
        assert relative_error(found.gradients[at], one.gradients) < within
        assert relative_error(found.covariances[at][0], one.covariances[0]) < within
        assert relative_error(found.covariances[at][1], one.covariances[1]) < within
        assert relative_error(found.curvatures[at], one.curvature) < within
        assert relative_error(found.scores[at], one.scores(one.gradients[list(queries)])) < within
        own += one.scores(one.gradients).diag()
    assert relative_error(found.self_influence, own) < within


# Language models


def saved(folder: Path, model: Any) -> Path:
    """In float64."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.double().named_parameters():
            if parameter.ndim == 2 or name.endswith("bias"):
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    model.save_pretrained(folder)
    return folder


def llama(folder: Path, tied: bool) -> Path:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return saved(folder, LlamaForCausalLM(config))


def gpt2(folder: Path, tied: bool = True) -> Path:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=6,
        n_inner=8,
        n_layer=2,
        n_head=2,
        n_positions=16,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    return saved(folder, GPT2LMHeadModel(config))


def opt(folder: Path) -> Path:
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=6,
        word_embed_proj_dim=6,
        ffn_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        dropout=0.0,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
    )
    return saved(folder, OPTForCausalLM(config))


def token_rows(lengths: Sequence[int] = (5, 9, 7, 9, 3, 6, 2, 8, 4, 7), first: int = 0) -> list[list[int]]:
    """Every token is in some row."""
    generator = torch.Generator().manual_seed(6)
    stream = torch.cat([torch.randperm(VOCABULARY - first, generator=generator) + first for _ in range(4)]).tolist()
    return [[stream.pop() for _ in range(length)] for length in lengths]


def next_token_loss(rows: Sequence[Sequence[int]]) -> Losses:
    def loss(module: nn.Module, row: int) -> torch.Tensor:
        ids = rows[row]
        logits = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return -sum((logits[at].log_softmax(0)[ids[at + 1]] for at in range(len(ids) - 1)), torch.zeros((), dtype=torch.float64))

    return loss


def loaded(folder: Path) -> Any:
    kind = {"llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel, "opt": OPTForCausalLM}[folder.name]
    return kind.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
