"""How long the statistics beside a probe's AUROC take: random directions and resampled groups, for every layer.

    python bench/probe_statistics.py [--rounds 5] [--layers 30] [--prompts 1000] [--width 576]

| figure            | what is measured                                                                                                 |
|-------------------|------------------------------------------------------------------------------------------------------------------|
| random directions | AUROCs of 500 directions in each layer, from activations (layer, prompt, width) in float32                       |
| cluster bootstrap | AUROCs of 1,000 resamples of groups of four prompts, all layers                                                  |
| both              | the two after each other, against the promise of 2 s on two cores                                                |
| obvious way       | one layer and a few directions or resamples, in a loop with a comparison of all pairs: time each, and how many   |
|                   | times more that is                                                                                               |

Times are medians of the rounds after one that fills caches; `load` is the machine's load average, about 2 if nothing else runs on two
cores. Each line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from modelscope_probes.statistics.cluster_bootstrap import bootstrap_aurocs
from modelscope_probes.statistics.random_directions import random_direction_aurocs

DIRECTIONS = 500
RESAMPLES = 1000
GROUP_SIZE = 4
MOST_SECONDS = 2.0
_SLICE = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--width", type=int, default=576)
    asked = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(asked.prompts, generator=generator) < 0.4
    activations = torch.randn((asked.layers, asked.prompts, asked.width), generator=generator)
    activations += labels[:, None] * torch.randn((asked.layers, 1, asked.width), generator=generator) / 4
    groups = torch.arange(asked.prompts) // GROUP_SIZE
    scores = activations @ torch.randn(asked.width, generator=generator)  # (layer, prompt)

    def directions() -> torch.Tensor:
        return random_direction_aurocs(activations, labels, DIRECTIONS, generator)

    def resamples() -> torch.Tensor:
        return bootstrap_aurocs(scores, labels, groups, RESAMPLES, generator).aurocs

    times: dict[str, list[float]] = {"random directions": [], "cluster bootstrap": [], "both": []}
    for turn in range(asked.rounds + 1):
        first, second = seconds_of(directions), seconds_of(resamples)
        if turn:
            for figure, seconds in zip(times, (first, second, first + second), strict=True):
                times[figure].append(seconds)
    of = {"layers": asked.layers, "prompts": asked.prompts, "width": asked.width, "threads": torch.get_num_threads()}
    _print(figure="random directions", seconds=statistics.median(times["random directions"]), directions=DIRECTIONS, **of)
    _print(figure="cluster bootstrap", seconds=statistics.median(times["cluster bootstrap"]), resamples=RESAMPLES, **of)
    both = statistics.median(times["both"])
    held = {"at_most": MOST_SECONDS, "holds": both <= MOST_SECONDS}
    _print(figure="both", seconds=both, least=min(times["both"]), **held, rounds=asked.rounds, load=os.getloadavg()[0])

    for figure, way, items in (
        ("random directions", lambda: obvious_directions(activations[0], labels, generator), DIRECTIONS),
        ("cluster bootstrap", lambda: obvious_resamples(scores[0], labels, groups, generator), RESAMPLES),
    ):
        each = seconds_of(way) / _SLICE
        fast = statistics.median(times[figure]) / (items * asked.layers)
        _print(figure=f"{figure}, obvious way", milliseconds_each=each * 1e3, fast_milliseconds_each=fast * 1e3, times_slower=each / fast)


def obvious_directions(activations: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> list[float]:
    """One direction after another from the factor of the covariance matrix, and all pairs of scores."""
    factor = torch.linalg.cholesky(torch.cov(activations.T) + 1e-6 * torch.eye(activations.shape[-1]))
    noise = torch.randn((_SLICE, activations.shape[-1]), generator=generator)
    return [pairs_won(activations @ (factor @ one), labels) for one in noise]


def obvious_resamples(scores: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor, generator: torch.Generator) -> list[float]:
    """One resample after another, its prompts put together group by group, and all pairs of scores."""
    members = [torch.nonzero(groups == group).flatten() for group in groups.unique()]
    areas = []
    for _ in range(_SLICE):
        drawn = torch.randint(len(members), (len(members),), generator=generator).tolist()
        rows = torch.cat([members[group] for group in drawn])
        areas.append(pairs_won(scores[rows], labels[rows]))
    return areas


def pairs_won(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """The definition of the AUROC."""
    positives, negatives = scores[labels][:, None], scores[~labels]
    return float(((positives > negatives).double() + (positives == negatives).double() / 2).mean())


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _print(**figures: Any) -> None:
    shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"bench": "probe_statistics", **shown}), flush=True)


if __name__ == "__main__":
    main()
