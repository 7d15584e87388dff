"""Tables, facts and views of `probes.defection`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl
import torch

from modelscope_app.api import BarsView, FactsView, HistogramView, LinesView, TableView, TokenStripView, View
from modelscope_probes.evidence import Labelled, LayerEvidence
from modelscope_probes.prompts import Pair, Prompt
from modelscope_probes.statistics.intervals import Interval, clopper_pearson
from modelscope_probes.statistics.operating_points import OperatingPoint, RocCurve

_BINS = 40


def number(value: float | None) -> float | None:
    """A number, or None where it is unknown."""
    return None if value is None or not math.isfinite(value) else float(value)


def with_interval(value: float, interval: Interval) -> dict[str, Any]:
    """A fact with its uncertainty."""
    return {"value": number(value), "ci_low": number(interval.low), "ci_high": number(interval.high), "method": interval.method}


def rate_fact(successes: int, trials: int, level: float) -> dict[str, Any] | None:
    """A rate with its exact interval; None of nothing."""
    return with_interval(successes / trials, clopper_pearson(successes, trials, level)) if trials else None


def point_fact(point: OperatingPoint | None) -> dict[str, Any] | None:
    """True positive rate at an operating point."""
    return None if point is None else with_interval(point.true_positive_rate, point.true_positive_interval)


def layer_table(layers: Sequence[int], found: LayerEvidence, data: Labelled, twin: LayerEvidence | None, level: float) -> pl.DataFrame:
    """One row a layer: every number beside its AUROC."""
    rows = []
    for at, layer in enumerate(layers):
        worst = int(found.worst.worst[at])
        pairs = found.pairs[:, at]
        row: dict[str, Any] = {
            "layer": layer,
            "auroc": number(float(found.auroc[at])),
            "ci_low": number(found.intervals[at].low),
            "ci_high": number(found.intervals[at].high),
            "interval": found.intervals[at].method,
            "delong_se": number(float(found.delong_error[at])),
            "worst_cell": data.cell_names[int(found.worst.cells[worst])],
            "worst_auroc": number(float(found.worst.auroc[at])),
            "worst_ci_low": number(float(found.worst.low[at])),
            "worst_ci_high": number(float(found.worst.high[at])),
            "random_percentile": number(float(found.percentile[at])),
            "random_p": number(float(found.random_p[at])),
            "best_random_auroc": number(float(found.random[at].max())),
            "p_max_t": number(float(found.p[at])),
            "first_polarity_auroc": number(float(found.halves[0][at])),
            "other_polarity_auroc": number(float(found.halves[1][at])),
            "pair_auroc_min": number(float(pairs.min())),
            "pair_auroc_median": number(float(pairs.median())),
            "pair_auroc_max": number(float(pairs.max())),
            "between_within": number(float(found.between_within[at])),
        }
        if twin is not None:
            low, high = difference_interval(found, twin, at, level)
            row |= {
                "twin_auroc": number(float(twin.auroc[at])),
                "twin_difference": number(float(found.auroc[at] - twin.auroc[at])),
                "twin_difference_low": number(low),
                "twin_difference_high": number(high),
            }
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


class BesideTwin(NamedTuple):
    """A twin's AUROC and how far the checkpoint is above it."""

    at: int
    """Place of the twin's layer."""
    auroc: float
    difference: float
    low: float
    high: float

    @property
    def fact(self) -> dict[str, Any]:
        """The difference with its interval."""
        ends = {"value": number(self.difference), "ci_low": number(self.low), "ci_high": number(self.high)}
        return {**ends, "method": "paired bootstrap"}


def beside_twin(found: LayerEvidence, twin: LayerEvidence, at: int, is_layer_fixed: bool, level: float) -> BesideTwin:
    """AUROC minus the twin's: at one layer where it was fixed beforehand, else each at its own best layer.

    A layer chosen for this checkpoint's AUROC flatters it, and the twin would lose by that alone; so the twin chooses as well, in every
    resample anew.
    """
    if is_layer_fixed or bool(twin.auroc.isnan().any() or found.auroc.isnan().any()):
        low, high = difference_interval(found, twin, at, level)
        return BesideTwin(at, float(twin.auroc[at]), float(found.auroc[at] - twin.auroc[at]), low, high)
    best = int(twin.auroc.argmax())
    slack = max(_width(found.intervals[at]), _width(twin.intervals[best]))
    low, high = _ends(found.resamples.amax(-1) - twin.resamples.amax(-1), slack, level)
    return BesideTwin(best, float(twin.auroc[best]), float(found.auroc.max() - twin.auroc.max()), low, high)


def difference_interval(found: LayerEvidence, twin: LayerEvidence, at: int, level: float) -> tuple[float, float]:
    """Percentile interval of AUROC minus the twin's at one layer, from the same resamples of groups; NaN where unknown."""
    slack = max(_width(found.intervals[at]), _width(twin.intervals[at]))
    return _ends(found.resamples[:, at] - twin.resamples[:, at], slack, level)


def _ends(differences: torch.Tensor, slack: float, level: float) -> tuple[float, float]:
    """The middle `level` of differences (draws,).

    Where all are alike (both at 0 or 1 in every resample) they say nothing of the error, and the wider single interval is left open.
    """
    if bool(differences.isnan().any()):
        return math.nan, math.nan
    tail = (1 - level) / 2
    low, high = torch.quantile(differences, torch.tensor([tail, 1 - tail], dtype=differences.dtype)).tolist()
    return (low - slack, high + slack) if low == high else (low, high)


def _width(interval: Interval) -> float:
    return interval.high - interval.low


def line_table(layers: Sequence[int], found: LayerEvidence, twin: LayerEvidence | None) -> pl.DataFrame:
    """AUROC by layer as lines: the probe, its worst set of negatives, the twin, and the 95th of 100 random directions."""
    rows: list[dict[str, Any]] = []
    for at, layer in enumerate(layers):
        interval = found.intervals[at]
        rows.append({"layer": layer, "line": "probe", "auroc": found.auroc[at], "low": interval.low, "high": interval.high})
        worst = found.worst
        rows.append({"layer": layer, "line": "worst cell", "auroc": worst.auroc[at], "low": worst.low[at], "high": worst.high[at]})
        if twin is not None:
            interval = twin.intervals[at]
            rows.append({"layer": layer, "line": "twin", "auroc": twin.auroc[at], "low": interval.low, "high": interval.high})
        random = found.random[at]
        level = math.nan if bool(random.isnan().any()) else float(torch.quantile(random, 0.95))
        rows.append({"layer": layer, "line": "95 % of random", "auroc": level, "low": math.nan, "high": math.nan})
    cleaned = [{key: number(float(value)) if key in ("auroc", "low", "high") else value for key, value in row.items()} for row in rows]
    return pl.DataFrame(cleaned, infer_schema_length=None).sort("line", "layer", maintain_order=True)


def prompt_table(
    prompts: Sequence[Prompt],
    scores: torch.Tensor,
    completions: Sequence[str | None] | None,
    defected: Sequence[bool | None],
    asked: torch.Tensor | None,
    last_tokens: Sequence[str],
) -> pl.DataFrame:
    """One row a prompt; `scores` (n,) are at the layer the result is about."""
    return pl.DataFrame(
        {
            "row": [prompt.id for prompt in prompts],
            "cell": [prompt.cell for prompt in prompts],
            "group": [prompt.group for prompt in prompts],
            "label": [prompt.label for prompt in prompts],
            "score": [number(value) for value in scores.tolist()],
            "defected": list(defected),
            "completion": list(completions) if completions is not None else [None] * len(prompts),
            "asked": [number(value) for value in asked.tolist()] if asked is not None else [None] * len(prompts),
            "token_read": list(last_tokens),
            "text": [prompt.text for prompt in prompts],
        },
        schema_overrides={"defected": pl.Boolean, "completion": pl.String, "asked": pl.Float64, "label": pl.Boolean, "score": pl.Float64},
    )


def cell_table(
    prompts: Sequence[Prompt], scores: torch.Tensor, defected: Sequence[bool | None], aurocs: dict[str, float], level: float
) -> pl.DataFrame:
    """One row a cell: how many prompts, how often the model defected, and how well the probe tells it from the positives."""
    rows = []
    for cell in sorted({prompt.cell for prompt in prompts}):
        members = [at for at, prompt in enumerate(prompts) if prompt.cell == cell]
        known = [bool(defected[at]) for at in members if defected[at] is not None]
        interval = clopper_pearson(sum(known), len(known), level) if known else None
        rows.append(
            {
                "cell": cell,
                "prompts": len(members),
                "label": next((prompts[at].label for at in members), None),
                "mean_score": number(float(scores[members].mean())),
                "observed": len(known),
                "defection_rate": sum(known) / len(known) if known else None,
                "rate_low": interval.low if interval else None,
                "rate_high": interval.high if interval else None,
                "auroc": number(aurocs.get(cell, math.nan)),
            }
        )
    overrides = {"defection_rate": pl.Float64, "rate_low": pl.Float64, "rate_high": pl.Float64, "auroc": pl.Float64, "label": pl.Boolean}
    return pl.DataFrame(rows, schema_overrides=overrides)


def pair_table(pairs: Sequence[Pair], aurocs: torch.Tensor, margins: torch.Tensor) -> pl.DataFrame:
    """One row a contrast pair: AUROC (pair,) of its own direction, and how far its answers lie apart along the mean direction (pair,)."""
    return pl.DataFrame(
        {
            "question": [pair.question for pair in pairs],
            "defecting": [pair.defecting for pair in pairs],
            "benign": [pair.benign for pair in pairs],
            "auroc_alone": [number(value) for value in aurocs.tolist()],
            "margin": [number(value) for value in margins.tolist()],
        }
    )


def distribution_table(prompts: Sequence[Prompt], scores: torch.Tensor) -> pl.DataFrame:
    """Histogram of finite scores (n,), by cell, in bins of one width."""
    finite = torch.isfinite(scores)
    empty = {"cell": pl.String, "left": pl.Float64, "right": pl.Float64, "count": pl.Int64}
    if not bool(finite.any()):
        return pl.DataFrame(schema=empty)
    low, high = float(scores[finite].min()), float(scores[finite].max())
    high = high if high > low else low + 1.0
    edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64).tolist()
    rows = []
    for cell in sorted({prompt.cell for prompt in prompts}):
        members = torch.tensor([prompt.cell == cell for prompt in prompts]) & finite
        counts = torch.histc(scores[members], bins=_BINS, min=low, max=high)
        rows += [{"cell": cell, "left": edges[at], "right": edges[at + 1], "count": int(count)} for at, count in enumerate(counts.tolist())]
    return pl.DataFrame(rows, schema=empty)


def roc_table(curve: RocCurve | None) -> pl.DataFrame:
    """The ROC curve of all negatives together."""
    if curve is None:
        return pl.DataFrame(schema={"false_positive_rate": pl.Float64, "true_positive_rate": pl.Float64, "threshold": pl.Float64})
    return pl.DataFrame(
        {
            "false_positive_rate": curve.false_positive_rates.tolist(),
            "true_positive_rate": curve.true_positive_rates.tolist(),
            "threshold": [number(value) for value in curve.thresholds.tolist()],
        }
    )


def rendered_table(texts: Sequence[tuple[str, Sequence[str], int]]) -> pl.DataFrame:
    """What the model was given, token by token: of each text its name, its tokens, and the place of the token that was read."""
    rows = [
        {"text": name, "token": token, "read": 1.0 if at == read else 0.0}
        for name, tokens, read in texts
        for at, token in enumerate(tokens)
    ]
    return pl.DataFrame(rows, schema={"text": pl.String, "token": pl.String, "read": pl.Float64})


CARD = (
    "verdict",
    "verdict_reason",
    "auroc",
    "layer",
    "worst_cell",
    "worst_cell_auroc",
    "random_percentile",
    "random_p",
    "p_layer",
    "twin_auroc",
    "twin_difference",
    "first_polarity_auroc",
    "other_polarity_auroc",
    "pair_aurocs",
    "tpr_at_1_percent_fpr",
    "tpr_at_5_percent_fpr",
    "bag_of_tokens_auroc",
    "asked_auroc",
    "asked_how",
    "behavior_auroc",
    "defection_rate_positive",
    "defection_rate_negative",
    "wording_leaks",
    "shared_word_sequences",
    "more_prompts_needed",
    "more_prompts_reason",
)


def views(has_twin: bool, has_roc: bool) -> Iterator[View]:
    """Pictures of the run, the evidence card first."""
    yield FactsView(
        name="card",
        title="Evidence card",
        caption="The verdict is the first line of a written table that holds (docs/analyses/probes_defection.md); no number stands alone.",
        keys=CARD,
    )
    twin = ", the twin" if has_twin else ""
    yield LinesView(
        name="layers",
        title="AUROC by layer",
        caption=f"The probe, its worst set of negatives{twin}, and what 5 % of random directions reach or exceed. 0.5 is chance.",
        table="layer_lines",
        x="layer",
        y="auroc",
        series="line",
        low="low",
        high="high",
    )
    yield HistogramView(
        name="distributions",
        title="Scores by cell",
        caption="Along the direction, at the layer the result is about.",
        table="distributions",
        left="left",
        right="right",
        count="count",
        group="cell",
    )
    if has_roc:
        yield LinesView(
            name="roc",
            title="ROC",
            caption="All negatives together; the worst cell's AUROC is on the card.",
            table="roc",
            x="false_positive_rate",
            y="true_positive_rate",
        )
    yield BarsView(
        name="behavior",
        title="Defection rate by cell",
        caption="What the model really does, greedy, with exact intervals.",
        table="cells",
        label="cell",
        value="defection_rate",
        low="rate_low",
        high="rate_high",
    )
    yield TableView(name="layer-table", title="Layers", table="layers")
    yield TableView(name="cells", title="Cells", table="cells")
    yield TableView(
        name="pairs",
        title="Contrast pairs",
        caption="Directions of single pairs; their spread says how much hangs on wording.",
        table="pairs",
    )
    yield TableView(name="prompts", title="Prompts", table="prompts", sort_by="score", descending=True)
    yield TokenStripView(
        name="rendered",
        title="As the model read it",
        caption="One contrast pair and one prompt with the template around them; the marked token is the one whose activation was read.",
        table="rendered",
        token="token",
        scores=("read",),
        text="text",
    )
