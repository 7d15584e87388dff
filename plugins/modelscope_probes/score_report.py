"""Tables, facts and views of `probes.score`, from the scores its pass found so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import polars as pl
import torch

from modelscope_app.api import BarsView, FactsView, HeatMapView, HistogramView, TableView, TokenStripView, View
from modelscope_probes.statistics.intervals import clopper_pearson
from modelscope_probes.token_scores import Place, Scored, relative_scores

SHOWN_PROMPTS = 5
"""Texts in the token strip, which is what a terminal shows of them."""
_BINS = 20


class Threshold(NamedTuple):
    """Where alarms begin, and where it is from."""

    value: float | None
    alpha: float | None
    benign: int | None
    """Benign prompts it was set on; None if it came with the probe."""
    reason: str | None
    """Why there is none, as a sentence."""


def token_table(scored: Scored) -> pl.DataFrame:
    """One row per token that was read: its score at the best layer and at each layer."""
    places = scored.places(sorted(scored.ranked))
    scores = scored.scores(places)
    return pl.DataFrame(
        {
            "prompt": pl.Series([scored.prompts[place.row].id for place in places], dtype=pl.Int64),
            "position": pl.Series([place.position for place in places], dtype=pl.Int64),
            **_identity(scored, places),
            "score": _known(scores[:, scored.best]),
            **{f"layer_{layer}": _known(scores[:, at]) for at, layer in enumerate(scored.probe.card.layers)},
        }
    )


def strip_table(scored: Scored) -> pl.DataFrame:
    """Tokens of the highest-scoring prompts at the best layer, the highest prompt first."""
    frames = []
    for row in scored.ranked[:SHOWN_PROMPTS]:
        places = scored.places([row])
        scores = scored.scores(places)
        name = _name(scored, row)
        frames.append(
            pl.DataFrame(
                {
                    "prompt": pl.Series([name] * len(places), dtype=pl.String),
                    **_identity(scored, places),
                    "score": _known(scores[:, scored.best]),
                    "relative_score": _known(relative_scores(scores)[:, scored.best]),
                }
            )
        )
    return pl.concat(frames)


def heat_table(scored: Scored) -> pl.DataFrame:
    """Tokens by layer of the highest-scoring prompt."""
    places = scored.places(scored.ranked[:1])
    scores = scored.scores(places)
    layers = scored.probe.card.layers
    names = [f"{place.position} {scored.tokenizer.token(place.id)}" for place in places]
    return pl.DataFrame(
        {
            "token": pl.Series([name for name in names for _ in layers], dtype=pl.String),
            "layer": pl.Series([*layers] * len(places), dtype=pl.Int64),
            "score": _known(scores.flatten()),
            "relative_score": _known(relative_scores(scores).flatten()),
        }
    )


def prompt_table(scored: Scored, threshold: Threshold) -> pl.DataFrame:
    """One row per prompt that was read."""
    rows = sorted(scored.ranked)
    prompts = [scored.prompts[row] for row in rows]
    scores, ids = scored.state["scores"][:, scored.best], scored.state["tokens"]
    pooled = scored.pooled[rows]
    highest = [_highest(scores[scored.layout.prompt(row)]) for row in rows]
    answers = [scored.layout.answer(row) for row in rows]
    spoken = [ids[answer][ids[answer] >= 0] for answer in answers]
    in_answer = [_highest(scores[answer][ids[answer] >= 0])[0] for answer in answers]
    return pl.DataFrame(
        {
            "id": pl.Series([prompt.id for prompt in prompts], dtype=pl.Int64),
            "cell": pl.Series([prompt.cell for prompt in prompts], dtype=pl.String),
            "group": pl.Series([prompt.group for prompt in prompts], dtype=pl.String),
            "label": pl.Series([prompt.label for prompt in prompts], dtype=pl.Boolean),
            "tokens": pl.Series([scored.layout.lengths[row] for row in rows], dtype=pl.Int64),
            "score": _known(pooled),
            "above_threshold": pl.Series(_alarms(pooled, threshold), dtype=pl.Boolean),
            "highest_score": _known(torch.tensor([score for score, _ in highest])),
            "highest_position": pl.Series([position for _, position in highest], dtype=pl.Int64),
            "answer_highest_score": _known(torch.tensor(in_answer)),
            "answer": pl.Series(
                [scored.tokenizer.decode(tokens.tolist()) if scored.layout.new_tokens else None for tokens in spoken], dtype=pl.String
            ),
            "text": pl.Series([prompt.text for prompt in prompts], dtype=pl.String),
        }
    )


def histogram_table(prompts: pl.DataFrame) -> pl.DataFrame:
    """Known scores of prompts in equal bins, by cell; the edges are those of all cells together."""
    known = prompts.filter(pl.col("score").is_not_null())
    columns: dict[str, list[str] | list[float] | list[int]] = {"cell": [], "left": [], "right": [], "count": []}
    if known.height:
        edges = numpy.histogram_bin_edges(known["score"].to_numpy(), _BINS)
        for cell in known["cell"].unique(maintain_order=True):
            counts, _ = numpy.histogram(known.filter(pl.col("cell") == cell)["score"].to_numpy(), edges)
            columns["cell"] += [cell] * _BINS
            columns["left"] += edges[:-1].tolist()
            columns["right"] += edges[1:].tolist()
            columns["count"] += counts.tolist()
    return pl.DataFrame(columns, schema={"cell": pl.String, "left": pl.Float64, "right": pl.Float64, "count": pl.Int64})


def cell_table(prompts: pl.DataFrame, level: float) -> pl.DataFrame:
    """By cell, how many of the prompts with a known score are alerts; null where no threshold says what is one."""
    rows: list[dict[str, Any]] = []
    for cell in prompts["cell"].unique(maintain_order=True):
        known = prompts.filter(pl.col("cell") == cell)["above_threshold"].drop_nulls()
        rate = _rate(int(known.sum()), len(known), level)
        rows.append(
            {"cell": cell, "prompts": int((prompts["cell"] == cell).sum()), "known": len(known), "alerts": int(known.sum()), **rate}
        )
    columns = {"cell": pl.String, "prompts": pl.Int64, "known": pl.Int64, "alerts": pl.Int64}
    rates = {"value": pl.Float64, "ci_low": pl.Float64, "ci_high": pl.Float64}
    return pl.DataFrame(rows, schema={**columns, **rates}).rename({"value": "alert_rate"})


def first_facts(scored: Scored, threshold: Threshold) -> Mapping[str, Any]:
    """What is known before anything is scored."""
    return {
        "prompts": len(scored.prompts),
        "tokens": sum(scored.layout.lengths),
        "best_layer": scored.probe.card.best_layer,
        "pooling": scored.probe.card.pooling,
        "threshold": threshold.value,
        "alpha": threshold.alpha,
        "benign": threshold.benign,
    }


def score_facts(scored: Scored, prompts: pl.DataFrame, level: float) -> Mapping[str, Any]:
    """What was found; alerts are counted among the prompts whose score is known, and unknown without a threshold."""
    known = prompts["above_threshold"].drop_nulls()
    return {
        "generated_tokens": int((scored.state["tokens"] >= 0).sum()) - sum(scored.layout.lengths),
        "highest_score": prompts["score"].max(),
        "unknown_scores": prompts["score"].null_count(),
        "alerts": int(known.sum()) if len(known) else None,
        "alert_rate": _rate(int(known.sum()), len(known), level),
    }


def _rate(alerts: int, known: int, level: float) -> dict[str, float | None]:
    """A rate with its exact interval (Clopper & Pearson), unknown where nothing could be an alert."""
    if not known:
        return {"value": None, "ci_low": None, "ci_high": None}
    interval = clopper_pearson(alerts, known, level)
    return {"value": alerts / known, "ci_low": interval.low, "ci_high": interval.high}


def score_views(scored: Scored, threshold: Threshold) -> Iterable[View]:
    """Pictures of the tables above."""
    card, has_many = scored.probe.card, len(scored.prompts) > 1
    which = f"The {min(SHOWN_PROMPTS, len(scored.prompts))} highest-scoring prompts, the highest first. " if has_many else ""
    stands_out = "How a token stands out in its text: its score less the text's median, over the largest such difference."
    yield FactsView(name="facts", title="What the probe says", caption=f"A score is activation . direction + bias at {card.site}.")
    yield TokenStripView(
        name="tokens",
        title=f"Score of each token at layer {card.best_layer}",
        table="shown_tokens",
        token="token",
        scores=("relative_score",),
        text="prompt",
        caption=f"{which}{stands_out} A prompt is judged by its {_POOLED[card.pooling]}, not by one token.",
    )
    yield HeatMapView(
        name="layers",
        title="Tokens by layer" + (" of the highest-scoring prompt" if has_many else ""),
        table="shown_layers",
        row="token",
        column="layer",
        value="relative_score",
        center=0.0,
        caption="Each layer by itself: scores less their median in this text, over the largest such difference past the first token. "
        f"Layers other than {card.best_layer} were not chosen for anything.",
    )
    if has_many:
        yield HistogramView(
            name="scores",
            title=f"Scores of prompts at layer {card.best_layer}",
            table="histogram",
            left="left",
            right="right",
            count="count",
            group="cell",
            caption="Cells have the same bins." + ("" if threshold.value is None else f" Scores above {threshold.value:.4g} are alerts."),
        )
        if threshold.value is not None:
            yield BarsView(
                name="cells",
                title="Share of alerts by cell",
                table="cells",
                label="cell",
                value="alert_rate",
                low="ci_low",
                high="ci_high",
                caption="Exact intervals, of prompts taken to be independent of each other.",
            )
    columns = (
        "id",
        "cell",
        "label",
        "score",
        "above_threshold",
        "highest_score",
        *(["answer"] if scored.layout.new_tokens else []),
        "text",
    )
    yield TableView(name="prompts", title="Prompts", table="prompts", columns=columns, sort_by="score", descending=True)


_POOLED = {"last": "last token", "mean": "tokens' mean", "max": "features' largest values"}


def _identity(scored: Scored, places: Sequence[Place]) -> dict[str, pl.Series]:
    parts = ["answer" if place.slot >= scored.layout.answer(place.row).start else "prompt" for place in places]
    return {
        "token_id": pl.Series([place.id for place in places], dtype=pl.Int64),
        "token": pl.Series([scored.tokenizer.token(place.id) for place in places], dtype=pl.String),
        "part": pl.Series(parts, dtype=pl.String),
    }


def _name(scored: Scored, row: int) -> str:
    """Of a prompt, for people: which one, and its score."""
    prompt, score = scored.prompts[row], float(scored.pooled[row])
    return f"prompt {prompt.id} ({prompt.cell}), score {score:.4g}" if math.isfinite(score) else f"prompt {prompt.id} ({prompt.cell})"


def _alarms(pooled: torch.Tensor, threshold: Threshold) -> list[bool | None]:
    """Whether each score is above the threshold; unknown scores, and all without a threshold, are unknown."""
    limit = threshold.value
    return [score > limit if limit is not None and math.isfinite(score) else None for score in pooled.tolist()]


def _highest(scores: torch.Tensor) -> tuple[float, int | None]:
    """The largest score and its place; NaN and None where one is not finite or there is none."""
    if not len(scores) or not bool(torch.isfinite(scores).all()):
        return math.nan, None
    place = int(scores.argmax())
    return float(scores[place]), place


def _known(values: torch.Tensor) -> pl.Series:
    """A float column; NaN and infinity become null."""
    return pl.Series([value if math.isfinite(value) else None for value in values.tolist()], dtype=pl.Float64)
