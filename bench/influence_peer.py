"""Factors and scores by kronfluence, in an environment of its own: one process for `bench/influence.py`. Imports nothing of mscope.

    PYTHON bench/influence_peer.py FOLDER --phase-batches covariance=16,lambda=4,pairwise=64,queries=8,self=4
    PYTHON bench/influence_peer.py FOLDER --tune 1,4,16,64 --rows 128

FOLDER holds `workload.json`, which says where the checkpoint is, and `train.jsonl` and `queries.jsonl`. Each phase prints a line of JSON
as it ends, so that what is cut off by a time limit has said how far it came; scores are left in `peer.safetensors`. With `--tune` every
phase is run with every batch size on the first rows, and the best of each is printed.

Settings: EK-FAC, empirical Fisher, damping a tenth of the mean eigenvalue, float32 with eigendecompositions in float64 (its default and
recommendation), no partitions, all queries in one pass over the training rows. Its task and model are what its own examples show.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

PHASES = ("covariance", "lambda", "pairwise", "self")
_IGNORED = -100


def main() -> None:
    """Tune, or measure and leave the scores behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--phase-batches", default="")
    parser.add_argument("--tune", default="")
    parser.add_argument("--rows", type=int)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    began = time.perf_counter()
    peer = Peer(asked.folder, asked.rows)
    _print(phase="reading", seconds=time.perf_counter() - began, threads=torch.get_num_threads(), torch=torch.__version__)
    with tempfile.TemporaryDirectory() as output:
        peer.start(output)
        if asked.tune:
            _print(best=peer.best([int(size) for size in asked.tune.split(",")]))
            return
        batches = {name: int(size) for name, size in (part.split("=") for part in asked.phase_batches.split(","))}
        peer.run(batches)
        peer.leave_behind(asked.folder / "peer.safetensors")
    _print(phase="end", peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class Peer:
    """A workload in kronfluence's terms."""

    def __init__(self, folder: Path, rows: int | None) -> None:
        about = json.loads((folder / "workload.json").read_text())
        self.train, self.queries = (_lines(folder / f"{name}.jsonl") for name in ("train", "queries"))
        self.train = self.train[:rows]
        checkpoint = Path(about["checkpoint"])
        self.is_mlp = "features" in self.train[0]
        self.model = _mlp(checkpoint) if self.is_mlp else _language_model(checkpoint)

    def start(self, output: str) -> None:
        """Wrap the model."""
        from kronfluence import Analyzer, FactorArguments, ScoreArguments, prepare_model
        from kronfluence.utils.dataset import DataLoaderKwargs

        task = _classifier_task() if self.is_mlp else _language_task(self.model)
        self.model = prepare_model(self.model, task)
        self.analyzer = Analyzer("bench", self.model, task, cpu=True, disable_tqdm=True, output_dir=output, log_level=logging.ERROR)
        self.analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=_classified if self.is_mlp else _padded))
        self.factor_arguments = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
        self.score_arguments = ScoreArguments

    def run(self, batches: Mapping[str, int]) -> dict[str, float]:
        """Every phase, each with its batch size; seconds by phase."""
        return {
            "covariance": self._timed("covariance", lambda: self.covariance(batches["covariance"])),
            "eigendecomposition": self._timed("eigendecomposition", self.eigendecomposition),
            "lambda": self._timed("lambda", lambda: self.lambda_(batches["lambda"])),
            "pairwise": self._timed("pairwise", lambda: self.pairwise(batches["pairwise"], batches["queries"])),
            "self": self._timed("self", lambda: self.self(batches["self"])),
        }

    def best(self, sizes: Sequence[int]) -> dict[str, int]:
        """The batch size of each phase that took least, tried twice; queries all at once or in parts."""
        query_sizes = sorted({min(size, len(self.queries)) for size in (*sizes, len(self.queries))})
        seconds: dict[str, dict[int, float]] = {name: {} for name in (*PHASES, "queries")}
        for size in (*sizes, *sizes):
            batches = {**dict.fromkeys(PHASES, size), "queries": len(self.queries)}
            for name, taken in self.run(batches).items():
                if name in PHASES:
                    seconds[name][size] = min(taken, seconds[name].get(size, taken))
        found = {name: min(seconds[name], key=seconds[name].__getitem__) for name in PHASES}
        for size in query_sizes:
            seconds["queries"][size] = self._timed("pairwise", lambda size=size: self.pairwise(found["pairwise"], size))
        return {**found, "queries": min(seconds["queries"], key=seconds["queries"].__getitem__)}

    def covariance(self, batch: int) -> None:
        self.analyzer.fit_covariance_matrices("f", self.train, batch, factor_args=self.factor_arguments, overwrite_output_dir=True)

    def eigendecomposition(self) -> None:
        self.analyzer.perform_eigendecomposition("f", factor_args=self.factor_arguments, overwrite_output_dir=True)

    def lambda_(self, batch: int) -> None:
        self.analyzer.fit_lambda_matrices("f", self.train, batch, factor_args=self.factor_arguments, overwrite_output_dir=True)

    def pairwise(self, batch: int, queries: int) -> None:
        """All queries are held at once, so that the training rows are read once."""
        self.analyzer.compute_pairwise_scores(
            "pairwise",
            "f",
            self.queries,
            self.train,
            per_device_query_batch_size=queries,
            per_device_train_batch_size=batch,
            score_args=self.score_arguments(damping_factor=None, query_gradient_accumulation_steps=-(-len(self.queries) // queries)),
            overwrite_output_dir=True,
        )

    def self(self, batch: int) -> None:
        arguments = self.score_arguments(damping_factor=None)
        self.analyzer.compute_self_scores(
            "self", "f", self.train, per_device_train_batch_size=batch, score_args=arguments, overwrite_output_dir=True
        )

    def leave_behind(self, path: Path) -> None:
        from safetensors.torch import save_file

        scores = {"pairwise": self.analyzer.load_pairwise_scores("pairwise"), "self": self.analyzer.load_self_scores("self")}
        save_file({name: found["all_modules"].contiguous() for name, found in scores.items()}, path)

    def _timed(self, phase: str, work: Callable[[], None]) -> float:
        began, processor = time.perf_counter(), time.process_time()
        work()
        seconds = time.perf_counter() - began
        _print(phase=phase, seconds=seconds, cpu_seconds=time.process_time() - processor)
        return seconds


def _classifier_task() -> Any:
    from kronfluence import Task

    class Classifier(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> torch.Tensor:
            return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

    return Classifier()


def _language_task(model: nn.Module) -> Any:
    from kronfluence import Task

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".mlp." in name]

    class Language(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> torch.Tensor:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits[:, :-1]
            return functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), batch["labels"][:, 1:].reshape(-1), reduction="sum", ignore_index=_IGNORED
            )

        def compute_measurement(self, batch: Any, model: nn.Module) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

        def get_attention_mask(self, batch: Any) -> torch.Tensor:
            return batch["attention_mask"]

    return Language()


def _mlp(checkpoint: Path) -> nn.Module:
    from safetensors.torch import load_file

    sizes = json.loads((checkpoint / "config.json").read_text())["layer_sizes"]
    tensors = load_file(checkpoint / "model.safetensors")
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        layer = nn.Linear(inputs, outputs)
        layer.load_state_dict({name: tensors[f"layers.{index}.{name}"] for name in ("weight", "bias")})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def _language_model(checkpoint: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def _classified(rows: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    return [torch.tensor([row["features"] for row in rows]), torch.tensor([row["label"] for row in rows])]


def _padded(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """To the longest of a batch, not of the data."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, _IGNORED)
    for at, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[at, :length] = labels[at, :length] = torch.tensor(row["input_ids"])
        mask[at, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _print(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
