"""Tables, facts and views of `probes.linear`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl
import torch

from modelscope_app.api import BarsView, FactsView, LinesView, TableView, View
from modelscope_probes.defection_report import number
from modelscope_probes.statistics.cluster_bootstrap import bootstrap_aurocs, cluster_interval
from modelscope_probes.statistics.delong import delong
from modelscope_probes.statistics.intervals import Interval, auroc_interval
from modelscope_probes.statistics.label_permutation import max_t, permuted_aurocs, permuted_labels
from modelscope_probes.statistics.ranks import auroc


class Judged(NamedTuple):
    """Held-out scores judged, (layer,) each; NaN where unknown."""

    auroc: torch.Tensor
    intervals: tuple[Interval, ...]
    """Cluster bootstrap, probe fixed."""
    delong_error: torch.Tensor
    delong_intervals: tuple[Interval, ...]
    p: torch.Tensor
    """Permutation p, corrected for all layers."""
    redrawn: int
    """Bootstrap draws that held one class only, and were drawn again."""
    permuted: str
    """What was exchanged, how many labellings were drawn and of how many."""


def judged(
    score: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor, draws: int, level: float, generators: dict[str, torch.Generator]
) -> Judged:
    """Of held-out scores (layer, n) with labels (n,) and groups (n,)."""
    areas = auroc(score, labels)
    resampled = bootstrap_aurocs(score, labels, groups, draws, generators["bootstrap"])
    errors = delong(score, labels).standard_error
    positives, negatives = int(labels.sum()), int((~labels).sum())
    permuted = permuted_labels(labels, groups, draws, generators["permutation"])
    return Judged(
        areas,
        tuple(
            cluster_interval(float(area), resampled.aurocs[:, layer], resampled.independent_pairs, level)
            for layer, area in enumerate(areas)
        ),
        errors,
        tuple(auroc_interval(float(area), float(error), positives, negatives, level) for area, error in zip(areas, errors, strict=True)),
        max_t(areas, permuted_aurocs(score, permuted.labels)).p,
        resampled.redrawn,
        permuted.in_words,
    )


def layer_table(layers: Sequence[int], method: str, found: Judged, columns: dict[str, torch.Tensor | Sequence[Any]]) -> pl.DataFrame:
    """One row a layer; `columns` are further numbers by layer."""
    frame: dict[str, Any] = {
        "layer": list(layers),
        "method": [method] * len(layers),
        "test_auroc": [number(value) for value in found.auroc.tolist()],
        "ci_low": [number(interval.low) for interval in found.intervals],
        "ci_high": [number(interval.high) for interval in found.intervals],
        "ci_method": [interval.method for interval in found.intervals],
        "delong_se": [number(value) for value in found.delong_error.tolist()],
        "delong_low": [number(interval.low) for interval in found.delong_intervals],
        "delong_high": [number(interval.high) for interval in found.delong_intervals],
        "p_max_t": [number(value) for value in found.p.tolist()],
    }
    numbers = set(frame) - {"layer", "method", "ci_method"}
    for name, values in columns.items():
        given = values.tolist() if isinstance(values, torch.Tensor) else list(values)
        frame[name] = [number(value) if isinstance(value, float) else value for value in given]
        numbers |= {name} if all(value is None or isinstance(value, float) for value in frame[name]) else set()
    return pl.DataFrame(frame, schema_overrides=dict.fromkeys(numbers, pl.Float64))


def best_row(aurocs: torch.Tensor) -> int:
    """The layer of the highest held-out AUROC, of equals the most central one (nearest the middle layer); 0 where all are unknown."""
    if bool(aurocs.isnan().all()):
        return 0
    known = torch.nan_to_num(aurocs, nan=-math.inf)
    middle = (len(aurocs) - 1) / 2
    return min((at for at in range(len(aurocs)) if known[at] == known.max()), key=lambda at: abs(at - middle))


def views(has_layers: bool, tables: Sequence[str]) -> Iterator[View]:
    """Pictures of the run."""
    yield FactsView(name="facts", title="Result", caption="Judged on rows the probe has not seen. 0.5 is chance.")
    if has_layers:
        yield LinesView(
            name="layers",
            title="Held-out AUROC by layer",
            caption="With cluster bootstrap intervals; the choice of the best layer is paid for in p_max_t.",
            table="layers",
            x="layer",
            y="test_auroc",
            low="ci_low",
            high="ci_high",
        )
    yield TableView(name="layer-table", title="Layers", table="layers")
    if "distractor" in tables:
        yield TableView(
            name="distractor",
            title="Planted distractor",
            caption="A method that finds the distractor in place of the truth would find any other balanced feature as well.",
            table="distractor",
        )
    if "erasure" in tables:
        yield TableView(
            name="erasure",
            title="Before and after erasure",
            caption="Fitted before and after LEACE took the label away; what is left above 0.5 is not linear in the mean.",
            table="erasure",
        )
    if "online_code" in tables:
        yield BarsView(
            name="online-code",
            title="Bits of the labels, portion by portion",
            caption="Online code at the best layer, labels and control labels; as many bits as rows is no compression.",
            table="online_code",
            label="portion",
            value="bits_per_row",
        )
    if "scores" in tables:
        yield TableView(name="scores", title="Scores", table="scores", sort_by="score", descending=True)
