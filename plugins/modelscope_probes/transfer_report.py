"""Tables, facts and views of `probes.transfer`, from the scores of every member's direction on every member's activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
import torch

from modelscope_app.api import FactsView, HeatMapView, LinesView, TableView, View
from modelscope_probes.statistics.intervals import clopper_pearson

OWN_PROBE, BEHAVIOUR = "AUROC of its own probe", "defection rate of positive prompts"


class Transfer(NamedTuple):
    """What was found. `fitted` and `tested` count members, in the order of the steps."""

    steps: Sequence[int]
    layers: Sequence[int]
    aurocs: torch.Tensor
    """(fitted, tested, layer) float64, NaN where unknown."""
    low: torch.Tensor
    """(fitted, tested, layer) float64, NaN where no interval was drawn or it is unknown."""
    high: torch.Tensor
    cosines: torch.Tensor
    """(layer, fitted, fitted) float64 between directions, NaN where one is unknown."""
    worst: Sequence[Sequence[tuple[str, float]]]
    """By member and layer: the cell of negatives its own probe tells least from the positives, and the AUROC against it."""
    defected: Sequence[tuple[int, int]] | None
    """By member: positive prompts whose answer is a defection, of how many known ones; None if no behaviour was looked at."""
    shown: int
    """Place of the layer that is shown."""
    level: float


def best_layer(aurocs: torch.Tensor) -> int:
    """Place of the highest AUROC (layer,); of equals the one nearest the middle, which is also the answer where all are unknown."""
    middle = (len(aurocs) - 1) / 2
    known = torch.nan_to_num(aurocs, nan=-1.0).tolist()
    return min(range(len(known)), key=lambda at: (-known[at], abs(at - middle)))


def cosines(directions: torch.Tensor) -> torch.Tensor:
    """(layer, fitted, fitted) between directions (fitted, layer, hidden); NaN where a direction is zero or unknown."""
    lengths = directions.norm(dim=-1, keepdim=True)
    unit = directions / torch.where(lengths > 0, lengths, torch.nan)
    return torch.einsum("alh,blh->lab", unit, unit).clamp(-1, 1)


def transfer_table(found: Transfer) -> pl.DataFrame:
    """One row per direction, member it was tested on, and layer."""
    steps, layers = found.steps, found.layers
    each = [(i, j, at) for i in range(len(steps)) for j in range(len(steps)) for at in range(len(layers))]
    return pl.DataFrame(
        {
            "fitted_at": pl.Series([steps[i] for i, _, _ in each], dtype=pl.Int64),
            "tested_at": pl.Series([steps[j] for _, j, _ in each], dtype=pl.Int64),
            "layer": pl.Series([layers[at] for _, _, at in each], dtype=pl.Int64),
            "auroc": _known(found.aurocs.flatten().tolist()),
            "ci_low": _known(found.low.flatten().tolist()),
            "ci_high": _known(found.high.flatten().tolist()),
        }
    )


def cosine_table(found: Transfer) -> pl.DataFrame:
    """One row per layer and two directions."""
    steps, layers = found.steps, found.layers
    each = [(at, i, j) for at in range(len(layers)) for i in range(len(steps)) for j in range(len(steps))]
    return pl.DataFrame(
        {
            "layer": pl.Series([layers[at] for at, _, _ in each], dtype=pl.Int64),
            "fitted_at": pl.Series([steps[i] for _, i, _ in each], dtype=pl.Int64),
            "and_at": pl.Series([steps[j] for _, _, j in each], dtype=pl.Int64),
            "cosine": _known(found.cosines.flatten().tolist()),
        }
    )


def step_table(found: Transfer) -> pl.DataFrame:
    """One row per step and layer: the member's own probe, and what the member does."""
    each = [(i, at) for i in range(len(found.steps)) for at in range(len(found.layers))]
    rates = _rates(found)
    return pl.DataFrame(
        {
            "step": pl.Series([found.steps[i] for i, _ in each], dtype=pl.Int64),
            "layer": pl.Series([found.layers[at] for _, at in each], dtype=pl.Int64),
            "auroc": _known(float(found.aurocs[i, i, at]) for i, at in each),
            "ci_low": _known(float(found.low[i, i, at]) for i, at in each),
            "ci_high": _known(float(found.high[i, i, at]) for i, at in each),
            "worst_cell": pl.Series([found.worst[i][at][0] for i, at in each], dtype=pl.String),
            "worst_cell_auroc": _known(found.worst[i][at][1] for i, at in each),
            "defection_rate": _known(rates[i][0] for i, _ in each),
            "rate_ci_low": _known(rates[i][1] for i, _ in each),
            "rate_ci_high": _known(rates[i][2] for i, _ in each),
        }
    )


def line_table(found: Transfer) -> pl.DataFrame:
    """The shown layer's own probe and the behaviour along the steps, one row per step and curve."""
    curves = [(OWN_PROBE, [_estimate(found, i, i) for i in range(len(found.steps))])]
    if found.defected is not None:
        curves.append((BEHAVIOUR, _rates(found)))
    rows = [(step, name, point) for name, points in curves for step, point in zip(found.steps, points, strict=True)]
    return pl.DataFrame(
        {
            "step": pl.Series([step for step, _, _ in rows], dtype=pl.Int64),
            "curve": pl.Series([name for _, name, _ in rows], dtype=pl.String),
            "value": _known(point[0] for _, _, point in rows),
            "ci_low": _known(point[1] for _, _, point in rows),
            "ci_high": _known(point[2] for _, _, point in rows),
        }
    )


def transfer_facts(found: Transfer, prompts: int, positives: int, pairs: int) -> Mapping[str, Any]:
    """Headline facts, of the shown layer."""
    rates = _rates(found)
    has_direction = [float(found.low[i, i, found.shown]) > 0.5 for i in range(len(found.steps))]
    has_behaviour = [rate[0] >= 0.5 for rate in rates]
    first, last = 0, len(found.steps) - 1
    known = found.defected is not None
    return {
        "members": len(found.steps),
        "first_step": found.steps[first],
        "last_step": found.steps[last],
        "layer": found.layers[found.shown],
        "prompts": prompts,
        "positives": positives,
        "pairs": pairs,
        "first_step_direction": next((step for at, step in enumerate(found.steps) if all(has_direction[at:])), None),
        "first_step_behaviour": next((step for at, step in enumerate(found.steps) if has_behaviour[at]), None),
        "final_auroc": _fact(found, last, last),
        "final_worst_cell": found.worst[last][found.shown][0],
        "final_worst_cell_auroc": found.worst[last][found.shown][1],
        "first_on_last_auroc": _fact(found, first, last),
        "last_on_first_auroc": _fact(found, last, first),
        "first_last_cosine": float(found.cosines[found.shown, first, last]),
        "final_defection_rate": {"value": rates[last][0], "ci_low": rates[last][1], "ci_high": rates[last][2]} if known else None,
    }


def transfer_views(found: Transfer, is_chosen: bool) -> Iterable[View]:
    """Pictures of the tables above, at the shown layer."""
    layer = found.layers[found.shown]
    chosen = " The layer was chosen for its AUROC at the last step, on these prompts, so that one is flattered." if is_chosen else ""
    yield FactsView(name="facts", title="Transfer at a glance", caption=f"At layer {layer}.{chosen}")
    yield LinesView(
        name="steps",
        title=f"When the direction is there, layer {layer}",
        table="shown_steps",
        x="step",
        y="value",
        series="curve",
        low="ci_low",
        high="ci_high",
        caption="An AUROC of 0.5 is chance. A direction before the behaviour reads something other than the behaviour.",
    )
    yield HeatMapView(
        name="transfer",
        title=f"AUROC of each step's direction at each step, layer {layer}",
        table="shown_transfer",
        row="fitted_at",
        column="tested_at",
        value="auroc",
        center=0.5,
        caption="Below 0.5 the direction points the other way round. Rows: where it was fitted; columns: whose activations it reads.",
    )
    yield HeatMapView(
        name="cosines",
        title=f"Cosine between the directions, layer {layer}",
        table="shown_cosines",
        row="fitted_at",
        column="and_at",
        value="cosine",
        center=0.0,
        caption="Directions of one model turn slowly; a low cosine beside a high AUROC says that many directions tell these prompts apart.",
    )
    yield TableView(name="all_steps", title="Every step and layer", table="steps")


def _rates(found: Transfer) -> list[tuple[float, float, float]]:
    """By member: defection rate of the positive prompts with its exact interval; NaN where no behaviour was looked at or is known."""
    rates = []
    for hits, known in found.defected or [(0, 0)] * len(found.steps):
        low, high = clopper_pearson(hits, known, found.level)[:2]
        rates.append((hits / known, low, high) if known else (math.nan, math.nan, math.nan))
    return rates


def _fact(found: Transfer, fitted: int, tested: int) -> Mapping[str, Any]:
    return dict(zip(("value", "ci_low", "ci_high"), _estimate(found, fitted, tested), strict=True))


def _estimate(found: Transfer, fitted: int, tested: int) -> tuple[float, float, float]:
    """AUROC at the shown layer, and both ends of its interval."""
    at = fitted, tested, found.shown
    return float(found.aurocs[at]), float(found.low[at]), float(found.high[at])


def _known(values: Iterable[float]) -> pl.Series:
    """A float column; NaN and infinity become null."""
    return pl.Series([value if math.isfinite(value) else None for value in values], dtype=pl.Float64)
