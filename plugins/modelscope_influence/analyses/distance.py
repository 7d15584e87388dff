"""What `influence.distance` does, in the order it happens: rows both models are asked, their distances, and LAFTR's for an `mlp`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch

from modelscope_app.api import BadInput, Example, FactsView, HistogramView, JobContext, Model, TableView, View
from modelscope_influence.distance_params import DistanceParams
from modelscope_influence.distance_passes import (
    DRAWS_AT_ONCE,
    MEASURES,
    DistancePass,
    MomentsPass,
    NetworkDrawsPass,
    feature_places,
    token_places,
)
from modelscope_influence.moments import ACTIVATIONS, Gates, InputMoments, Linear, covariance_root, expected_distance

BINS = 40
_NAMED_ROWS = 5
"""Rows set aside that a warning names; the table has all of them."""


class Laftr(NamedTuple):
    """What the moments say; NaN where there is nothing to say."""

    distance: float
    monte_carlo: float
    standard_error: float
    draws: int


def run(context: JobContext, params: DistanceParams) -> None:
    """Ask both models the same rows and measure how far apart their logits are; for `mlp` checkpoints, also what moments alone say."""
    is_mlp = [_model_type(context, at) == "mlp" for at in (0, 1)]
    if is_mlp[0] != is_mlp[1]:
        raise BadInput(
            f"{_name(context, is_mlp.index(True))} classifies features and {_name(context, is_mlp.index(False))} does not: "
            "a distance needs two models of one input"
        )
    features = _features(context, params) if all(is_mlp) else None
    found = _classifier_distances(context, params, features) if features is not None else _text_distances(context, params)
    kept = found["distances"].isfinite().all(dim=0).nonzero().flatten()  # (kept,) row ids
    _warn_of_rows(context, params, found)
    if not len(kept):
        raise BadInput(f"{params.data}: no row has finite logits of both models, so there is no distance")
    distances = found["distances"][:, kept]  # (measure, kept)
    intervals = context.once("intervals", lambda: _intervals(context, params, distances))
    laftr = _laftr(context, params, features, kept.tolist())
    _leave_behind(context, params, found, distances, intervals, laftr)


def _model_type(context: JobContext, checkpoint: int) -> str:
    return str((context.opened(checkpoint).config or {}).get("model_type"))


def _name(context: JobContext, checkpoint: int) -> str:
    """The checkpoint's name, or its path where both have one name."""
    names = [context.opened(at).name for at in (0, 1)]
    return names[checkpoint] if names[0] != names[1] else str(context.opened(checkpoint).path)


def _features(context: JobContext, params: DistanceParams) -> torch.Tensor:
    """(row, feature) float32. Raises BadInput for classifiers of different shapes."""
    sizes = [(context.model(at).checkpoint.config or {})["layer_sizes"] for at in (0, 1)]  # a model that was built has good ones
    if sizes[0] != sizes[1]:
        shown = [f"layers of {', '.join(map(str, each))}" for each in sizes]
        for place, unit in ((0, "features"), (-1, "classes")):
            if sizes[0][place] != sizes[1][place]:
                shown = [f"{each[place]} {unit}" for each in sizes]
        raise BadInput(
            f"{_name(context, 0)} has {shown[0]} and {_name(context, 1)} {shown[1]}: a distance needs two classifiers of one shape"
        )
    return context.labelled_features(params.data).features


def _classifier_distances(context: JobContext, params: DistanceParams, features: torch.Tensor) -> dict[str, torch.Tensor]:
    reading = DistancePass(feature_places(context.model(0), context.model(1), features), len(features))
    return context.fold("distances", reading, context.items(range(len(features)), _at_once(context, params), unit="rows"))


def _text_distances(context: JobContext, params: DistanceParams) -> dict[str, torch.Tensor]:
    vocabularies = [(context.opened(at).config or {}).get("vocab_size") for at in (0, 1)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise BadInput(
            f"{_name(context, 0)} has a vocabulary of {vocabularies[0]} tokens and {_name(context, 1)} of {vocabularies[1]}: "
            "a distance needs one vocabulary"
        )
    examples = _examples(context, params)
    reading = DistancePass(token_places(context.model(0), context.model(1)), len(examples))
    return context.fold("distances", reading, context.batches(examples, _at_once(context, params)))


def _examples(context: JobContext, params: DistanceParams) -> Sequence[Example]:
    """The rows as tokens, the same for both. Raises BadInput naming the first row that is not."""
    examples, theirs = (context.examples(params.data, at) for at in (0, 1))
    for one, other in zip(examples, theirs, strict=True):
        if one.input_ids != other.input_ids:
            raise context.rows(params.data).bad_row(
                one.id,
                f"the tokenizer of {_name(context, 1)} makes other tokens of it than that of {_name(context, 0)}; "
                "a distance compares both at the same tokens",
            )
    return examples


def _at_once(context: JobContext, params: DistanceParams) -> int:
    return params.batch_size or (256 if context.device.type == "cpu" else 2048)


def _warn_of_rows(context: JobContext, params: DistanceParams, found: Mapping[str, torch.Tensor]) -> None:
    file = Path(params.data).name
    asides = [
        (found["is_nonfinite"][0], f"NaN or infinity in the logits of {_name(context, 0)}"),
        (found["is_nonfinite"][1], f"NaN or infinity in the logits of {_name(context, 1)}"),
        (found["places"] == 0, "no position that predicts a next token"),
    ]
    for is_aside, reason in asides:
        rows = is_aside.nonzero().flatten().tolist()
        if rows:
            more = f" and {len(rows) - _NAMED_ROWS:,} more" if len(rows) > _NAMED_ROWS else ""
            named = ", ".join(map(str, rows[:_NAMED_ROWS]))
            context.warn(f"{file}: {reason} in row{'s' if len(rows) > 1 else ''} {named}{more}; set aside, in no mean")


def _intervals(context: JobContext, params: DistanceParams, distances: torch.Tensor) -> torch.Tensor:
    """(measure, 2) low and high of the mean of `distances` (measure, row): percentiles over resampled rows, the same rows for all.

    NaN where all rows are alike: resamples of them say nothing of another row.
    """
    rows = distances.shape[1]
    generator = context.generator("intervals", "rows")
    means = torch.empty(params.draws, len(distances), dtype=torch.float64)
    for draw in range(params.draws):
        context.check_cancelled()
        means[draw] = distances[:, torch.randint(rows, (rows,), generator=generator)].mean(dim=1)
    tail = (1 - params.level) / 2
    ends = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0).T  # (measure, 2)
    return torch.where((distances.amax(dim=1) > distances.amin(dim=1))[:, None], ends, torch.nan)


def _laftr(context: JobContext, params: DistanceParams, features: torch.Tensor | None, kept: Sequence[int]) -> Laftr | None:
    """The distance that moments of the input and of the first network's gates give, beside draws of the network with random gates.

    None, with the reason in the log, for models it is not computed of.
    """
    if features is None:
        context.log(f"laftr is unknown: it is computed for mlp checkpoints, and {_name(context, 0)} is a {_model_type(context, 0)}")
        return None
    activations = [str((context.opened(at).config or {}).get("activation")) for at in (0, 1)]
    if activations[0] != activations[1] or activations[0] not in ACTIVATIONS:
        context.log(f"laftr is unknown: it needs one activation, and these networks have {activations[0]} and {activations[1]}")
        return None
    before, after = (_network(context.model(at), context.device) for at in (0, 1))
    reading = MomentsPass(before, activations[0], features)
    moments = context.fold("moments", reading, context.items(kept, _at_once(context, params), unit="rows"))
    inputs = InputMoments(moments["mean"].to(context.device), moments["covariance"].to(context.device))
    gates = _gates(moments, before, activations[0])

    def exact() -> dict[str, Any]:
        return {"distance": expected_distance(before, after, gates, inputs), "root": covariance_root(inputs.covariance)}

    stored = context.once("laftr", exact)
    drawing = NetworkDrawsPass(
        before,
        after,
        gates,
        inputs,
        stored["root"].to(context.device),
        params.network_draws,
        lambda block: context.generator("network-draws", block),
    )
    blocks = math.ceil(params.network_draws / DRAWS_AT_ONCE)
    drawn = context.fold("network-draws", drawing, context.items(range(blocks), 1, unit="blocks of draws"))
    return Laftr(stored["distance"], drawn["value"], drawn["standard_error"], params.network_draws)


def _network(model: Model, device: torch.device) -> list[Linear]:
    layers = [layer for layer in model.module.modules() if isinstance(layer, torch.nn.Linear)]
    return [Linear(*(part.detach().to(device, torch.float64) for part in (layer.weight, layer.bias))) for layer in layers]


def _gates(moments: Mapping[str, torch.Tensor], network: Sequence[Linear], activation: str) -> list[Gates]:
    """By hidden layer, from what `MomentsPass` found of all hidden units."""
    gates, begin = [], 0
    for layer in network[:-1]:
        units = slice(begin, begin + len(layer.bias))
        mean, covariance = (moments[name][..., units].to(layer.bias.device) for name in ("slope_mean", "slope_covariance"))
        gates.append(Gates(mean, covariance, activation == "relu"))
        begin = units.stop
    return gates


def _leave_behind(
    context: JobContext,
    params: DistanceParams,
    found: Mapping[str, torch.Tensor],
    distances: torch.Tensor,
    intervals: torch.Tensor,
    laftr: Laftr | None,
) -> None:
    names = _name(context, 0), _name(context, 1)
    means = distances.mean(dim=1).tolist()
    context.table("rows", _row_table(found, names))
    context.table("measures", _measure_table(means, intervals, laftr))
    context.table("histogram", _histogram(distances[0]))
    low, high = (_known(end) for end in intervals[0].tolist())
    if low is None:
        context.log("fsd has no interval: all rows are alike")
    context.facts(
        {
            "fsd": {"value": means[0], "ci_low": low, "ci_high": high},
            "kl": means[1],
            "disagreement": means[2],
            "rows": distances.shape[1],
            "rows_set_aside": found["distances"].shape[1] - distances.shape[1],
            **_laftr_facts(laftr, means[0]),
        }
    )
    for view in _views(names, is_text=_model_type(context, 0) != "mlp"):
        context.view(view)


def _laftr_facts(laftr: Laftr | None, fsd: float) -> Mapping[str, Any]:
    if laftr is None:
        return {"laftr_fsd": None, "laftr_monte_carlo": None, "laftr_ratio": None}
    return {
        "laftr_fsd": laftr.distance,
        "laftr_monte_carlo": {"value": laftr.monte_carlo, "standard_error": laftr.standard_error, "draws": laftr.draws},
        "laftr_ratio": laftr.distance / fsd if fsd > 0 else None,
    }


def _row_table(found: Mapping[str, torch.Tensor], names: Sequence[str]) -> pl.DataFrame:
    """One row per row of the data; `disagrees` is the share of its places, 0 or 1 where it has one."""
    notes = [
        _note(is_nonfinite, places, names)
        for is_nonfinite, places in zip(found["is_nonfinite"].T.tolist(), found["places"].tolist(), strict=True)
    ]
    columns = {
        "row": pl.Series(range(len(notes)), dtype=pl.Int64),
        **{name: _column(values.tolist()) for name, values in zip(MEASURES, found["distances"], strict=True)},
        "places": pl.Series(found["places"].tolist(), dtype=pl.Int64),
        "note": pl.Series(notes, dtype=pl.String),
    }
    return pl.DataFrame(columns)


def _note(is_nonfinite: Sequence[bool], places: int, names: Sequence[str]) -> str:
    bad = [name for name, is_bad in zip(names, is_nonfinite, strict=True) if is_bad]
    if bad:
        return f"NaN or infinity in the logits of {' and '.join(bad)}"
    return "" if places else "no position that predicts a next token"


def _measure_table(means: Sequence[float], intervals: torch.Tensor, laftr: Laftr | None) -> pl.DataFrame:
    """One row per measure, the mean over rows with its interval; LAFTR's has none."""
    rows = [(name, mean, *ends) for name, mean, ends in zip(("fsd", "kl", "disagreement"), means, intervals.tolist(), strict=True)]
    if laftr is not None:
        rows.append(("laftr_fsd", laftr.distance, math.nan, math.nan))
    names, *numbers = zip(*rows, strict=True)
    columns = zip(("value", "ci_low", "ci_high"), numbers, strict=True)
    return pl.DataFrame({"measure": pl.Series(names, dtype=pl.String), **{name: _column(values) for name, values in columns}})


def _histogram(values: torch.Tensor) -> pl.DataFrame:
    """Rows by their fsd, in bins of equal width from 0."""
    largest = float(values.max()) or 1.0
    counts = torch.histc(values, bins=BINS, min=0.0, max=largest)
    edges = [largest * at / BINS for at in range(BINS + 1)]
    left, right = zip(*pairwise(edges), strict=True)
    return pl.DataFrame({"left": left, "right": right, "count": pl.Series(counts.tolist(), dtype=pl.Float64).cast(pl.Int64)})


def _views(names: tuple[str, str], is_text: bool) -> Iterable[View]:
    places = "positions that predict a next token" if is_text else "rows"
    yield FactsView(
        name="facts",
        title=f"From {names[0]} to {names[1]}",
        caption=f"fsd is half the mean squared difference of logits, over {places}. A number on the logits' own scale: compare it with "
        "that of another pair on the same rows.",
    )
    yield HistogramView(
        name="histogram",
        title="Distance by row",
        table="histogram",
        left="left",
        right="right",
        count="count",
        caption="A few rows far to the right of all others are where the two models differ; a mean hides them.",
    )
    yield TableView(name="measures", title="Means over rows", table="measures")
    yield TableView(name="rows", title="Every row", table="rows", sort_by="fsd", descending=True)


def _column(values: Iterable[float]) -> pl.Series:
    """A float column; NaN and infinity become null."""
    return pl.Series([_known(value) for value in values], dtype=pl.Float64)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
